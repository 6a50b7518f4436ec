"""Truncated importance weights: small numbers by hand, and what they do to the gradient of every algorithm."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.helpers import random_batch, small_policy
from tests.test_update import estimator_of, gradient, resolved
from vantage.batch import pad
from vantage.estimators.dapo import Dapo
from vantage.estimators.dr_grpo import DrGrpo
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.estimators.reinforce import Reinforce
from vantage.estimators.rloo import Rloo
from vantage.mismatch import compare

ALGORITHMS = [Grpo(), DrGrpo(), Dapo(), Rloo(), Reinforce(), Poise()]


def numbers():
    """Ratios 2, 1/2, 1 and 1/4, 3; the last position of the second response is padding."""
    ratio = torch.tensor([[2.0, 0.5, 1.0], [0.25, 3.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    behaviour = torch.full((2, 3), -2.0, dtype=torch.float64)
    return behaviour + ratio.log(), behaviour, mask


def test_token_weights_are_capped_ratios():
    policy, behaviour, mask = numbers()
    found = compare(policy, behaviour, mask, "token", 2.5)
    assert torch.allclose(found.weight_MT, torch.tensor([[2.0, 0.5, 1.0], [0.25, 2.5, 1.0]], dtype=torch.float64))
    assert found.capped_MT.tolist() == [[False, False, False], [False, True, False]]
    assert torch.allclose(found.of_rollouts(mask), torch.tensor([3.5 / 3, 2.75 / 2], dtype=torch.float64))


def test_sequence_weights_are_capped_products():
    policy, behaviour, mask = numbers()
    found = compare(policy, behaviour, mask, "sequence", 0.9)
    assert torch.allclose(found.weight_MT, torch.tensor([[0.9, 0.9, 0.9], [0.75, 0.75, 0.9]], dtype=torch.float64))
    assert torch.allclose(found.of_rollouts(mask), torch.tensor([0.9, 0.75], dtype=torch.float64))


def test_the_divergence_is_the_mean_of_ratio_minus_one_minus_log_ratio():
    policy, behaviour, mask = numbers()
    wanted = [2 - 1 - math.log(2), 0.5 - 1 + math.log(2), 0, 0.25 - 1 + math.log(4), 3 - 1 - math.log(3), 0]
    for correction in ("none", "token", "sequence"):
        found = compare(policy, behaviour, mask, correction, 2.0)
        assert torch.allclose(found.kl_MT.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_its_expectation_is_the_divergence_from_engine_to_policy():
    mu, pi = (torch.randn(6, dtype=torch.float64).log_softmax(0) for _ in range(2))
    mask = torch.ones(1, 6, dtype=torch.bool)
    found = (mu.exp() * compare(pi[None], mu[None], mask, "none", 2.0).kl_MT[0]).sum()
    assert float(found) == pytest.approx(float((mu.exp() * (mu - pi)).sum()))


def test_weights_make_the_engine_s_expectation_the_policy_s():
    mu, pi = (torch.randn(6, dtype=torch.float64).log_softmax(0) for _ in range(2))
    worth, mask = torch.arange(6.0, dtype=torch.float64), torch.ones(1, 6, dtype=torch.bool)
    weight = compare(pi[None], mu[None], mask, "token", 1e9).weight_MT[0]
    assert float((mu.exp() * weight * worth).sum()) == pytest.approx(float((pi.exp() * worth).sum()))


def test_no_correction_weighs_nothing_and_an_empty_response_is_no_trouble():
    policy, behaviour, _ = numbers()
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for correction in ("none", "token", "sequence"):
        found = compare(policy, behaviour, nothing, correction, 2.0)
        assert found.weight_MT.eq(1).all()
        assert found.of_rollouts(nothing).eq(1).all()
        assert found.kl_MT.eq(0).all()


def test_one_infinite_difference_does_not_spoil_a_batch():
    policy, behaviour, mask = numbers()
    behaviour[0, 0] = -1e9
    found = compare(policy, behaviour, mask, "sequence", 2.0)
    assert found.weight_MT.isfinite().all()
    assert found.kl_MT.isfinite().all()


def with_behaviour(batch, shift: float):
    """The batch as an engine sampled it whose log-probs lie below the policy's by `shift`."""
    policy = small_policy()
    with torch.no_grad():
        forward = policy.forward(batch)
    rows = [forward.logp_MT[i, : len(ids)] - shift for i, ids in enumerate(batch.response_ids)]
    return dataclasses.replace(batch, behaviour_logp_BT=pad(rows, batch.response_mask_BT.shape[1]))


@pytest.mark.parametrize("algo", ALGORITHMS, ids=lambda algo: algo.name)
def test_the_gradient_of_every_algorithm_is_weighted(algo):
    base, batch = resolved(algo=algo, rollouts_per_prompt=2), random_batch(step=3)
    plain, before = gradient(base, estimator_of(algo), batch)
    assert plain.abs().max() > 0
    assert not [key for key in before.metrics if "mismatch" in key]
    shifted = with_behaviour(batch, math.log(1.5))
    for correction, cap, weight in (
        ("none", 2.0, 1.0),
        ("token", 2.0, 1.5),
        ("token", 1.2, 1.2),
        ("sequence", 1.3, 1.3),
    ):
        config = dataclasses.replace(base, mismatch_correction=correction, mismatch_cap=cap)
        found, result = gradient(config, estimator_of(algo), shifted)
        assert torch.allclose(found, weight * plain, atol=1e-6), (correction, cap)
        assert result.metrics["policy/mismatch_kl"] == pytest.approx(1.5 - 1 - math.log(1.5))
        if correction != "none":
            assert result.metrics["policy/mismatch_weight_mean"] == pytest.approx(weight)
            assert result.metrics["policy/mismatch_capped"] == float(weight == cap)


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_cutting_does_not_change_weighted_gradients(correction):
    base = resolved(algo=Grpo(), rollouts_per_prompt=2, mismatch_correction=correction, kl_coef=0.0)
    batch = random_batch(step=3)
    noise = torch.randn(batch.response_mask_BT.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    shifted = with_behaviour(batch, 0.0)
    shifted = dataclasses.replace(shifted, behaviour_logp_BT=shifted.behaviour_logp_BT + noise)
    whole, expected = gradient(base, estimator_of(Grpo()), shifted)
    for budget in (1, 60):
        config = dataclasses.replace(base, tokens_per_microbatch=budget, forward="prepass")
        found, result = gradient(config, estimator_of(Grpo()), shifted)
        assert torch.allclose(found, whole, atol=1e-6)
        for key in ("policy/mismatch_kl", "policy/mismatch_weight_mean", "policy/mismatch_capped"):
            assert result.metrics[key] == pytest.approx(expected.metrics[key])
