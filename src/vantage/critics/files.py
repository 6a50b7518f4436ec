"""What does a saved critic consist of, and when may it be used? A folder that transformers can load, and `critic.json`.

    config.json, model.safetensors, tokenizer files    the trunk (`AutoModel.from_pretrained`); not for a head on the policy
    value_head.safetensors                             weight, bias and statistics of the head
    critic.json                                        kind, reward range, and what the critic is tied to

A value means nothing under another tokenizer, verifier or prompt template, so a folder made with another one is refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vantage.critics.model import ValueHead
from vantage.errors import UserError
from vantage.models.loading import load_model
from vantage.montecarlo.cache import tokenizer_digest
from vantage.plugins import one_line

if TYPE_CHECKING:
    from vantage.config import TrainConfig
    from vantage.workload import Workload

CARD, HEAD = "critic.json", "value_head.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What `critic.json` says."""

    kind: str
    """`model`: a trunk of its own; `head`: a head on the policy's states."""
    width: int
    reward_range: tuple[float, float]
    probability: bool
    """Whether the head gives log-odds (loss `bce`) instead of values."""
    layer: int | None = None
    """Layer of the policy's states, for a head."""
    tied: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def ties(tokenizer: Any, config: TrainConfig, work: Workload) -> dict[str, str]:
    """What a critic is tied to: names in words, values short."""
    template = f"{getattr(tokenizer, 'chat_template', None)}|{config.chat}"
    rewards = [f"{name}·{weight:g}" for name, weight in zip(work.rewards.names, work.rewards.weights, strict=True)]
    files = [Path(spec.removeprefix("verl:").partition(".py")[0] + ".py") for spec in config.reward]
    sources = [_short(path.read_bytes()) for path in files if path.is_file()]
    return {
        "tokenizer": tokenizer_digest(tokenizer)[:16],
        "verifier version": " ".join([work.task.name, work.task.version, *rewards, *sources]),
        "prompt template": _short(template.encode()),
    }


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def save_critic(folder: Path, card: Card, head: ValueHead, trunk: nn.Module | None, tokenizer: Any) -> None:
    """Write a critic into a folder that does not exist yet, or is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if trunk is not None:
        network: Any = without_adapters(trunk)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, folder / HEAD)
    (folder / CARD).write_text(json.dumps(asdict(card), indent=1) + "\n", encoding="utf-8")


def without_adapters(trunk: nn.Module) -> nn.Module:
    """The trunk itself, or a copy with its adapters (peft's) merged into the weights."""
    if not any(hasattr(m, "merge") and hasattr(m, "base_layer") for m in trunk.modules()):
        return trunk
    trunk = copy.deepcopy(trunk)
    network: Any = trunk
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            adapted: Any = child
            if hasattr(child, "merge") and hasattr(child, "base_layer"):
                adapted.merge()
                setattr(parent, name, adapted.get_base_layer())
    network._hf_peft_config_loaded = False  # or transformers would save adapters alone
    return trunk


def find_critic(name: str) -> Path | None:
    """The folder of a saved critic behind a `--ppo.critic` value (itself, or a run's `critic/`); None for a model's name."""
    for path in (Path(name), Path(name) / "critic"):
        if (path / CARD).is_file():
            return path
    return None


def read_card(folder: Path) -> Card:
    """`critic.json`; raises `UserError` if it is damaged, or written by another version."""
    try:
        found = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise UserError(
                f"--ppo.critic {folder}: its {CARD} has format {found['format']}, this version reads {FORMAT}"
            )
        low, high = found["reward_range"]
        return Card(**{**found, "reward_range": (float(low), float(high))})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--ppo.critic {folder}: its {CARD} is damaged ({one_line(error)})") from error


def refuse_misfit(folder: Path, card: Card, wanted: Card) -> None:
    """Raise `UserError` for a critic of another tokenizer, verifier, template, kind of value or reward range."""
    for name, now in wanted.tied.items():
        before = card.tied.get(name)
        if before != now:
            raise UserError(f"--ppo.critic {folder}: it was made with another {name} ({before}, now {now})")
    if card.probability != wanted.probability:
        right = "bce" if card.probability else "mse or clipped"
        raise UserError(f"--ppo.critic {folder}: it was trained with --ppo.loss {right}; give the same")
    if card.reward_range != wanted.reward_range:
        raise UserError(
            f"--ppo.critic {folder}: it was made for rewards in {card.reward_range}, now they are in {wanted.reward_range}"
        )


def load_head(folder: Path, card: Card) -> ValueHead:
    """The value head of a saved critic."""
    head = ValueHead(card.width, card.reward_range, card.probability)
    try:
        head.load_state_dict(load_file(folder / HEAD))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--ppo.critic {folder}: its {HEAD} is missing or damaged ({one_line(error)})") from error
    return head


def load_trunk(name: str, tokenizer: Any) -> nn.Module:
    """The trunk of a saved critic's folder, a model folder, a run or a Hub id, in float32.

    Raises `UserError` where it can not be had, or was made for another tokenizer than the policy's.
    """
    saved = find_critic(name)
    trunk, theirs = _trunk_of_model(name) if saved is None else _trunk_of_critic(saved)
    if tokenizer_digest(theirs) != tokenizer_digest(tokenizer):
        raise UserError(
            f"--ppo.critic {name}: its tokenizer is not the policy's; a critic reads the policy's tokens as they are"
        )
    return trunk


def _trunk_of_critic(folder: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        return AutoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--ppo.critic {folder}: its model can not be loaded ({one_line(error)[:200]})") from error


def _trunk_of_model(name: str) -> tuple[nn.Module, Any]:
    from vantage.models.heads import find_head

    try:
        model, tokenizer = load_model(name)
    except UserError as error:
        raise UserError(str(error).replace("--model", "--ppo.critic", 1)) from error
    trunk = find_head(model).trunk
    if trunk is None:
        raise UserError(f"--ppo.critic {name}: this model's trunk can not be told from its head; give another model")
    return trunk, tokenizer
