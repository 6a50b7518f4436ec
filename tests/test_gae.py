"""λ-sums over tokens: hand-worked cases, a loop as yardstick, and masked positions that are passed over."""

from __future__ import annotations

import pytest
import torch

from vantage.gae import discounted_suffix_sums


def sums(values, mask, decay):
    found = discounted_suffix_sums(
        torch.tensor(values, dtype=torch.float64), torch.tensor(mask, dtype=torch.bool), decay
    )
    return found.tolist()


@pytest.mark.parametrize(("decay", "expected"), [(1, [7.0, 6.0, 0.0, 4.0]), (0.5, [3.0, 4.0, 0.0, 4.0])])
def test_a_masked_token_inside_is_passed_over(decay, expected):
    assert sums([[1.0, 2.0, 99.0, 4.0]], [[1, 1, 0, 1]], decay) == [expected]


def test_padding_on_the_right_adds_nothing():
    found = sums([[1.0, 2.0, 3.0], [4.0, 5.0, 77.0]], [[1, 1, 1], [1, 1, 0]], 0.5)
    assert found == [[2.75, 3.5, 3.0], [6.5, 5.0, 0.0]]


def looped(value_BT, mask_BT, decay_B):
    out, run = torch.zeros_like(value_BT), torch.zeros_like(value_BT[:, 0])
    for t in reversed(range(value_BT.shape[1])):
        run = torch.where(mask_BT[:, t], value_BT[:, t] + decay_B * run, run)
        out[:, t] = torch.where(mask_BT[:, t], run, torch.zeros_like(run))
    return out


@pytest.mark.parametrize("width", [1, 2, 3, 8, 37])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95, 1.0])
def test_equal_to_the_loop_at_any_length(width, decay):
    draw = torch.Generator().manual_seed(width)
    values = torch.randn(5, width, generator=draw, dtype=torch.float64)
    mask = torch.rand(5, width, generator=draw) < 0.7
    expected = looped(values, mask, torch.full((5,), decay, dtype=torch.float64))
    torch.testing.assert_close(discounted_suffix_sums(values, mask, decay), expected, atol=1e-12, rtol=0)


def test_every_rollout_may_have_a_decay_of_its_own():
    draw = torch.Generator().manual_seed(0)
    values, mask = torch.randn(3, 9, generator=draw, dtype=torch.float64), torch.ones(3, 9, dtype=torch.bool)
    decay = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64)
    torch.testing.assert_close(discounted_suffix_sums(values, mask, decay), looped(values, mask, decay))


def test_an_empty_batch_stays_empty():
    assert discounted_suffix_sums(torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool), 0.5).shape == (0, 0)
    assert discounted_suffix_sums(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 1.0).shape == (2, 0)
