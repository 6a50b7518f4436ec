"""Monte-Carlo truth: continuations of states, what they say of a value, and what is kept of them."""

from vantage.montecarlo.values import (
    Cache,
    State,
    Truth,
    noise_corrected_mse,
    noise_corrected_pearson,
    prefixes,
    reliability,
    truth,
)

__all__ = [
    "Cache", "State", "Truth", "noise_corrected_mse", "noise_corrected_pearson", "prefixes", "reliability", "truth",
]  # fmt: skip
