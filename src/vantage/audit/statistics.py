"""What do independent blocks of gradients say about bias and variance? Unbiased products, the jackknife, Proposition 1.

Every block has its own prompts, so the inner product of the means of two *different* blocks is an unbiased estimate of
⟨E a, E b⟩, however noisy the gradients are; a product within a block would add their covariance. All that is reported is a
function of such products, with Student's interval from the jackknife over blocks. The jackknife's error is at worst too
large where the truth is 0, so a bias is called found too rarely rather than too often (tests/audit/test_statistics.py has
simulations). K blocks, D numbers of a gradient, L layers; a `Series` [K + 1] has an estimate from all blocks, then without
each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vantage.compare.statistics import LEVEL, t_quantile

Series = NDArray[np.float64]
Span = tuple[int, int]
ALLOCATIONS = (1, 2, 4, 8, 16)
"""Rollouts of a prompt for which the variance of a step is predicted."""


@dataclass(frozen=True)
class Gradients:
    """What one algorithm's gradients were, by block: directions of ascent, as parts of a step give them.

    A part is one group of `members` rollouts of each of `prompts` prompts, weighed so that its mean is the step's.
    """

    mean_KD: NDArray[np.float32]
    """Mean over the parts of a block."""
    square_KL: NDArray[np.float64]
    """Mean squared norm of a part, by layer."""
    within_KL: NDArray[np.float64] | None
    """Variance of parts with the same prompts (trace), by layer; None where no prompt has two groups."""
    members: int
    prompts: int
    tokens: float = 0.0
    """Generated for a rollout, thrown away ones counted."""
    tokens_extra: float = 0.0
    """Generated for its values."""


@dataclass(frozen=True)
class Estimated:
    """A number with its interval; without one (exact, or not to be had) `low` and `high` are the number."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def left_out(value_K: NDArray[np.float64]) -> Series:
    """Mean over the blocks, then over all but one."""
    count, total = len(value_K), value_K.sum()
    return np.concatenate([[total / count], (total - value_K) / (count - 1)])


def across(gram_KK: NDArray[np.float64]) -> Series:
    """Unbiased ⟨E a, E b⟩ from inner products of blocks' means: those of a block with itself are left out."""
    count = len(gram_KK)
    if count < 3:
        raise ValueError(f"{count} blocks: three are the least")
    rest_KK = gram_KK - np.diag(gram_KK.diagonal())
    total, row_K, column_K = rest_KK.sum(), rest_KK.sum(1), rest_KK.sum(0)
    without_K = (total - row_K - column_K) / ((count - 1) * (count - 2))
    return np.concatenate([[total / (count * (count - 1))], without_K])


def products(a_KD: NDArray[np.float32], b_KD: NDArray[np.float32], spans: Sequence[Span]) -> NDArray[np.float64]:
    """`across` for each layer [L, K + 1]."""
    found = [
        across(a_KD[:, start:end].astype(np.float64) @ b_KD[:, start:end].astype(np.float64).T) for start, end in spans
    ]
    return np.stack(found)


def interval(series: Series, level: float = LEVEL) -> Estimated:
    """Estimate with Student's interval by the jackknife (K − 1 degrees of freedom)."""
    rest = series[1:]
    count = len(rest)
    error = math.sqrt((count - 1) / count * float(((rest - rest.mean()) ** 2).sum()))
    half = t_quantile(count - 1, level) * error
    return Estimated(float(series[0]), float(series[0]) - half, float(series[0]) + half)


