"""λ-sums over tokens: hand-worked cases, a loop as yardstick, and masked positions that are passed over."""

from __future__ import annotations

import pytest
import torch

from vantage.gae import discounted_suffix_sums, gae, length_adaptive_lambda, next_values, paid_at_the_end


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


# --- generalised advantage estimation -------------------------------------------------------------------------------


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def advantages(values, reward, lam=1.0, gamma=1.0):
    value_BT = f64([values])
    mask_BT = torch.ones_like(value_BT, dtype=torch.bool)
    return gae(value_BT, paid_at_the_end(f64([reward]), mask_BT), mask_BT, gamma, lam)[0].tolist()


T3 = {
    1.0: ([0.6, 0.4, 0.7, 0.2], [-0.4, -0.6, -0.3, -0.8]),
    0.95: ([0.537725, 0.3555, 0.69, 0.2], [-0.31965, -0.547, -0.26, -0.8]),
    0.5: ([0.2, 0.0, 0.6, 0.2], [0.075, -0.25, 0.1, -0.8]),
    0.0: ([0.2, -0.3, 0.5, 0.2], [0.2, -0.3, 0.5, -0.8]),
}


@pytest.mark.parametrize("lam", T3)
def test_t3_the_four_states_of_the_sheet(lam):
    for reward, expected in zip((1.0, 0.0), T3[lam]):
        assert advantages([0.4, 0.6, 0.3, 0.8], reward, lam) == pytest.approx(expected, abs=1e-12)


def test_t3_lambda_at_every_token_loses_terminal_credit():
    tokens = [0.4] * 3 + [0.6] * 3 + [0.3] * 3 + [0.8]
    wrong = [
        0.4061258163,
        0.4275008593,
        0.4500009045,
        0.2631588469,
        0.2770093125,
        0.29158875,
        0.622725,
        0.6555,
        0.69,
        0.2,
    ]
    assert advantages(tokens, 1.0, 0.95) == pytest.approx(wrong, abs=1e-9)


def test_t5_lambda_0_is_the_one_step_difference_of_vineppo():
    found = advantages([4 / 9, 6 / 9, 3 / 9, 1.0], 1.0, 0.0)
    assert found == pytest.approx([0.2222222222, -0.3333333333, 0.6666666667, 0.0], abs=1e-9)
    assert sum(found) == pytest.approx(1 - 4 / 9)


@pytest.mark.parametrize(("lam", "expected"), [(1.0, [0.5, 0.6, 0.3, 0.4]), (0.95, [0.4377, 0.566, 0.28, 0.4])])
def test_t8_advantages_and_returns_of_the_token_critic(lam, expected):
    values = [0.5, 0.4, 0.7, 0.6]
    found = advantages(values, 1.0, lam)
    assert found == pytest.approx(expected, abs=1e-12)
    returns = {1.0: [1.0] * 4, 0.95: [0.9377, 0.966, 0.98, 1.0]}[lam]
    assert [a + v for a, v in zip(found, values)] == pytest.approx(returns, abs=1e-12)


def verl_loop(reward_BT, value_BT, mask_BT, gamma, lam):
    """As verl steps back through time: value and sum are carried over masked positions."""
    following, run, found = torch.zeros_like(value_BT[:, 0]), torch.zeros_like(value_BT[:, 0]), []
    for t in reversed(range(value_BT.shape[1])):
        delta = reward_BT[:, t] + gamma * following - value_BT[:, t]
        step = delta + gamma * lam * run
        inside = mask_BT[:, t].double()
        following = inside * value_BT[:, t] + (1 - inside) * following
        run = inside * step + (1 - inside) * run
        found.append(run)
    return torch.stack(found[::-1], 1) * mask_BT


def trl_loop(reward_BT, value_BT, gamma, lam):
    """As TRL's PPO steps back: values behind a response have been set to 0."""
    width, run, found = value_BT.shape[1], torch.zeros_like(value_BT[:, 0]), []
    for t in reversed(range(width)):
        following = value_BT[:, t + 1] if t < width - 1 else torch.zeros_like(run)
        run = reward_BT[:, t] + gamma * following - value_BT[:, t] + gamma * lam * run
        found.append(run)
    return torch.stack(found[::-1], 1)


SETTINGS = [(1.0, 1.0), (1.0, 0.95), (0.99, 1.0), (0.9, 0.7), (1.0, 0.0), (0.0, 0.5)]


@pytest.mark.parametrize(("gamma", "lam"), SETTINGS)
@pytest.mark.parametrize("width", [1, 2, 7, 40])
def test_equal_to_the_loop_of_verl_with_masked_positions_anywhere(width, gamma, lam):
    draw = torch.Generator().manual_seed(width)
    value, reward = (torch.randn(6, width, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(6, width, generator=draw) < 0.6
    mask[0], mask[1] = True, False
    expected = verl_loop(reward * mask, value, mask, gamma, lam)
    torch.testing.assert_close(gae(value, reward, mask, gamma, lam), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("gamma", "lam"), SETTINGS)
def test_equal_to_the_loop_of_trl_where_responses_are_padded(gamma, lam):
    draw = torch.Generator().manual_seed(1)
    length = torch.tensor([9, 1, 4, 12, 7])
    mask = torch.arange(12)[None] < length[:, None]
    value = torch.randn(5, 12, generator=draw, dtype=torch.float64) * mask
    reward = paid_at_the_end(torch.randn(5, generator=draw, dtype=torch.float64), mask)
    assert torch.equal(reward != 0, torch.arange(12)[None] == length[:, None] - 1)
    expected = trl_loop(reward, value, gamma, lam) * mask
    torch.testing.assert_close(gae(value, reward, mask, gamma, lam), expected, atol=1e-12, rtol=0)


def test_a_lambda_for_each_rollout_is_that_rollouts_own():
    draw = torch.Generator().manual_seed(2)
    value, reward = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(3, 8, generator=draw) < 0.8
    lam = f64([0.0, 0.8, 1.0])
    found = gae(value, reward, mask, 0.95, lam)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(found[one], gae(value[one], reward[one], mask[one], 0.95, float(lam[i])))


def test_at_lambda_1_no_later_value_can_enter():
    value, mask = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[True, True, False, True]])
    huge = value.clone()
    huge[0, 1:] = 1e200
    reward = paid_at_the_end(f64([1.0]), mask)
    assert gae(huge, reward, mask)[0, 0] == gae(value, reward, mask)[0, 0] == 1.0
    assert gae(huge, reward, mask, 1.0, 0.9)[0, 0] != 1.0


def test_the_reward_comes_with_the_last_unmasked_token():
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    assert paid_at_the_end(f64([3.0, 5.0]), mask).tolist() == [[0, 0, 3.0, 0], [0, 0, 0, 0]]
    assert next_values(f64([[1.0, 9.0, 2.0, 9.0], [9.0] * 4]), mask).tolist() == [[2.0, 0, 0, 0], [0, 0, 0, 0]]
    empty = torch.zeros((2, 0), dtype=torch.bool)
    assert gae(torch.zeros((2, 0)), paid_at_the_end(torch.ones(2), empty), empty, 0.9, 0.9).shape == (2, 0)


def test_length_adaptive_lambda_looks_ahead_by_a_share_of_the_length():
    found = length_adaptive_lambda(torch.tensor([1, 20, 40, 1000]), 0.05)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.98])
