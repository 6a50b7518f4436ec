"""Cutting does not matter: micro-batches of every size, fused or with a pre-pass, give the same loss and gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.helpers import random_batch, small_policy
from vantage.config import TrainConfig, resolve
from vantage.errors import UserError
from vantage.estimators.base import Estimator, Setup
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.estimators.rloo import Rloo
from vantage.update import PolicyUpdate

AGGREGATIONS = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


def resolved(**changes) -> TrainConfig:
    return resolve(TrainConfig(**changes), max_new_tokens=16, stop=(), reward_range=(0.0, 1.0))


def estimator_of(algo) -> Estimator:
    policy = small_policy()
    return algo.build(Setup(policy.num_layers, policy.hidden_size, 2, (0.0, 1.0), end_ids=(1,)))


def poise_with_a_past() -> Estimator:
    """POISE whose probe was fitted on two earlier steps and is trusted."""
    estimator = estimator_of(Poise(bootstrap=0, alpha=10.0))
    for step in (1, 2):
        batch = random_batch(seed=step + 10, step=step)
        with torch.no_grad():
            reads = estimator.read(small_policy().forward(batch, layers=estimator.needs.hidden_layers))
        estimator.learn(batch, reads, estimator.advantages(batch, reads))
    return estimator


def gradient(config: TrainConfig, estimator: Estimator, batch):
    update = PolicyUpdate(small_policy(), estimator, config)
    result = update.gradient(batch)
    grads = [p.grad.flatten() for p in update.policy.model.parameters() if p.grad is not None]
    return torch.cat(grads), result


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("make", [poise_with_a_past, lambda: estimator_of(Grpo())], ids=["poise", "grpo"])
def test_microbatch_size_and_prepass_change_nothing(make, aggregation):
    estimator, batch = make(), random_batch(step=3)
    base = resolved(algo=Poise(), aggregation=aggregation, entropy_coef=0.01)
    whole, expected = gradient(base, estimator, batch)
    assert whole.abs().max() > 1e-4
    for budget in (1, 30, 60, 120):
        for forward in ("auto", "prepass"):
            config = dataclasses.replace(base, tokens_per_microbatch=budget, forward=forward)
            found, result = gradient(config, estimator, batch)
            assert torch.allclose(found, whole, atol=1e-12), (budget, forward)
            assert result.metrics["loss/policy"] == pytest.approx(expected.metrics["loss/policy"], abs=1e-12)
            assert result.metrics["policy/entropy"] == pytest.approx(expected.metrics["policy/entropy"], abs=1e-12)
            assert torch.allclose(result.estimate.advantage_BT, expected.estimate.advantage_BT, atol=1e-9)
            for name, tensor in expected.reads.items():
                assert torch.allclose(result.reads[name], tensor, atol=1e-5)


def test_fused_and_prepass_take_the_expected_number_of_forwards(monkeypatch):
    batch, estimator = random_batch(step=3), poise_with_a_past()
    for forward, expected in (("fused", 1), ("prepass", 2)):
        update = PolicyUpdate(small_policy(), estimator, resolved(forward=forward))
        calls = []
        plain = update.policy.forward

        def counted(*args, plain=plain, calls=calls, **options):
            calls.append(1)
            return plain(*args, **options)

        monkeypatch.setattr(update.policy, "forward", counted)
        update.run(batch)
        assert len(calls) == expected


def test_rloo_never_asks_for_a_second_forward_and_reads_nothing():
    update = PolicyUpdate(small_policy(), Rloo().build(None), resolved(algo=Rloo()))
    result = update.run(random_batch())
    assert result.reads == {}


def test_minibatches_and_epochs_move_the_policy_and_use_old_logprobs():
    config = resolved(algo=Grpo(), epochs=3, minibatches=2, learning_rate=1e-2, clip_low=0.01, clip_high=0.01)
    update = PolicyUpdate(small_policy(), Grpo().build(None), config)
    result = update.run(random_batch(groups=6))
    assert update.updates_done == 6
    assert result.metrics["policy/ratio_max"] > 1.01
    assert result.metrics["policy/clip_fraction"] > 0


def test_one_update_has_ratio_one_and_clips_nothing():
    update = PolicyUpdate(small_policy(), Grpo().build(None), resolved(algo=Grpo()))
    result = update.run(random_batch())
    assert result.metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-12)
    assert result.metrics["policy/clip_fraction"] == 0


def test_forced_fusion_that_can_not_be_is_refused():
    with pytest.raises(UserError, match="--forward fused"):
        PolicyUpdate(small_policy(), estimator_of(Poise()), resolved(forward="fused", epochs=2))
    update = PolicyUpdate(small_policy(), estimator_of(Poise()), resolved(forward="fused", tokens_per_microbatch=3))
    with pytest.raises(UserError, match="--tokens-per-microbatch"):
        update.run(random_batch())


def test_a_gradient_that_is_not_finite_changes_no_weight(monkeypatch):
    update = PolicyUpdate(small_policy(), Rloo().build(None), resolved(algo=Rloo(), learning_rate=1.0))
    before = [p.detach().clone() for p in update.policy.model.parameters()]
    monkeypatch.setattr("vantage.update.clip_gradient", lambda *_: float("nan"))
    result = update.run(random_batch())
    assert result.metrics["policy/skipped_updates"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, update.policy.model.parameters()))


def test_while_the_policy_rests_reads_and_estimates_still_come(monkeypatch):
    estimator = poise_with_a_past()
    estimator.update_policy = False
    update = PolicyUpdate(small_policy(), estimator, resolved(learning_rate=1.0))
    before = [p.detach().clone() for p in update.policy.model.parameters()]
    result = update.run(random_batch(step=3))
    assert result.reads["features"].shape == (12, 2 * 32 + 3)
    assert result.estimate.advantage_BT.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, update.policy.model.parameters()))


def test_unscorable_rollouts_have_no_advantage_and_are_no_baseline():
    batch = random_batch(step=3)
    outcome = batch.outcome_B.clone()
    outcome[0] = float("nan")
    broken = dataclasses.replace(batch, outcome_B=outcome, reward_B=outcome, scorable_B=outcome.isfinite())
    for algo, estimator in ((Rloo(), Rloo().build(None)), (Grpo(), Grpo().build(None)), (Poise(), poise_with_a_past())):
        update = PolicyUpdate(small_policy(), estimator, resolved(algo=algo))
        result = update.run(broken)
        assert result.estimate.advantage_BT[0].abs().sum() == 0
        assert result.estimate.advantage_BT[1].abs().sum() == 0  # its only sibling can be no baseline
        assert result.estimate.advantage_BT.isfinite().all()
        assert torch.isfinite(torch.cat([p.flatten() for p in update.policy.model.parameters()])).all()
    estimator = poise_with_a_past()
    rows = len(estimator.domains["default"].buffer)
    reads = PolicyUpdate(small_policy(), estimator, resolved()).run(broken).reads
    estimator.learn(broken, reads, None)
    assert len(estimator.domains["default"].buffer) == rows + 10
