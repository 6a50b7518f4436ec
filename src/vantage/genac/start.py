"""Which critic does a run begin with, and which stages does that one still need?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vantage import tiny
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import Critic, MakeEngine, copied, critic_of, read_card, template_of
from vantage.genac.prompt import Template, characterwise, template_for
from vantage.models.holding import ModelOptions
from vantage.policy import Policy

if TYPE_CHECKING:
    import torch

CRITICS = Path(tiny.__file__).parent / "assets"
"""Where embedded critics lie, such as `tiny-critic`."""
CHARACTER_TOKENS, TOKENS = 128, 1024
CHARACTER_RATE, RATE = 1e-4, 1e-6
COPY = "copy"


def embedded_critic(model: str, task: str) -> Path | None:
    """The critic that is shipped for an embedded policy on its own world; None for every other policy."""
    world = task.partition(":")[0]
    if model.partition(":")[0] != "tiny" or world not in tiny.WORLDS or tiny.folder(model) != tiny.WORLDS[world]:
        return None
    folder = CRITICS / f"{tiny.WORLDS[world].name}-critic"
    return folder if (folder / "config.json").is_file() else None


@dataclass(frozen=True)
class Begun:
    """A critic to begin with."""

    critic: Critic
    learning_rate: float
    """Its default for REINFORCE."""
    schooled: bool
    """Whether it has learned from an oracle before."""
    source: str
    """What messages call it."""

    def card(self, stage: str, actor: ActorFacts) -> dict[str, Any]:
        """What it says of itself when it is saved."""
        own = {"stage": stage, "critic_tokens": self.critic.sampling.max_new_tokens, "begun_as": self.source}
        return own | {"actor": actor.name, "actor_parameters": actor.parameters, "rate": actor.rate}


def begin(
    choice: str | None,
    *,
    model: str,
    task: str,
    policy: Policy,
    device: torch.device,
    template: str | None = None,
    icc: bool | None = True,
    critic_tokens: int | None = None,
    generation_batch: int = 512,
    chunk_tokens: int = 0,
    hold: ModelOptions | None = None,
    make: MakeEngine | None = None,
) -> Begun:
    """The critic that `--genac.critic` means: `policy` is the actor, of which `copy` takes a copy; `make` makes its engine.

    Without a choice it is the embedded one, else a copy. `hold` says how a loaded one is held: for a critic that learns, in
    float32 weights, whatever the arithmetic. `icc` None: as it was trained.

    Raises `UserError` for a critic that can not be had, or was trained to read another prompt than the options want.
    """
    embedded = embedded_critic(model, task) if choice is None else None
    folder = choice if embedded is None else str(embedded)
    if folder in (None, COPY):
        network, card, source = copied(policy, chunk_tokens), None, f"a copy of {model}"
    else:
        from vantage.models.loading import load_policy

        assert folder is not None
        network, card = _loaded(folder, device, chunk_tokens, hold, load_policy), read_card(_folder(folder))
        source = folder if embedded is None else f"the embedded critic of {model}"
    chosen = _template(card, template, icc, network, f"--genac.critic {choice or source}")
    spelled = characterwise(network.tokenizer)
    tokens = critic_tokens or (card or {}).get("critic_tokens") or (CHARACTER_TOKENS if spelled else TOKENS)
    critic = critic_of(network, chosen, int(tokens), generation_batch=generation_batch, make=make)
    return Begun(critic, CHARACTER_RATE if spelled else RATE, card is not None, source)


def _folder(choice: str) -> Path:
    """A run's critic lies in RUN/critic."""
    path = Path(choice)
    return path / "critic" if (path / "critic" / "config.json").is_file() else path


def _loaded(choice: str, device: torch.device, chunk_tokens: int, hold: ModelOptions | None, load: Any) -> Policy:
    try:
        found: Policy = load(str(_folder(choice)), device, chunk_tokens=chunk_tokens, options=hold)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--genac.critic", 1)) from error
    return found


def _template(card: dict[str, Any] | None, file: str | None, icc: bool | None, policy: Policy, where: str) -> Template:
    if card is None or file is not None:
        return template_for(policy.tokenizer, file, icc=icc is not False)
    found = template_of(card, where)
    if icc is not None and found.icc != icc:
        raise UserError(
            f"--genac.icc is {icc}, but this critic was trained with it {'on' if found.icc else 'off'}; "
            f"say --genac.{'' if found.icc else 'no-'}icc, or take another --genac.critic"
        )
    return found
