"""Bias and variance without sampling: sums over every group of responses of an enumerable world.

Of a group of m rollouts with members Z_1 … Z_m (each A_i ∇ log π(y_i)) the world gives E Z, E_x Cov(Z_1 | x) = Σ_w,
Cov_x E[Z | x] = Σ_b and E_x Cov(Z_1, Z_2 | x) = Σ_s, so that a step of n = B/m prompts has exactly

    Cov(ĝ) = Σ_w/B + (m/B)·Σ_b + ((m − 1)/B)·Σ_s.

POISE's Proposition 1 is the first two terms, right where the baseline is a function of the prompt (Σ_s = 0). Baselines from
siblings make members depend on each other: with b_i = (1/(m−1)) Σ g(φ_j), Σ_s = E_x[c cᵀ]/(m−1)² with c = E[g(φ) ∇ log π | x].
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.audit.plan import Audit
from vantage.audit.statistics import ALLOCATIONS
from vantage.batch import Batch
from vantage.config import TrainConfig, resolve
from vantage.enumerable import EnumerableWorld, odd_world
from vantage.estimators.base import Algorithm, Estimator, Setup
from vantage.estimators.rloo import Rloo
from vantage.update import PolicyUpdate

if TYPE_CHECKING:
    pass

ENUMERATED = (1, 2)
"""Group sizes at which the variance is enumerated besides an algorithm's own, to be held against the prediction."""
LEAST = 1e-12
"""Shares below this are rounding in float64."""


@dataclass(frozen=True)
class Moments:
    """Exact moments of a group's members; the parameters in one vector [P]."""

    mean_P: Tensor
    """E Z, the expected gradient."""
    within: float
    """tr Σ_w."""
    between: float
    """tr Σ_b."""
    siblings: float
    """tr Σ_s."""
    members: int

    def step(self, rollouts: int) -> float:
        """tr Cov(ĝ) of a step of `rollouts`."""
        return (self.within + self.members * self.between + (self.members - 1) * self.siblings) / rollouts

    def predicted(self, members: int, rollouts: int) -> float:
        """Proposition 1 for `members` rollouts of a prompt, the baseline staying what it is."""
        return (self.within + members * self.between) / rollouts


def moments(world: EnumerableWorld, update: PolicyUpdate, members: int, counted: Tensor | None = None) -> Moments:
    """Every group of `members` responses to every prompt, through the trainer's own estimate and weights.

    `counted` has the numbers of the parameters that count; default all.

    The order of siblings does not matter, so groups are enumerated once and weighed by the number of their orders. `update`
    must have the configuration `forward="prepass"`.
    """
    responses = world.responses()
    means, seconds, pairs = [], 0.0, 0.0
    for prompt in range(world.prompts):
        with torch.no_grad():
            probability = world.log_probabilities(update.policy, prompt).exp().tolist()
        score_RP = None
        mean_P = torch.zeros(1, dtype=torch.float64)
        for chosen in itertools.combinations_with_replacement(range(len(responses)), members):
            weight = _orders(chosen) * math.prod(probability[i] for i in chosen)
            batch = world.batch(prompt, [responses[i] for i in chosen], step=10**6)
            if score_RP is None:
                score_RP = _scores_or_none(world, update, batch, prompt)
            member_MP = members * _members(update, batch, list(chosen), score_RP)
            member_MP = member_MP if counted is None else member_MP[:, counted]
            mean_P = mean_P + weight * member_MP.mean(0)
            gram_MM = member_MP @ member_MP.T
            seconds += weight / world.prompts * float(gram_MM.diagonal().mean())
            if members > 1:
                off = float(gram_MM.sum() - gram_MM.diagonal().sum()) / (members * (members - 1))
                pairs += weight / world.prompts * off
        means.append(mean_P)
    mean_XP = torch.stack(means)
    whole_P = mean_XP.mean(0)
    given = float((mean_XP**2).sum(1).mean())
    between = given - float(whole_P @ whole_P)
    return Moments(whole_P, seconds - given, between, pairs - given if members > 1 else 0.0, members)


def _orders(chosen: Sequence[int]) -> int:
    """In how many orders a group can come."""
    return math.factorial(len(chosen)) // math.prod(math.factorial(n) for n in Counter(chosen).values())


def _scores_or_none(world: EnumerableWorld, update: PolicyUpdate, batch: Batch, prompt: int) -> Tensor | None:
    """Scores, where the algorithm's gradient is a sum of them."""
    from vantage.audit.gradients import pays_responses

    prepared = update.prepare(_queried(update, batch))
    plain = pays_responses(update.estimator, prepared, update.objective) and not _by_token(update.estimator)
    return world.scores(update.policy, prompt) if plain else None


def _by_token(estimator: Estimator) -> bool:
    """Whether values may differ between tokens, although they do not in the group that was looked at."""
    from vantage.estimators.poise_token import PoiseTokenEstimator

    return isinstance(estimator, PoiseTokenEstimator)


def _members(update: PolicyUpdate, batch: Batch, chosen: list[int], score_RP: Tensor | None) -> Tensor:
    """What each rollout of a group adds to the group's gradient of ascent [M, P]."""
    prepared = update.prepare(_queried(update, batch))
    if score_RP is not None:
        weight_M = prepared.weight_B * prepared.estimate.advantage_BT[:, 0].double()
        return weight_M[:, None] * score_RP[chosen]
    found = []
    for row in range(batch.size):
        update.policy.model.zero_grad(set_to_none=True)
        update.add_gradient(prepared, [row])
        found.append(-torch.cat([_gradient(p).flatten() for p in update.policy.model.parameters()]))
    update.policy.model.zero_grad(set_to_none=True)
    return torch.stack(found)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _queried(update: PolicyUpdate, batch: Batch) -> Batch:
    """What `query` says, which in this world can only be about the batch."""
    collected: Any = SimpleNamespace(batch=batch)
    return replace(batch, queried=update.estimator.query(collected).reads)


