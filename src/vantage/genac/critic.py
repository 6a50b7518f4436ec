"""The critic at work: a language model with an engine of its own is asked about states, and answers with values.

K samples a state; the value of a state is the mean of those that can be parsed. A failure is never a value of 0: what
takes its place is an earlier state of the same response, else the solver's success rate (`filled`).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vantage.batch import Batch
from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.labels import ending_logp
from vantage.genac.parsing import Tag, expected_value
from vantage.genac.prompt import StateView, Template
from vantage.policy import Policy
from vantage.prompting import decode_response
from vantage.rollout.engine import Engine, Request, Rollout, Sampling
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.segments import token_texts

CARD = "critic.json"
"""What a saved critic says of itself."""


@dataclass(frozen=True)
class Opinion:
    """All that the critic said of one state."""

    prompt_ids: list[int]
    rollouts: list[Rollout]
    values: list[float | None]
    """Of each completion; None where it can not be parsed."""
    soft: list[float | None] = field(default_factory=list)
    """Of each completion the expectation over the eleven labels, where that was asked for."""

    @property
    def value(self) -> float | None:
        """Mean of the valid values; None without one."""
        valid = [v for v in (self.soft or self.values) if v is not None]
        return math.fsum(valid) / len(valid) if valid else None


class Critic:
    """A model that judges states; raises `UserError` where its context can not hold prompt and answer."""

    def __init__(
        self, policy: Policy, engine: Engine, template: Template, max_new_tokens: int, temperature: float = 1.0
    ) -> None:
        self.policy, self.engine, self.template = policy, engine, template
        # The closing tag ends a completion and stays in it. Whether base or instruct model: no end token is needed.
        self.sampling = Sampling(max_new_tokens, temperature, stop=(template.tag.closing,))

    @property
    def tag(self) -> Tag:
        """The texts around its score."""
        return self.template.tag

    def encode(self, views: Sequence[StateView], actor: ActorFacts) -> list[list[int]]:
        """Prompts as token ids. A prompt is never cut: what would be lost is the problem or the budget."""
        found = [self.template.encode(self.policy.tokenizer, view, actor) for view in views]
        room = getattr(self.policy.text_config, "max_position_embeddings", None)
        longest = max((len(ids) for ids in found), default=0)
        if room is not None and longest + self.sampling.max_new_tokens > room:
            raise UserError(
                f"--genac.critic-tokens is {self.sampling.max_new_tokens}: with a prompt of {longest} tokens that exceeds the "
                f"{room} positions of the critic; lower it, or --max-new-tokens, or take another critic"
            )
        return found

    def ask(
        self, views: Sequence[StateView], keys: Sequence[Sequence[int]], actor: ActorFacts, soft: bool = False
    ) -> list[Opinion]:
        """An opinion on each state: one completion for each of its keys, drawn from that key alone."""
        prompts = self.encode(views, actor)
        requests = [Request(ids, tuple(some)) for ids, some in zip(prompts, keys, strict=True)]
        found = self.engine.generate(requests, self.sampling)
        opinions = []
        for ids, rollouts in zip(prompts, found):
            texts = [decode_response(self.policy.tokenizer, r.response_ids) for r in rollouts]
            opinions.append(Opinion(ids, rollouts, [self.tag.value(text) for text in texts]))
        return self._softened(opinions) if soft else opinions

    def _softened(self, opinions: Sequence[Opinion]) -> list[Opinion]:
        """With the expectation over the labels behind each completion's own reasoning."""
        rows = [(o.prompt_ids, r.response_ids, v) for o in opinions for r, v in zip(o.rollouts, o.values)]
        contexts = [None if v is None else self._before_score(ids) for _, ids, v in rows]
        asked = [i for i, found in enumerate(contexts) if found is not None]
        values: list[float | None] = [v for _, _, v in rows]
        logp = self.label_logp([[*rows[i][0], *(contexts[i] or [])] for i in asked])
        for i, row in zip(asked, logp):
            values[i] = expected_value(row)
        pieces, start = [], 0
        for opinion in opinions:
            count = len(opinion.rollouts)
            pieces.append(Opinion(opinion.prompt_ids, opinion.rollouts, opinion.values, values[start : start + count]))
            start += count
        return pieces

    def _before_score(self, ids: Sequence[int]) -> list[int] | None:
        """The tokens up to the opening tag; None where a token straddles its end, so that labels can not follow it."""
        text = ""
        for i, piece in enumerate(token_texts(ids, self.policy.tokenizer)):
            text += piece
            if self.tag.opening in text:
                return list(ids[: i + 1]) if text.endswith(self.tag.opening) else None
        return None

    def label_logp(self, contexts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probs of the eleven whole labels, closing tag included, behind each context."""
        endings = [self.policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in self.tag.endings()]
        return [list(row) for row in ending_logp(self.policy, contexts, endings).tolist()]

    def save(self, folder: Path, card: dict[str, Any]) -> None:
        """Model, tokenizer and `critic.json`, which `load_critic` reads; of one that is dealt out, the main process writes."""
        with self.policy.whole() as model:
            network: Any = model
            if network is None:
                return
            network.save_pretrained(folder)
        self.policy.tokenizer.save_pretrained(folder)
        template = self.template
        own = {
            "template": template.text, "opening": template.tag.opening, "closing": template.tag.closing,
            "icc": template.icc, "chat": template.chat,
        }  # fmt: skip
        (folder / CARD).write_text(json.dumps(card | own, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def filled(row: Sequence[float | None], prior: float) -> list[float]:
    """Values of a response's states with every failure (None) replaced by the last valid one before it, else `prior`.

    Looking back only keeps a value a function of its state's past; 0 would pay the segment behind it the whole return.
    """
    found, last = [], prior
    for value in row:
        last = last if value is None else value
        found.append(last)
    return found


def read_card(folder: Path | str) -> dict[str, Any] | None:
    """What a saved critic says of itself; None for a model that is none (yet). Raises `UserError` for a torn card."""
    path = Path(folder) / CARD
    if not path.is_file():
        return None
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("template", "opening", "closing", "icc", "chat", "stage"):
            card[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--genac.critic {folder}: its {CARD} is damaged; save the critic again") from error
    return card


def template_of(card: dict[str, Any], where: str) -> Template:
    """The template that a saved critic was trained to read."""
    return Template(card["template"], Tag(card["opening"], card["closing"]), card["icc"], card["chat"], where)


def copied(policy: Policy, chunk_tokens: int = 0) -> Policy:
    """A critic to be: a copy of the solver's model in its arithmetic, with a temperature of its own.

    What the solver trains of its weights (all, or adapters) is what the critic will train of its own.
    """
    model = copy.deepcopy(policy.model)
    for parameter in model.parameters():
        parameter.grad = None
    return Policy(
        model, policy.tokenizer, chunk_tokens=chunk_tokens, compute=policy.compute, recompute=policy.recompute
    )


MakeEngine = Callable[[Policy, Sequence[int]], Engine]
"""Makes the engine of a critic from its model and end tokens."""


def critic_of(
    policy: Policy,
    template: Template,
    max_new_tokens: int,
    *,
    generation_batch: int = 512,
    make: MakeEngine | None = None,
) -> Critic:
    """A critic with an engine of its own; without `make`, the default one."""
    from vantage.models.loading import end_token_ids

    end_ids = end_token_ids(policy)
    engine = TransformersEngine(policy, end_ids, generation_batch) if make is None else make(policy, end_ids)
    return Critic(policy, engine, template, max_new_tokens)


def completions_batch(pairs: Sequence[tuple[list[int], list[int]]], step: int = 0) -> Batch:
    """Prompts and completions as a batch for a forward pass; every row is a group of its own."""
    nothing = torch.zeros(len(pairs), dtype=torch.float64)
    return Batch(
        step=step,
        prompt_ids=[prompt for prompt, _ in pairs],
        response_ids=[list(ids) for _, ids in pairs],
        group_B=torch.arange(len(pairs)),
        outcome_B=nothing,
        reward_B=nothing,
        scorable_B=torch.ones(len(pairs), dtype=torch.bool),
        domains=["default"] * len(pairs),
    )
