"""`--poise.shrink`: the best mix of probe and siblings, with weights from the past; exact numbers, simulation, enumeration."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.config import TrainConfig, resolve
from vantage.enumerable import EnumerableWorld
from vantage.estimators.base import Setup, State
from vantage.estimators.poise import Poise, PoiseEstimator
from vantage.estimators.poise_domain import Domain, Errors, Rows, mixing_weight
from vantage.probes.linear import Probe, Ridge, Scaler
from vantage.update import PolicyUpdate

HIDDEN = 1
WIDTH = 2 * HIDDEN + 3


def showing(step: int = 0) -> Probe:
    """A probe that predicts the first feature."""
    beta = torch.zeros(WIDTH, dtype=torch.float64)
    beta[0] = 1
    scaler = Scaler(torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64))
    return Probe(step, Ridge(beta, 0.0, 1.0, 1.0), {}, scaler, None, {"all": (0, WIDTH)}, 0.0, 1.0)


def shown(values: Tensor) -> dict[str, Tensor]:
    features = torch.zeros((len(values), WIDTH), dtype=torch.float64)
    features[:, 0] = values
    return {"features": features}


def made(step: int, outcome: Tensor, group: int) -> Batch:
    rows = len(outcome)
    return Batch(
        step=step, prompt_ids=[[5]] * rows, response_ids=[[6]] * rows,
        group_B=torch.arange(rows // group).repeat_interleave(group), outcome_B=outcome.double(), reward_B=outcome.double(),
        scorable_B=torch.ones(rows, dtype=torch.bool), domains=["math"] * rows,
    )  # fmt: skip


def estimator_with(history: list[Errors], group: int, **options) -> PoiseEstimator:
    estimator = PoiseEstimator(Poise(shrink=True, **options), Setup(2, HIDDEN, group, (0.0, 1.0)))
    domain = Domain(estimator.options, estimator.setup)
    domain.probe, domain.history = showing(), history
    estimator.domains["math"] = domain
    return estimator


# --- the weight -----------------------------------------------------------------------------------------------------


def test_the_weight_minimises_the_past_squared_error() -> None:
    # Errors of two rollouts: probe 0.3, −0.1; siblings 0.5, 0.5. Differences 0.2, 0.6: w = (0.5·0.2 + 0.5·0.6)/0.4 = 1.
    assert mixing_weight([Errors(2, 0.10, 0.50, 0.0, 0.10)]) == pytest.approx(1.0)
    # Probe 0.5, −0.5; siblings 0.5, 0.25: w = (0.5·0 + 0.25·0.75)/(0 + 0.5625) = 1/3.
    assert mixing_weight([Errors(2, 0.5, 0.3125, 0.0, 0.125)]) == pytest.approx(1 / 3)
    # Steps are added up.
    parts = [Errors(1, 0.25, 0.25, 0.0, 0.25), Errors(1, 0.25, 0.0625, 0.0, -0.125)]
    assert mixing_weight(parts) == pytest.approx(1 / 3)


def test_the_weight_stays_between_both_baselines() -> None:
    assert mixing_weight([]) == 0
    assert mixing_weight([Errors(1, 1.0, 4.0, 0.0, 1.9)]) == 1.0  # (4 − 1.9)/(5 − 3.8) = 1.75
    assert mixing_weight([Errors(1, 4.0, 1.0, 0.0, 1.9)]) == 0.0
    assert mixing_weight([Errors(1, 1.0, 1.0, 0.0, 1.0)]) == 0.0  # the same errors: nothing to mix


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("mse", [0.002, 0.03, 0.4])
def test_the_weight_is_that_of_the_sheet_and_its_error_below_both(group: int, mse: float) -> None:
    """σ²/(G−1) against M for unrelated errors: the mix has their harmonic sum."""
    within, noise = 0.16, 0.16 / (group - 1)
    weight = mixing_weight([Errors(1, within + mse, within + noise, within, within)])
    assert weight == pytest.approx(noise / (noise + mse))
    mixed = weight**2 * mse + (1 - weight) ** 2 * noise
    assert mixed == pytest.approx(noise * mse / (noise + mse))
    assert mixed < min(noise, mse)


def test_a_mixed_baseline_by_hand() -> None:
    # w = 1/3; probe predicts 0.9, 0.3 and siblings say 0, 1 for the pair with outcomes 1, 0.
    estimator = estimator_with([Errors(2, 0.5, 0.3125, 0.0, 0.125)], 2)
    batch = made(1, torch.tensor([1.0, 0.0]), 2)
    estimate = estimator.advantages(batch, shown(torch.tensor([0.9, 0.3])))
    assert estimate.value_BT[:, 0].tolist() == pytest.approx([0.3 / 3, 0.9 / 3 + 2 / 3])
    assert estimate.advantage_BT[:, 0].tolist() == pytest.approx([0.9, -(0.3 + 2 / 3)])


def test_learning_notes_the_product_of_errors_before_the_fit() -> None:
    estimator = estimator_with([], 2)
    batch, reads = made(1, torch.tensor([1.0, 0.0, 1.0, 1.0]), 2), shown(torch.tensor([0.9, 0.3, 0.5, 0.6]))
    metrics = estimator.learn(batch, reads, estimator.advantages(batch, reads))
    # Probe errors 0.7, −0.9, 0.4, 0.5; sibling errors 1, −1, 0, 0.
    (found,) = estimator.domains["math"].history
    assert (found.probe, found.leave_one_out, found.product) == pytest.approx((1.71, 2.0, 1.6))
    assert metrics["poise/weight"] == 0  # what was used, not what is learnt
    assert estimator.domains["math"].weight(2) == pytest.approx((2 - 1.6) / (2 + 1.71 - 3.2))


def test_without_shrink_nothing_changes_and_a_fixed_bootstrap_delays_the_mix() -> None:
    history = [Errors(2, 0.5, 0.3125, 0.0, 0.125)]
    domain = Domain(Poise(), Setup(2, HIDDEN, 2, (0.0, 1.0)))
    domain.probe, domain.history = showing(), history
    assert domain.weight(1) == 0.0  # the probe has the larger error
    domain.history = [Errors(2, 0.2, 0.3125, 0.0, 0.125)]
    assert domain.weight(1) == 1.0
    late = estimator_with(history, 2, bootstrap=3).domains["math"]
    assert late.weight(1) == 0.0
    late.observed = 3
    assert late.weight(1) == pytest.approx(1 / 3)


# --- simulation -----------------------------------------------------------------------------------------------------


def simulated(group: int, noise: float, steps: int = 200, rollouts: int = 512) -> list[float]:
    """Mean squared error about V of the probe's baseline, the siblings', the mix, and the best mix in hindsight.

    V is uniform on {0.1, 0.3, ..., 0.9}; the probe is off by ±noise a prompt and ±0.2 a rollout, at random.
    """
    draw = torch.Generator().manual_seed(group)
    estimator, sums = estimator_with([], group), torch.zeros(4, dtype=torch.float64)
    domain = estimator.domains["math"]
    for step in range(1, steps + 1):
        prompts = rollouts // group
        value = (0.1 + 0.2 * torch.randint(5, (prompts,), generator=draw)).double()
        sign = lambda n: 2.0 * torch.randint(2, (n,), generator=draw) - 1  # noqa: E731
        seen = (value + noise * sign(prompts)).repeat_interleave(group) + 0.2 * sign(rollouts)
        value = value.repeat_interleave(group)
        batch = made(step, torch.bernoulli(value, generator=draw), group)
        domain.probe = dataclasses.replace(showing(), step=step - 1, low=-9.0, high=9.0)  # no clip: errors are exact
        estimate = estimator.advantages(batch, shown(seen))
        if step > 1:
            others = [(x.reshape(-1, group).sum(1, keepdim=True) - x.reshape(-1, group)).flatten() / (group - 1)
                      for x in (seen, batch.outcome_B)]  # fmt: skip
            error = torch.stack([*others, estimate.value_BT[:, 0]]) - value
            sums += torch.cat([(error**2).sum(1), (error[0] * error[1]).sum()[None]])
        domain._score(shown(seen)["features"], *targets(batch), torch.ones(rollouts, dtype=torch.bool), step)
    probe, siblings, mix, product = (sums / (rollouts * (steps - 1))).tolist()
    best = (probe * siblings - product**2) / (probe + siblings - 2 * product)
    return [probe, siblings, mix, best]


def targets(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    from vantage.advantages import leave_one_out

    return batch.outcome_B, leave_one_out(batch.outcome_B, batch.group_B, batch.scorable_B), batch.group_B


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.6])
def test_the_online_mix_is_never_worse_than_either_and_reaches_the_best_mix(group: int, noise: float) -> None:
    probe, siblings, mix, best = simulated(group, noise)
    within, mse = 0.17, noise**2 + 0.04 / (group - 1)  # E[V(1 − V)] over the five values; the probe's error
    assert siblings == pytest.approx(within / (group - 1), rel=0.05)
    assert probe == pytest.approx(mse, rel=0.05)
    assert mix < min(probe, siblings)
    assert best <= mix < 1.05 * best  # four steps of 512 rollouts do not settle the weight entirely


# --- bias -----------------------------------------------------------------------------------------------------------


def pair_world() -> EnumerableWorld:
    """The sheet's C6: two tokens each, rewarded pairs."""
    theta = torch.tensor([[0.2, -0.1, 0.4], [0.3, 0, -0.2], [-0.5, 0.1, 0.2], [0, 0.6, -0.3]], dtype=torch.float64)
    good = {(0, 0), (0, 2), (1, 1), (2, 2)}
    return EnumerableWorld(theta, torch.zeros(1, 3, dtype=torch.float64), lambda _, y: float(y in good), max_length=2)