@dataclass(frozen=True)
class Bias:
    """How far E ĝ is from c·∇J, as a share of c·‖∇J‖, c being the factor that fits best; and that factor.

    A factor alone changes the step size and not the direction (GRPO's 1 − 1/G); what is left after it is bias.
    """

    square: Estimated
    """The squared share; its unbiased estimate may be negative."""
    scale: Estimated
    resolved: bool
    """Whether the gradient itself stands out of its noise; if not, nothing can be said."""

    @property
    def found(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return self.resolved and self.square.low > 0

    @property
    def share(self) -> Estimated:
        """‖E ĝ − c ∇J‖ / ‖c ∇J‖ with its interval."""
        values = (self.square.mean, self.square.low, self.square.high)
        return Estimated(*(math.sqrt(max(0.0, value)) for value in values))

    @property
    def unseen(self) -> float:
        """The largest share that the interval does not exclude; infinite where nothing can be said."""
        return self.share.high if self.resolved else math.inf

    def as_dict(self) -> dict[str, Any]:
        """For JSON; null where nothing can be said."""
        if not self.resolved:
            return {"share": None, "scale": None, "found": False, "resolved": False}
        return {
            "share": self.share.as_dict(), "scale": self.scale.as_dict(), "found": self.found, "resolved": True,
            "square": self.square.as_dict(),
        }  # fmt: skip


def bias_of(aa: Series, ar: Series, rr: Series, level: float = LEVEL) -> Bias:
    """From series of ⟨E a, E a⟩, ⟨E a, E r⟩ and ⟨E r, E r⟩, r being the unbiased reference.

    With c = ⟨a, r⟩/⟨r, r⟩ the squared share is ‖a − c r‖²/‖c r‖² = ⟨a, a⟩⟨r, r⟩/⟨a, r⟩² − 1, the squared tangent of the
    angle between the two.
    """
    resolved = interval(rr, level).low > 0 and interval(ar, level).low > 0
    if not resolved:
        nothing = Estimated(math.nan, math.nan, math.nan)
        return Bias(nothing, nothing, False)
    return Bias(interval(aa * rr / ar**2 - 1, level), interval(ar / rr, level), True)


@dataclass(frozen=True)
class Noise:
    """Variance of a step's gradient: traces of covariances, in squares of the reference gradient's scale."""

    step: Series
    """tr Cov of a step of B rollouts, after division by c²."""
    within: Series | None
    """tr Σ_w of a rollout (Proposition 1), likewise."""
    between: Series | None
    """tr Σ_b between prompts, likewise."""

    def predicted(self, members: int, rollouts: int) -> Series | None:
        """Proposition 1 for another number of rollouts a prompt, the baseline staying as good as it is."""
        if self.within is None or self.between is None:
            return None
        return (self.within + members * self.between) / rollouts


def noise_of(ours: Gradients, layers: Sequence[int], own: Series, scale: Series, rollouts: int) -> Noise:
    """Σ_w, Σ_b and the variance of a step of `rollouts`, summed over `layers`.

    With parts of c prompts × m rollouts: V = E‖part‖² − ‖E ĝ‖² (`own`, the series of ‖E ĝ‖²) and W the variance of parts of
    equal prompts give Σ_w = c·m·W, Σ_b = c·(V − W), and for n = B/m prompts tr Cov = (Σ_w + m·Σ_b)/B = (c·m/B)·V.
    """
    chosen = list(layers)
    size = ours.members * ours.prompts
    total = left_out(ours.square_KL[:, chosen].sum(1)) - own
    step = size / rollouts * total / scale**2
    if ours.within_KL is None:
        return Noise(step, None, None)
    within = left_out(ours.within_KL[:, chosen].sum(1))
    return Noise(step, size * within / scale**2, ours.prompts * (total - within) / scale**2)


def compared(
    ours: Gradients, reference: Gradients, spans: Mapping[str, Span], rollouts: int, level: float = LEVEL
) -> dict[str, Any]:
    """Bias and variance of an algorithm against the reference on the same blocks, as a whole and by layer; for JSON."""
    names, cuts = list(spans), list(spans.values())
    aa, ar, rr = (
        products(ours.mean_KD, ours.mean_KD, cuts),
        products(ours.mean_KD, reference.mean_KD, cuts),
        products(reference.mean_KD, reference.mean_KD, cuts),
    )
    everything = range(len(names))
    whole = _side_by_side(ours, reference, everything, (aa.sum(0), ar.sum(0), rr.sum(0)), rollouts, level)
    layers = []
    for index, name in enumerate(names):
        found = _side_by_side(ours, reference, [index], (aa[index], ar[index], rr[index]), rollouts, level)
        layers.append({"name": name, **{key: found[key] for key in ("bias", "noise")}})
    return {**whole, "layers": layers}


def _side_by_side(
    ours: Gradients, reference: Gradients, layers: Sequence[int], inner: tuple[Series, Series, Series],
    rollouts: int, level: float,
) -> dict[str, Any]:  # fmt: skip
    aa, ar, rr = inner
    bias = bias_of(aa, ar, rr, level)
    found: dict[str, Any] = {"bias": bias.as_dict(), "signal": interval(rr, level).as_dict(), "noise": None}
    if not bias.resolved:
        return found
    one = np.ones_like(rr)
    noise = noise_of(ours, layers, aa, ar / rr, rollouts)
    base = noise_of(reference, layers, rr, one, rollouts)
    spent = [g.tokens + g.tokens_extra for g in (ours, reference)]
    dearer = spent[0] / spent[1] if spent[1] else 1.0
    ratio = noise.step / base.step
    found["noise"] = {
        "step": interval(noise.step, level).as_dict(),
        "to_signal": interval(noise.step / rr, level).as_dict(),
        "at_equal_rollouts": interval(ratio, level).as_dict(),
        "at_equal_tokens": interval(ratio * dearer, level).as_dict(),
        "within": None if noise.within is None else interval(noise.within, level).as_dict(),
        "between": None if noise.between is None else interval(noise.between, level).as_dict(),
        "predicted": [
            {"members": m, **interval(series / noise.step, level).as_dict()}
            for m in ALLOCATIONS
            if (series := noise.predicted(m, rollouts)) is not None
        ],
    }
    return found
