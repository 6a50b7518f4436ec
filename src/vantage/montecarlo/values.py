"""What is a state worth? Monte-Carlo truth: the mean reward of K continuations of a prompt or prefix, with its noise.

The value of a state s under a policy is V(s) = E[R | s], the expected total reward of the response that the policy
completes from s. Its estimate is the mean m of K sampled continuations, judged together with the prefix; m is unbiased
and has the variance Var(R | s)/K, which is estimated too. `docs/truth.md` tells how to call it and what it costs.
N states, K continuations of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.montecarlo.cache import Cache, Samples
from vantage.montecarlo.continuations import Continuer, Place, State, places, prefixes
from vantage.policy import Policy
from vantage.prompting import Chat
from vantage.rollout.engine import Engine, Sampling

if TYPE_CHECKING:
    from vantage.rewards.functions import RewardSet

__all__ = [
    "Cache", "State", "Truth", "noise_corrected_mse", "noise_corrected_pearson", "prefixes", "reliability", "truth",
]  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FLUSH_ROLLOUTS = 4096
"""Continuations that are generated, judged and written to the cache together: what a killed run can lose."""


@dataclass(frozen=True)
class Truth:
    """What N states are worth by K continuations each, in units of the total reward as the verifier gives it."""

    outcome_NK: Floats
    """Total reward of every continuation; NaN where it could not be judged."""
    tokens_NK: Ints
    """Tokens of every continuation behind the prefix; 0 at terminal states."""
    terminal_N: NDArray[np.bool_]
    """States that are whole responses: nothing is sampled, and all K outcomes are the verifier's one answer."""
    reward_range: tuple[float, float]
    generated: int = 0
    """Tokens generated for this result: those of continuations that came from the cache do not count."""
    problems: list[str] = field(default_factory=list)
    """What went wrong in reward functions, in one line each."""

    @property
    def count_N(self) -> Ints:
        """Continuations that could be judged."""
        found: Ints = np.isfinite(self.outcome_NK).sum(1)
        return found

    @property
    def mean_N(self) -> Floats:
        """The value m: mean outcome of the continuations that could be judged; NaN without one."""
        count_N = self.count_N
        return _ratio(np.nansum(self.outcome_NK, 1), count_N, count_N > 0)

    @property
    def variance_N(self) -> Floats:
        """Unbiased estimate of m's sampling variance, s²/n; for 0/1 outcomes that is m(1 − m)/(n − 1).

        0 at terminal states; NaN elsewhere with fewer than two judged continuations, which say nothing of their noise.
        """
        count_N = self.count_N
        square_N = np.nansum((self.outcome_NK - self.mean_N[:, None]) ** 2, 1)
        found_N = _ratio(square_N, count_N * (count_N - 1), count_N > 1)
        found_N[self.terminal_N & (count_N > 0)] = 0.0
        return found_N

    @property
    def share_N(self) -> Floats:
        """The value as a share of the reward range."""
        low, high = self.reward_range
        return (self.mean_N - low) / (high - low)

    @property
    def share_variance_N(self) -> Floats:
        """Sampling variance of `share_N`."""
        low, high = self.reward_range
        return self.variance_N / (high - low) ** 2


def _ratio(above_N: NDArray[Any], below_N: NDArray[Any], valid_N: NDArray[np.bool_]) -> Floats:
    found_N = np.full(len(above_N), math.nan)
    np.divide(above_N, below_N, out=found_N, where=valid_N)
    return found_N


def truth(
    policy: Policy,
    engine: Engine,
    states: Sequence[State],
    rewards: RewardSet,
    sampling: Sampling,
    *,
    k: int,
    seed: int,
    reward_range: tuple[float, float],
    chat: Chat = Chat(),  # noqa: B008  # it is frozen
    cache: Cache | None = None,
    world: World | None = None,
) -> Truth:
    """Values of states by k continuations each, sampled and judged as the rollouts of this `sampling` are.

    Continuation j of a state is a function of (weights, sampling, seed, tokens of prompt and prefix, j): not of the
    other states, nor of k, so a larger k extends the samples of a smaller one. Equal states are worked on once. A
    prefix of n tokens leaves a limit of `max_new_tokens` − n; one that ends with an end token or a stop string, or has
    reached the limit, is terminal. With a `cache`, only what it lacks is generated. In a `world` of several processes
    each does its share of the states, and all get the whole.

    Raises:
        UserError: k < 1, a reward range without extent, a prompt that can not be encoded, a cache that can not be written.
    """
    if k < 1:
        raise UserError(f"k is {k}: a value needs at least 1 continuation, its noise at least 2")
    if not reward_range[0] < reward_range[1]:
        raise UserError(f"--reward-range is {reward_range}: the first number must be below the second")
    world = world or World()
    sampler = Continuer(policy, engine, rewards, sampling, (seed,))
    placed = places(policy, engine, states, sampling, chat)
    names = [place.name for place in placed]
    unique = list(dict(zip(names, placed)).items())
    # Who does which state is settled before anyone looks into the cache, into which others may write meanwhile.
    mine = dict(unique[i] for i in world.share(len(unique)))
    store = None if cache is None else cache.open(policy, engine, rewards, sampling, seed, chat)
    known = {} if store is None else store.load(set(mine))
    known = {name: known.get(name, Samples()) for name in mine}
    for chunk in _chunks(mine, known, k):
        known |= _extended(sampler, chunk, known, k)
        if store is not None:
            store.write({name: known[name] for name, place in chunk.items() if not place.terminal})
    parts = world.exchange((known, sampler.generated, list(sampler.problems)))
    everything = {name: samples for part, _, _ in parts for name, samples in part.items()}
    outcome_NK, tokens_NK = np.full((len(states), k), math.nan), np.zeros((len(states), k), dtype=np.int64)
    for i, name in enumerate(names):
        # The one sample of a terminal state stands for all k.
        outcome_NK[i], tokens_NK[i] = everything[name].outcome_K[:k], everything[name].tokens_K[:k]
    terminal_N = np.array([place.terminal for place in placed], dtype=bool)
    notes = list(dict.fromkeys(note for _, _, found in parts for note in found))
    return Truth(outcome_NK, tokens_NK, terminal_N, reward_range, sum(tokens for _, tokens, _ in parts), notes)


