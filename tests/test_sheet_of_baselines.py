"""Numerical cases of GenAC's baselines: group baselines, overlong shaping, aggregations (T7), policy losses (T8)."""

from __future__ import annotations

import pytest
import torch

from vantage.advantages import grpo_advantages, rloo_advantages
from vantage.objectives import Objective, clipped_surrogate, rollout_weights, weighted_sum
from vantage.shaping import overlong_penalty

WON = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def expected(won, lost):
    return pytest.approx([won if r else lost for r in WON], abs=1e-8)


def test_t7_group_baselines():
    reward, group, valid = f64(WON), torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.bool)
    assert grpo_advantages(reward, group, valid, eps=0.0).tolist() == expected(1.2076147288, -0.7245688373)
    assert grpo_advantages(reward, group, valid, eps=1e-6).tolist() == expected(1.2076124, -0.72456744)
    assert grpo_advantages(reward, group, valid, eps=0.0, scale=False).tolist() == expected(0.625, -0.375)
    assert rloo_advantages(reward, group, valid).tolist() == expected(0.7142857143, -0.4285714286)


def test_t7_overlong_responses_are_punished_along_a_line():
    length = torch.tensor([16384, 18432, 20480, 20481])
    assert (-overlong_penalty(length, 20480, 4096)).tolist() == [0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize(("aggregation", "mean"), [("token-mean", 3.0), ("seq-mean-token-mean", 2.5)])
def test_t7_a_mean_over_tokens_and_a_mean_of_means(aggregation, mean):
    loss_BT, mask_BT = f64([[1, 1, 0, 0], [4, 4, 4, 4]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert float(weighted_sum(loss_BT, mask_BT, rollout_weights(aggregation, mask_BT.sum(1), 1))) == pytest.approx(mean)


RATIO, ADVANTAGE = [1.3, 1.3, 0.7, 0.7, 1.25, 4.0], [1.0, -1.0, 1.0, -1.0, 0.5, -1.0]


@pytest.mark.parametrize(
    ("high", "dual", "losses"),
    [
        (0.2, 0.0, [-1.2, 1.3, -0.7, 0.8, -0.6, 4.0]),
        (0.28, 0.0, [-1.28, 1.3, -0.7, 0.8, -0.625, 4.0]),
        (0.2, 3.0, [-1.2, 1.3, -0.7, 0.8, -0.6, 3.0]),
    ],
)
def test_t8_policy_losses(high, dual, losses):
    objective = Objective(clip_low=0.2, clip_high=high, dual_clip=dual)
    found = clipped_surrogate(f64([RATIO]).log(), torch.zeros(1, 6, dtype=torch.float64), f64([ADVANTAGE]), objective)
    assert found.loss_MT[0].tolist() == pytest.approx(losses, abs=1e-12)
