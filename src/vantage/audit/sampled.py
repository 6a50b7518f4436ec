"""Bias and variance from independent blocks of rollouts: every algorithm on the same prompts and responses.

The unbiased reference is RLOO over all rollouts of a prompt (twice the largest group), summed over tokens and divided by a
constant, without whitening. What is measured of an algorithm is kept in OUT/measured, so that a stopped audit goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vantage.audit.gradients import Scores, measure
from vantage.audit.outlook import COARSE, outlook
from vantage.audit.plan import Audit
from vantage.audit.projection import Projection
from vantage.audit.setting import Setting
from vantage.audit.statistics import Gradients, compared
from vantage.collect import Collected
from vantage.config import TrainConfig
from vantage.estimators.base import Algorithm
from vantage.estimators.rloo import Rloo
from vantage.settings.configfile import config_to_dict

REFERENCE = "reference"
UNBIASED = "seq-mean-token-sum-norm"


def sampled(audit: Audit, say: Callable[[str], None]) -> dict[str, Any]:
    """The audit's numbers for every algorithm, with intervals; `say` gets a line now and then."""
    with Measurements(audit, say) as measurements:
        reference = measurements.of(REFERENCE, Rloo(), audit.drawn, aggregation=UNBIASED)
        spans = measurements.projection.spans
        found: dict[str, Any] = {}
        for name, algo in audit.algorithms.items():
            members = audit.members(name)
            ours, about = measurements.of(name, algo, members)
            config = measurements.setting.trainer(algo, members).config
            sides = compared(ours, reference[0], spans, audit.rollouts_per_step, audit.confidence)
            found[name] = {
                "algorithm": algo.name, "members": members, "aggregation": config.aggregation, **sides,
                "outlook": _outlook(audit, ours, reference[0], sides["bias"]),
                "tokens": {"rollout": ours.tokens, "value_extra": ours.tokens_extra}, **about,
            }  # fmt: skip
        return {
            "algorithms": found,
            "reference": {"members": audit.drawn, "tokens": {"rollout": reference[0].tokens, "value_extra": 0.0}},
            "projection": {"parameters": measurements.projection.total, "numbers": measurements.projection.size},
            "blocks": audit.blocks, "prompts": audit.blocks * audit.prompts,
            "rollouts": audit.blocks * audit.prompts * audit.drawn,
        }  # fmt: skip


def _outlook(audit: Audit, ours: Gradients, reference: Gradients, bias: dict[str, Any]) -> dict[str, Any] | None:
    """What a statement would take, where these rollouts do not give it."""
    if bias["found"] or (bias["resolved"] and bias["share"]["high"] <= audit.tolerance):
        return None
    shares = {audit.tolerance} if bias["resolved"] else {audit.tolerance, max(audit.tolerance, COARSE)}
    scale = bias["scale"]["mean"] if bias["resolved"] else None
    rollouts = audit.prompts * audit.drawn
    return outlook(ours, reference, sorted(shares, reverse=True), rollouts, scale, audit.confidence)


class Measurements:
    """Gradients of algorithms on the same blocks, from the disk where they are there."""

    def __init__(self, audit: Audit, say: Callable[[str], None]) -> None:
        self.audit, self.say = audit, say
        self.folder = audit.out / "measured"
        self.setting = Setting(audit)
        self.projection = Projection(self.setting.policy.model, audit.dimensions, int(audit.settings.get("seed", 0)))
        self.scores = Scores(self.setting.policy, self.projection)
        self._blocks: list[Collected] = []

    def __enter__(self) -> Measurements:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.setting.policy.model.zero_grad(set_to_none=True)

    @property
    def blocks(self) -> list[Collected]:
        """All blocks' rollouts, generated at first use."""
        if not self._blocks:
            audit = self.audit
            self.say(f"{audit.blocks} blocks of {audit.prompts} prompts with {audit.drawn} rollouts each")
            self._blocks = [self.setting.block(index) for index in range(audit.blocks)]
        return self._blocks

    def of(self, name: str, algo: Algorithm, members: int, **changes: Any) -> tuple[Gradients, dict[str, Any]]:
        """Gradients of an algorithm, and what measuring them took."""
        config = TrainConfig(**self.audit.shared(algo, members, **changes))
        path = self.folder / f"{name}-{self._digest(config)}.safetensors"
        known = _read(path)
        if known is not None:
            self.say(f"{name}: measured already")
            return known
        blocks = self.blocks
        update = self.setting.update(algo, members, **changes)
        found, spent = measure(update, members, blocks, self.setting, self.scores, self.projection)
        about = {"seconds": spent.seconds, "kept": sum(spent.kept) / len(spent.kept)}
        _write(path, found, about)
        self.say(f"{name}: measured in {spent.seconds:.0f} s")
        return found, about

    def _digest(self, config: TrainConfig) -> str:
        plain = config_to_dict(config)
        plain.pop("out")
        sizes = {key: getattr(self.audit, key) for key in ("blocks", "fill_steps", "dimensions", "prompts", "drawn")}
        return hashlib.sha256(json.dumps([plain, sizes], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _write(path: Path, found: Gradients, about: dict[str, Any]) -> None:
    tensors = {"mean": found.mean_KD, "square": found.square_KL}
    if found.within_KL is not None:
        tensors["within"] = found.within_KL
    plain = {
        "members": found.members, "prompts": found.prompts, "tokens": found.tokens, "tokens_extra": found.tokens_extra,
        "about": about,
    }  # fmt: skip
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft, metadata={"plain": json.dumps(plain)})
    draft.replace(path)


def _read(path: Path) -> tuple[Gradients, dict[str, Any]] | None:
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        tensors: dict[str, Any] = load_file(path)
        with safe_open(path, "np") as file:
            plain = json.loads(file.metadata()["plain"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    about = plain.pop("about")
    within = tensors.get("within")
    return Gradients(
        np.asarray(tensors["mean"]),
        np.asarray(tensors["square"]),
        None if within is None else np.asarray(within),
        **plain,
    ), about