def _chunks(places: Mapping[bytes, Place], known: Mapping[bytes, Samples], k: int) -> Iterator[dict[bytes, Place]]:
    """States that lack samples, by length, with at most `FLUSH_ROLLOUTS` of those samples at a time."""
    chunk, rows = dict[bytes, Place](), 0
    for name, place in sorted(places.items(), key=lambda item: item[1].length):
        count = len(_missing(place, known[name], k))
        if chunk and rows + count > FLUSH_ROLLOUTS:
            yield chunk
            chunk, rows = {}, 0
        if count:
            chunk[name] = place
            rows += count
    if chunk:
        yield chunk


def _extended(
    sampler: Continuer, chunk: Mapping[bytes, Place], known: Mapping[bytes, Samples], k: int
) -> dict[bytes, Samples]:
    """The samples of these states, brought to k."""
    found = sampler([(place, _missing(place, known[name], k)) for name, place in chunk.items()])
    return {
        name: Samples(np.append(known[name].outcome_K, new.outcome_K), np.append(known[name].tokens_K, new.tokens_K))
        for name, new in zip(chunk, found)
    }


def _missing(place: Place, samples: Samples, k: int) -> range:
    """Numbers of the samples that are not there yet; a terminal state has one."""
    return range(len(samples.outcome_K), 1 if place.terminal else k)


def noise_corrected_mse(predicted_N: Floats, mean_N: Floats, variance_N: Floats) -> float:
    """Mean squared error of predictions against the true values V, estimated from their noisy means m.

    mean((p − m)²) − mean(Var m). With m = V + ε, E ε = 0 and ε independent of p, E(p − m)² = (p − V)² + Var m: against
    noisy truth even a perfect predictor has an error, m's variance, V(1 − V)/K for 0/1 outcomes. An unbiased estimate of
    that is taken off, which leaves the result unbiased; so it may come out below 0, and clipping would bias it again.
    Predictions must not be made from the continuations they are compared with. States without a finite mean or variance
    (fewer than two judged continuations) are left out; NaN if none is left.
    """
    p_N, m_N, v_N = _measured(predicted_N, mean_N, variance_N)
    return float(((p_N - m_N) ** 2).mean() - v_N.mean()) if len(p_N) else math.nan


def reliability(mean_N: Floats, variance_N: Floats) -> float:
    """Share of the variance between the means that is variance between true values: 1 − mean(Var m)/Var(means).

    The square root is the highest correlation with these means that a predictor of V can have in expectation. NaN with
    fewer than two measured states or where the means do not differ; at or below 0 they differ by no more than noise.
    """
    m_N, v_N = _measured(mean_N, variance_N)
    between = float(m_N.var(ddof=1)) if len(m_N) > 1 else 0.0
    return 1 - float(v_N.mean()) / between if between > 0 else math.nan


def noise_corrected_pearson(predicted_N: Floats, mean_N: Floats, variance_N: Floats) -> float:
    """Correlation of predictions with true values: r(p, m) / √reliability (Spearman, Am. J. Psychol. 15, 1904).

    Noise in m leaves its covariance with p alone and widens m's variance, so r(p, m) is too small. The quotient is
    consistent, not unbiased, and may exceed 1. NaN where predictions or means do not differ, or means by noise alone.
    """
    p_N, m_N, v_N = _measured(predicted_N, mean_N, variance_N)
    share = reliability(m_N, v_N)
    if not share > 0 or not p_N.std() > 0:
        return math.nan
    return float(np.corrcoef(p_N, m_N)[0, 1]) / math.sqrt(share)


def _measured(*columns: Floats) -> tuple[Floats, ...]:
    """The states for which every column has a finite number."""
    arrays = np.stack([np.asarray(column, dtype=np.float64) for column in columns])
    return tuple(arrays[:, np.isfinite(arrays).all(0)])
