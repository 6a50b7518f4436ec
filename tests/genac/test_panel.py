"""Metrics of predictions, the hold-out panel, and the gates between stages."""

from __future__ import annotations

import math

import pytest

from vantage.genac.panel import Candidate, Panel, choose_panel, judge
from vantage.genac.prompt import StateView
from vantage.genac.stages import Gates


def test_metrics_of_four_states_by_hand():
    found = judge([0.5, 0.9, None, 0.1], [0.0, 1.0, 1.0, 0.0])
    assert found.parse_rate == 0.75
    assert found.brier == pytest.approx((0.25 + 0.01 + 0.01) / 3)
    assert found.brier_penalised == pytest.approx((0.25 + 0.01 + 0.01 + 1) / 4)
    assert found.brier_constant == 0.25
    assert found.brier_macro == pytest.approx((0.01 + 0.13) / 2)
    assert found.auc == 1.0
    assert found.pearson == pytest.approx(0.8660254, abs=1e-6)


def test_t10_errors_against_truth_with_a_failure():
    found = judge([0.5, 0.9, None, 0.1], [0.25, 1.0, 0.5, 0.0])
    assert found.brier == pytest.approx(0.0275)
    assert found.brier_penalised == pytest.approx(0.270625)
    assert found.parse_rate == 0.75


def test_ties_count_half_and_an_all_zero_critic_has_a_macro_error_of_a_half():
    assert judge([0.3, 0.3, 0.3], [1.0, 0.0, 0.0]).auc == 0.5
    assert judge([0.9, 0.3, 0.3, 0.1], [1.0, 1.0, 0.0, 0.0]).auc == pytest.approx(3.5 / 4)
    silent = judge([0.0] * 10, [1.0] + [0.0] * 9)
    assert (silent.brier, silent.brier_macro) == (pytest.approx(0.1), 0.5)
    assert math.isnan(silent.pearson)


def test_what_can_not_be_said_is_nan_and_unknown_outcomes_are_left_out():
    none = judge([], [])
    assert none.states == 0
    assert all(math.isnan(v) for k, v in none.metrics("").items() if k != "states")
    assert judge([0.5, 0.5], [1.0, math.nan]).states == 1
    assert math.isnan(judge([0.5], [1.0]).auc)


def candidate(group, outcomes):
    return Candidate(group, f"p{group}", [(StateView(f"p{group}", "y" * i, i, 9), r) for i, r in enumerate(outcomes)])


def test_whole_prompts_are_held_out_in_a_fixed_order_until_both_outcomes_occur():
    groups = [candidate(g, [float(g == 2)] * 3) for g in range(8)]
    found = choose_panel(groups, 0.125, 100, 0.4, order=lambda g: -g)
    assert found is None or found.held_out == {"p7", "p6", "p5", "p4"}  # half of them at most: none ended well
    found = choose_panel(groups, 0.125, 100, 0.4, order=lambda g: (g - 1) % 8)
    assert found.held_out == {"p1", "p2"}
    assert len(found.views) == 6
    assert found.rate == 0.4
    assert choose_panel(list(reversed(groups)), 0.125, 100, 0.4, order=lambda g: (g - 1) % 8) == found


def test_a_panel_has_at_most_so_many_states_and_needs_two_prompts():
    groups = [candidate(g, [0.0, 1.0, math.nan, 0.5]) for g in range(4)]
    assert len(choose_panel(groups, 0.5, 4, None, order=lambda g: g).views) == 4
    assert choose_panel(groups, 0, 4, None, order=lambda g: g) is None
    assert choose_panel(groups[:1], 0.5, 4, None, order=lambda g: g) is None


def test_a_panel_returns_from_plain_values():
    panel = choose_panel([candidate(g, [0.0, 1.0]) for g in range(4)], 0.5, 9, 0.3, order=lambda g: g)
    assert Panel.of_state(panel.state()) == panel


def test_the_course_of_predictions_from_the_prompt_by_how_states_ended():
    views = [
        StateView("p", "", 0, 900),
        StateView("p", "a", 1, 900),
        StateView("p", "b", 500, 900),
        StateView("q", "c", 2, 900),
    ]
    panel = Panel(views, [0.5, 1.0, 0.0, 1.0], 0.4, frozenset({"p", "q"}))
    found = panel.course([0.4, 0.7, 0.1, 0.9])
    assert found["moved_good"] == pytest.approx(0.3)  # q's prompt is not in the panel
    assert found["moved_bad"] == pytest.approx(-0.3)
    assert found["near_end_failures"] == 0.0  # of the one state with at most 512 tokens left
    found = panel.course([None, 0.7, None, None])
    assert math.isnan(found["moved_good"])
    assert found["near_end_failures"] == 1.0


def test_gates_name_both_numbers_of_what_is_not_good_enough():
    good = judge([0.9, 0.1] * 50, [1.0, 0.0] * 50)
    assert Gates().complaints(good) == []
    unparsed = judge([None, 0.1, 0.9, 0.1], [1.0, 0.0] * 2)
    (one, two) = Gates().complaints(unparsed)
    assert "0.750" in one
    assert "0.98" in one
    assert "0.2575" in two
    assert "0.2500" in two
    constant = judge([0.5, 0.5] * 50, [1.0, 0.0] * 50)
    assert len(Gates().complaints(constant)) == 1  # as good as a constant is not better
    assert Gates(beat_constant=False).complaints(constant) == []
    assert len(Gates().complaints(judge([], []))) == 2  # nothing measured opens nothing
