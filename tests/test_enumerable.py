"""Unbiasedness by enumeration, through the trainer's own gradient code (papers' cases T6 and C6)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vantage.config import TrainConfig, resolve
from vantage.enumerable import EnumerableWorld, odd_world
from vantage.estimators.base import Estimate, Estimator, Needs, Setup
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.estimators.poise_domain import Domain, Rows
from vantage.estimators.rloo import Rloo
from vantage.update import PolicyUpdate

A, B, END = 0, 1, 2


def pair_world() -> EnumerableWorld:
    """C6: two tokens each, rewarded pairs."""
    theta = torch.tensor([[0.2, -0.1, 0.4], [0.3, 0, -0.2], [-0.5, 0.1, 0.2], [0, 0.6, -0.3]], dtype=torch.float64)
    good = {(0, 0), (0, 2), (1, 1), (2, 2)}
    return EnumerableWorld(theta, torch.zeros(1, 3, dtype=torch.float64), lambda _, y: float(y in good), max_length=2)


def config(algo=None, **changes) -> TrainConfig:
    base = TrainConfig(
        algo=algo or Rloo(), aggregation="seq-mean-token-sum", max_new_tokens=3, max_grad_norm=0, **changes
    )
    return resolve(base, max_new_tokens=3, stop=(), reward_range=(0.0, 1.0))


def update_with(world: EnumerableWorld, estimator: Estimator, **changes) -> PolicyUpdate:
    return PolicyUpdate(world.policy(), estimator, config(**changes))


def predict(y: tuple[int, ...]) -> float:
    """T6's frozen probe g on a response."""
    value = -0.4 * len(y) / 3 + 0.9 * y.count(A) / 3 + 0.25 * float(y[-1] == B) + 0.5
    return min(1.0, max(0.0, value))


class FrozenProbe(Estimator):
    """A fixed g of the response as baseline: of the sibling (`cross`) or of the rollout itself."""

    needs = Needs(reads_policy=True)

    def __init__(self, cross: bool) -> None:
        self.cross = cross

    def read(self, forward):
        return {"value": torch.tensor([[predict(tuple(y))] for y in forward.response_ids], dtype=torch.float64)}

    def advantages(self, batch, reads):
        value_B = reads["value"][:, 0]
        value_B = value_B.flip(0) if self.cross else value_B
        mask_BT = batch.response_mask_BT
        return Estimate((batch.reward_B - value_B)[:, None] * mask_BT, value_B[:, None] * mask_BT)


class Constant(Estimator):
    def advantages(self, batch, reads):
        mask_BT = batch.response_mask_BT
        return Estimate((batch.reward_B - 0.37)[:, None] * mask_BT, 0.37 * mask_BT.double())


def chain_part(gradient: torch.Tensor) -> list[float]:
    """In the sheet's order: θ[BOS], θ[a], θ[b]."""
    return gradient.T[:3].flatten().tolist()


def test_exact_gradient_and_values_are_those_of_the_sheet():
    world = odd_world()
    policy = world.policy()
    assert len(world.responses()) == 15
    assert world.values(policy).tolist() == pytest.approx([0.386963275211864, 0.40617675050583], abs=1e-12)
    expected = [0.093970850991, 0.024924945394, -0.118895796385, -0.029901110815, -0.03008933341, 0.059990444225,
                -0.002075292362, 0.013160815268, -0.011085522905]  # fmt: skip
    assert chain_part(world.exact_gradient(policy)) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("group", [2, 3])
def test_rloo_is_unbiased(group):
    world = pair_world()
    update = update_with(world, Rloo().build(None))
    error = world.expected_gradient(update, group) - world.exact_gradient(update.policy)
    assert error.abs().max() < 1e-12


@pytest.mark.parametrize("forward", ["fused", "prepass"])
@pytest.mark.parametrize("estimator", [Constant(), FrozenProbe(cross=True)], ids=["constant", "cross-rollout"])
def test_constant_and_cross_rollout_baselines_are_unbiased(estimator, forward):
    world = odd_world()
    update = update_with(world, estimator, forward=forward)
    error = world.expected_gradient(update, 2) - world.exact_gradient(update.policy)
    assert error.abs().max() < 1e-12