def configuration(algo: Algorithm, members: int, world: EnumerableWorld, aggregation: str | None) -> TrainConfig:
    """A resolved configuration for a world; one of its responses is the longest."""
    given: dict[str, Any] = {"aggregation": aggregation} if aggregation else {}
    base = TrainConfig(
        algo=algo, rollouts_per_prompt=members, rollouts_per_step=12 * members, max_new_tokens=world.max_length,
        forward="prepass", **given,
    )  # fmt: skip
    return resolve(base, max_new_tokens=world.max_length, stop=(), reward_range=(0.0, 1.0))


def build(
    world: EnumerableWorld, algo: Algorithm, members: int, *, steps: int, rollouts: int, seed: int = 0,
    aggregation: str | None = None,
) -> PolicyUpdate:  # fmt: skip
    """An estimator that has learnt from `steps` sampled steps of the world, around its policy."""
    policy, config = world.policy(), configuration(algo, members, world, aggregation)
    setup = Setup(
        num_layers=1, hidden_size=policy.hidden_size, rollouts_per_prompt=members, reward_range=(0.0, 1.0),
        max_new_tokens=world.max_length, end_ids=() if world.end_token is None else (world.end_token,),
    )  # fmt: skip
    reference = world.policy() if algo.compares else None
    update = PolicyUpdate(policy, algo.build(setup), config, reference)
    if type(update.estimator).learn is not Estimator.learn:
        draw = torch.Generator().manual_seed(seed)
        for step in range(1, steps + 1):
            prompts = [i % world.prompts for i in range(max(world.prompts, rollouts // members))]
            batch = world.sample(policy, prompts, members, step, draw)
            prepared = update.prepare(_queried(update, batch))
            update.estimator.learn(prepared.batch, prepared.reads, prepared.estimate)
    return update


def exact(audit: Audit, world: EnumerableWorld | None = None) -> dict[str, Any]:
    """The audit's numbers for every algorithm, without intervals; keys as `vantage.audit.sampled` gives them."""
    world = world or odd_world()
    aggregation = audit.settings.get("aggregation")
    seed, rollouts = int(audit.settings.get("seed", 0)), audit.rollouts_per_step
    made: dict[str, Any] = {"steps": audit.fill_steps, "rollouts": rollouts, "seed": seed}
    reference = moments(world, build(world, Rloo(), 2, **made), 2)
    found: dict[str, Any] = {}
    for name, algo in audit.algorithms.items():
        members = audit.members(name)
        ours = moments(world, build(world, algo, members, aggregation=aggregation, **made), members)
        enumerated = {members: ours}
        for m in ENUMERATED:
            if m >= algo.rollouts_min and m not in enumerated:
                enumerated[m] = moments(world, build(world, algo, m, aggregation=aggregation, **made), m)
        config = configuration(algo, members, world, aggregation)
        found[name] = {
            "algorithm": algo.name, "members": members, "aggregation": config.aggregation,
            **compared(ours, reference, rollouts, enumerated),
        }  # fmt: skip
    return {"algorithms": found, "reference": {"members": 2, "norm": float(reference.mean_P.norm())}}


def compared(ours: Moments, reference: Moments, rollouts: int, enumerated: Mapping[int, Moments]) -> dict[str, Any]:
    """Bias, scale and variance of an algorithm against the exact gradient; `enumerated` has it at other group sizes."""
    a, r = ours.mean_P, reference.mean_P
    scale = _scale(a, r)
    share = float((a - scale * r).norm() / (abs(scale) * r.norm())) if scale else math.inf
    share, square = (0.0 if share < LEAST else share), scale**2
    step, base = ours.step(rollouts) / square, reference.step(rollouts)
    measured = {
        m: found.step(rollouts) / _scale(found.mean_P, r) ** 2 / step
        for m, found in enumerated.items()
        if _scale(found.mean_P, r)
    }
    predicted = [
        {
            "members": m, **_point(ours.predicted(m, rollouts) / square / step),
            "enumerated": measured.get(m),
        }
        for m in ALLOCATIONS
    ]  # fmt: skip
    return {
        "bias": {
            "share": _point(share), "scale": _point(scale), "found": share > 0, "resolved": True,
            "square": _point(share**2),
        },
        "signal": _point(float(r @ r)),
        "noise": {
            "step": _point(step), "to_signal": _point(step / float(r @ r)), "at_equal_rollouts": _point(step / base),
            "at_equal_tokens": _point(step / base), "within": _point(ours.within / square),
            "between": _point(ours.between / square), "siblings": _point(ours.siblings / square), "predicted": predicted,
        },
        "layers": [],
        "tokens": None,
    }  # fmt: skip


def _scale(a: Tensor, r: Tensor) -> float:
    """The factor c for which c·r is nearest to a."""
    found = float(a @ r / (r @ r))
    return found if abs(found) > LEAST else 0.0


def _point(value: float) -> dict[str, float]:
    return {"mean": value, "low": value, "high": value}
