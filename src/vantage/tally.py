"""What the micro-batches of an update add up to for the log, over all processes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vantage.config import KlEstimator
from vantage.distributed.world import World
from vantage.mismatch import Correction, Mismatch
from vantage.objectives import sampled_kl
from vantage.policy import Forward

MISMATCH = ("mismatch_kl", "mismatch_weight", "mismatch_capped")
"""Sums over tokens; None where the engine works on the policy's own weights, or nothing is corrected."""


@dataclass
class Tally:
    """Sums over micro-batches of everything that is logged."""

    loss_policy: float = 0.0
    loss_value: float | None = None
    entropy: float = 0.0
    clipped: float = 0.0
    ratio_max: float = 0.0
    tokens: int = 0
    kl: float | None = None
    kl_tokens: int = 0
    mismatch_kl: float | None = None
    mismatch_weight: float | None = None
    mismatch_capped: float | None = None
    grad_norms: list[float] = field(default_factory=list)
    skipped: int = 0
    steps: int = 0
    device: torch.device | None = None
    """Where phases are timed: a CUDA device is waited for at the end of each, or its work would count to the next."""
    estimates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        start = time.perf_counter()
        yield
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - start

    def restore(self, before: Tally) -> None:
        """Take back what was added since a copy was made; time that was spent stays spent."""
        spent = self.seconds
        self.__dict__.update(before.__dict__)
        self.seconds = spent

    def add_kl(self, forward: Forward, estimator: KlEstimator = "k3") -> None:
        """Count the KL to the reference of a micro-batch: over the vocabulary where it is known, else as sampled."""
        found = forward.kl_MT
        if found is None and forward.reference_logp_MT is not None:
            estimator = "k3" if estimator == "exact" else estimator
            found = sampled_kl(forward.logp_MT.detach(), forward.reference_logp_MT, estimator)
        if found is not None:
            self.kl = (self.kl or 0.0) + float(found.detach()[forward.mask_MT].sum())
            self.kl_tokens += int(forward.mask_MT.sum())

    def add_mismatch(self, found: Mismatch, mask_MT: Tensor, correction: Correction) -> None:
        """Count how far engine and policy are apart in a micro-batch."""
        self.mismatch_kl = (self.mismatch_kl or 0.0) + float(found.kl_MT[mask_MT].double().sum())
        if correction != "none":
            self.mismatch_weight = (self.mismatch_weight or 0.0) + float(found.weight_MT[mask_MT].double().sum())
            self.mismatch_capped = (self.mismatch_capped or 0.0) + float(found.capped_MT[mask_MT].sum())

    def gathered(self, world: World) -> Tally:
        """The same sums over all processes; seconds, norms and steps stay this process's own."""
        parts = world.exchange(replace(self, seconds={}))
        found = replace(self, estimates=defaultdict(list))
        for name in ("loss_policy", "loss_value", "entropy", "clipped", "tokens", "kl", "kl_tokens", *MISMATCH):
            known = [value for part in parts if (value := getattr(part, name)) is not None]
            setattr(found, name, sum(known) if known else None)
        found.ratio_max = max(part.ratio_max for part in parts)
        for part in parts:
            for key, values in part.estimates.items():
                found.estimates[key] += values
        return found

    def metrics(self) -> dict[str, float]:
        """The keys of metrics.jsonl."""
        tokens, steps = max(1, self.tokens), max(1, self.steps)
        found = {
            "loss/policy": self.loss_policy / steps,
            "policy/entropy": self.entropy / tokens,
            "policy/clip_fraction": self.clipped / tokens,
            "policy/ratio_max": self.ratio_max,
            "policy/grad_norm": sum(self.grad_norms) / max(1, len(self.grad_norms)),
            "policy/skipped_updates": float(self.skipped),
            "tokens/trained": float(self.tokens),
        }
        if self.loss_value is not None:
            found["loss/value"] = self.loss_value / steps
        if self.kl is not None:
            found["policy/kl_ref"] = self.kl / max(1, self.kl_tokens)
        found |= {
            f"policy/{name}{'_mean' if name == 'mismatch_weight' else ''}": value / tokens
            for name in MISMATCH
            if (value := getattr(self, name)) is not None
        }
        return found | {k: sum(v) / len(v) for k, v in self.estimates.items()}