@pytest.mark.parametrize("group", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_mixed_baseline_is_unbiased(group: int) -> None:
    world = pair_world()
    policy = world.policy()
    setup = Setup(1, policy.hidden_size, group, (0.0, 1.0))
    estimator = PoiseEstimator(Poise(layer=0, shrink=True, alpha=0.1, reasoning_window=2), setup)
    past = world.batch(0, world.responses(), step=0)
    with torch.no_grad():
        features = estimator.read(policy.forward(past, layers=(0,)))["features"]
    domain = Domain(estimator.options, setup)
    domain.buffer.append(Rows(0, features, past.outcome_B.flip(0).float(), past.group_B))
    domain.probe, domain.history = domain._fit(0.1), [Errors(2, 0.5, 0.3125, 0.0, 0.125)]
    estimator.domains["default"] = domain
    assert domain.weight(1) == pytest.approx(1 / 3)
    config = resolve(
        TrainConfig(algo=estimator.options, aggregation="seq-mean-token-sum", max_new_tokens=3, max_grad_norm=0),
        max_new_tokens=3, stop=(), reward_range=(0.0, 1.0),
    )  # fmt: skip
    error = world.expected_gradient(PolicyUpdate(policy, estimator, config), group) - world.exact_gradient(policy)
    assert error.abs().max() < 1e-12


def test_the_errors_of_the_mix_survive_a_restart() -> None:
    estimator = estimator_with([Errors(2, 0.5, 0.3125, 0.0, 0.125)], 2)
    batch, reads = made(1, torch.tensor([1.0, 0.0, 1.0, 1.0]), 2), shown(torch.tensor([0.9, 0.3, 0.5, 0.6]))
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    state = estimator.state_dict()
    restored = PoiseEstimator(estimator.options, estimator.setup)
    restored.load_state_dict(State(state.tensors, json.loads(json.dumps(state.values))))
    assert restored.domains["math"].history == estimator.domains["math"].history
    assert restored.domains["math"].weight(2) == estimator.domains["math"].weight(2) > 0
