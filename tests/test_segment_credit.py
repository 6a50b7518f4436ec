"""Values of segment starts to advantages of tokens: the sheet's cases T3, T5, T8, T11 with the figures it gives."""

from __future__ import annotations

import math

import pytest
import torch

from vantage.segment_credit import (
    fill_backward,
    gae,
    one_step_advantages,
    over_tokens,
    segment_numbers,
    states_to_value,
    whiten_tokens,
    with_final_action,
)
from vantage.segments import Segments

NAN = math.nan
V = [0.4, 0.6, 0.3, 0.8]
CUT = Segments((0, 3, 6, 9), 10)


@pytest.mark.parametrize(
    ("lam", "won", "lost"),
    [
        (1.0, [0.6, 0.4, 0.7, 0.2], [-0.4, -0.6, -0.3, -0.8]),
        (0.95, [0.537725, 0.3555, 0.69, 0.2], [-0.31965, -0.547, -0.26, -0.8]),
        (0.5, [0.2, 0.0, 0.6, 0.2], [0.075, -0.25, 0.1, -0.8]),
        (0.0, [0.2, -0.3, 0.5, 0.2], [0.2, -0.3, 0.5, -0.8]),
    ],
)
def test_gae_over_segments(lam, won, lost):
    assert gae(V, 1.0, lam) == pytest.approx(won, abs=1e-12)
    assert gae(V, 0.0, lam) == pytest.approx(lost, abs=1e-12)


def test_gae_at_every_token_of_a_critic():
    assert gae([0.5, 0.4, 0.7, 0.6], 1.0, 1.0) == pytest.approx([0.5, 0.6, 0.3, 0.4])
    assert gae([0.5, 0.4, 0.7, 0.6], 1.0, 0.95) == pytest.approx([0.4377, 0.566, 0.28, 0.4])


def test_gae_discounts():
    # δ₁ = 1 − 0.5; δ₀ = 0.9·0.5 − 0.2; A₀ = δ₀ + 0.9·0.5·δ₁
    assert gae([0.2, 0.5], 1.0, lam=0.5, gamma=0.9) == pytest.approx([0.475, 0.5])
    assert gae([], 1.0) == []


def test_segment_gae_is_token_gae_with_lambda_one_inside_of_segments():
    number = CUT.numbers()
    advantage, behind, expected = 0.0, 0.0, [0.0] * 10
    for t in range(9, -1, -1):
        lam = 1.0 if t < 9 and number[t + 1] == number[t] else 0.95
        advantage = (t == 9) + behind - V[number[t]] + lam * advantage
        expected[t], behind = advantage, V[number[t]]
    found_BT = over_tokens([gae(V, 1.0, 0.95)], segment_numbers([CUT]))
    assert found_BT[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert found_BT[0].tolist() == pytest.approx([0.537725] * 3 + [0.3555] * 3 + [0.69] * 3 + [0.2], abs=1e-12)


def test_lambda_at_every_token_would_lose_terminal_credit():
    assert pytest.approx(0.46329123) == 0.95**15
    weights = gae([0.0] * 16, 1.0, 0.95)
    assert weights[0] == pytest.approx(0.95**15)
    wrong = gae([V[k] for k in CUT.numbers()], 1.0, 0.95)
    assert wrong[0] == pytest.approx(0.4061258163)


def test_tokens_whitened_over_the_batch():
    number_BT = segment_numbers([CUT, Segments((), 0)])
    found_BT = whiten_tokens(over_tokens([gae(V, 1.0, 0.95), []], number_BT), number_BT >= 0)
    expected = [0.2491987] * 3 + [-0.81284265] * 3 + [1.13668586] * 3 + [-1.71912571]
    assert found_BT[0].tolist() == pytest.approx(expected, abs=1e-7)
    assert found_BT[1].tolist() == [0.0] * 10


def test_whitening_nothing_or_equal_advantages_gives_zeros():
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    assert whiten_tokens(torch.full((1, 3), 0.25), mask_BT).tolist() == [[0.0] * 3]
    assert whiten_tokens(torch.full((1, 3), 0.25), ~mask_BT).tolist() == [[0.0] * 3]


def test_a_final_action_state_is_the_baseline_of_the_last_token_alone():
    number_BT = segment_numbers([CUT])
    advantage_BT = over_tokens([gae(V, 1.0)], number_BT)
    found_BT = with_final_action(advantage_BT, [CUT], [1.0], [0.9])
    assert found_BT[0].tolist() == pytest.approx([0.6] * 3 + [0.4] * 3 + [0.7] * 3 + [0.1])
    assert with_final_action(advantage_BT, [CUT], [1.0], [NAN]).equal(advantage_BT)


def test_vineppo_advantages_add_up_to_reward_minus_first_value():
    values = [4 / 9, 6 / 9, 3 / 9, 1.0]
    assert one_step_advantages(values, 1.0) == pytest.approx([2 / 9, -3 / 9, 6 / 9, 0.0])
    assert sum(one_step_advantages(values, 1.0)) == pytest.approx(5 / 9)


@pytest.mark.parametrize(("reward", "third"), [(1.0, 2 / 3), (0.0, -1 / 3)])
def test_vineppos_step_at_the_cap_answers_for_the_rest(reward, third):
    capped = [4 / 9, 6 / 9, 3 / 9, NAN, NAN, NAN]
    assert one_step_advantages(capped, reward) == pytest.approx([2 / 9, -1 / 3, third, 0.0, 0.0, 0.0])


def test_the_cap_counts_value_indices_from_the_prompt():
    assert [states_to_value(6, cap) for cap in (0, 2, 5, 20, None)] == [1, 3, 6, 6, 6]


def test_a_missing_value_makes_its_step_a_part_of_the_one_before():
    assert fill_backward([0.4, NAN, 0.7], 1.0) == [0.4, 0.7, 0.7]
    assert one_step_advantages([0.4, NAN, 0.7], 1.0) == pytest.approx([0.3, 0.0, 0.3])
    assert one_step_advantages([NAN, NAN], 1.0) == [0.0, 0.0]


def test_lambda_zero_is_the_vineppo_form():
    assert gae(V, 1.0, 0.0) == one_step_advantages(V, 1.0)


def test_numbers_of_segments_reach_their_tokens_and_no_other():
    number_BT = segment_numbers([Segments((0, 2), 3), Segments((0,), 1), Segments((), 0)], width=4)
    assert number_BT.tolist() == [[0, 0, 1, -1], [0, -1, -1, -1], [-1, -1, -1, -1]]
    value_BT = over_tokens([[0.5, 0.25], [1.0], []], number_BT, outside=NAN)
    assert value_BT.nan_to_num(nan=9.0).tolist() == [[0.5, 0.5, 0.25, 9.0], [1.0, 9.0, 9.0, 9.0], [9.0] * 4]
    assert over_tokens([[0.5, 0.25], [1.0], []], number_BT)[0].tolist() == [0.5, 0.5, 0.25, 0.0]


def test_a_row_with_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="segments"):
        over_tokens([[0.5]], segment_numbers([CUT]))


def test_a_batch_without_tokens_has_no_advantages():
    assert segment_numbers([Segments((), 0)]).shape == (1, 0)
    assert over_tokens([[]], segment_numbers([Segments((), 0)])).shape == (1, 0)