def test_self_rollout_probe_is_biased_by_62_percent():
    world = odd_world()
    update = update_with(world, FrozenProbe(cross=False))
    exact = world.exact_gradient(update.policy)
    bias = exact - world.expected_gradient(update, 1)
    expected = [0.065566871191, -0.017245049712, -0.048321821479, 0.040292481374, -0.000995455349, -0.039297026025,
                0.025361372281, -0.004522762236, -0.020838610045]  # fmt: skip
    assert chain_part(bias) == pytest.approx(expected, abs=1e-11)
    ratio = torch.tensor(chain_part(bias)).norm() / torch.tensor(chain_part(exact)).norm()
    assert float(ratio) == pytest.approx(0.618352139756, abs=1e-6)


def test_group_mean_that_includes_the_own_reward_halves_the_gradient():
    world = odd_world()
    update = update_with(world, Grpo(scale="none").build(None), algo=Grpo(scale="none"))
    error = world.expected_gradient(update, 2) - 0.5 * world.exact_gradient(update.policy)
    assert error.abs().max() < 1e-12


def trained_poise(world: EnumerableWorld, **options) -> Estimator:
    """The real estimator, its probe fitted on rollouts of an earlier step."""
    policy = world.policy()
    setup = Setup(num_layers=1, hidden_size=policy.hidden_size, rollouts_per_prompt=2, reward_range=(0.0, 1.0))
    estimator = Poise(layer=0, bootstrap=0, alpha=0.1, reasoning_window=2, **options).build(setup)
    domain = Domain(estimator.options, setup)
    for prompt in range(world.prompts):
        batch = world.batch(prompt, world.responses(), step=0)
        with torch.no_grad():
            features = estimator.read(policy.forward(batch, layers=(0,)))["features"]
        target = batch.outcome_B.flip(0)
        domain.buffer.append(Rows(0, features, target.float(), batch.group_B + prompt))
    domain.probe = domain._fit(0.1)
    estimator.domains["default"] = domain
    return estimator


@pytest.mark.parametrize("features", ["cross", "prompt"])
def test_poise_itself_is_unbiased(features):
    world = odd_world()
    estimator = trained_poise(world, features=features)
    update = update_with(world, estimator, algo=estimator.options)
    baselines = update.gradient(world.batch(0, [(A, B, A), (B, END)])).estimate.value_BT[:, 0]
    differ = abs(float(baselines[0] - baselines[1])) > 0.01
    assert differ == (features == "cross")  # the prompt alone says the same of both
    error = world.expected_gradient(update, 2) - world.exact_gradient(update.policy)
    assert error.abs().max() < 1e-12


def test_poise_with_its_own_features_is_biased():
    world = odd_world()
    estimator = trained_poise(world, features="own")
    update = update_with(world, estimator, algo=estimator.options)
    exact = world.exact_gradient(update.policy)
    assert (world.expected_gradient(update, 2) - exact).norm() > 0.1 * exact.norm()


def test_weighing_by_length_makes_an_independent_baseline_biased():
    """Sheet §3.7: with 1/|y| in the loss even the cross-rollout baseline leaves a length drift E[g]·∇E[1/|y|]."""
    world = odd_world()
    update = PolicyUpdate(
        world.policy(), FrozenProbe(cross=True), dataclasses.replace(config(), aggregation="seq-mean-token-mean")
    )
    none = PolicyUpdate(world.policy(), Zero(), dataclasses.replace(config(), aggregation="seq-mean-token-mean"))
    drift = world.expected_gradient(none, 1) - world.expected_gradient(update, 2)
    expected = [-0.045248666563, -0.023102107361, 0.068350773924, -0.004638569479, -0.004933557923, 0.009572127402,
                -0.002277387531, -0.00101853516, 0.003295922691]  # fmt: skip
    assert chain_part(drift) == pytest.approx(expected, abs=1e-11)


class Zero(Estimator):
    def advantages(self, batch, reads):
        mask_BT = batch.response_mask_BT
        return Estimate(batch.reward_B[:, None] * mask_BT, torch.zeros_like(mask_BT, dtype=torch.float64))
