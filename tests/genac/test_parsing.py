"""T1 of the sheet: what is a score, what is none, and what each is worth."""

from __future__ import annotations

import math

import pytest

from vantage.errors import UserError
from vantage.genac.parsing import Tag, critic_reward, expected_value, score_of

TAG = Tag()
RIGHT = {
    "ok <score>7</score>": (0.7, 0.91, 0.51),
    "<score>10</score>": (1.0, 1.0, 0.0),
    "<score> 0 </score>": (0.0, 0.0, 1.0),
    "<score>1</score>": (0.1, 0.19, 0.99),
    "<score>\n8\n</score> and more": (0.8, 0.96, 0.36),
}
WRONG = [
    "<score>11</score>", "<score>7.5</score>", "<score>07</score>", "<score>-1</score>", "I think 7", "",
    "<score>3</score> then <score>4</score>", "<score>3</score><score>3</score>", "<score>7", "7</score>", "<score></score>",
    "<score>1 0</score>", "<SCORE>7</SCORE>",
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT)
def test_t1_a_single_tag_with_an_integer_is_a_tenth_of_it(text):
    value, success, failure = RIGHT[text]
    assert TAG.value(text) == value
    assert critic_reward(1, TAG.value(text)) == pytest.approx(success, abs=1e-12)
    assert critic_reward(0, TAG.value(text)) == pytest.approx(failure, abs=1e-12)


@pytest.mark.parametrize("text", WRONG)
def test_t1_everything_else_is_a_failure_and_earns_nothing_whatever_the_outcome(text):
    assert TAG.value(text) is None
    assert critic_reward(0, TAG.value(text)) == critic_reward(1, TAG.value(text)) == 0.0


def test_t1_the_reward_is_proper_its_expectation_peaks_at_the_nearest_grid_point():
    expected = [0.37 * critic_reward(1, n / 10) + 0.63 * critic_reward(0, n / 10) for n in range(11)]
    assert expected == pytest.approx([0.63, 0.694, 0.738, 0.762, 0.766, 0.75, 0.714, 0.658, 0.582, 0.486, 0.37])
    assert expected.index(max(expected)) == 4


@pytest.mark.parametrize("target", [-0.1, 1.1, math.nan, math.inf])
def test_a_target_outside_of_the_unit_interval_is_refused(target):
    with pytest.raises(ValueError, match="target"):
        critic_reward(target, 0.5)


def test_t13_scores_of_the_toy_worlds_values_round_to_the_nearest():
    assert [score_of(0.9**m) for m in (5, 3, 1, 0)] == [6, 7, 9, 10]
    assert score_of(0.0) == 0
    assert score_of(0.05) == 1  # a half goes up
    with pytest.raises(ValueError, match="probability"):
        score_of(1.01)


def test_other_tags_are_as_strict_and_know_their_labels():
    tag = Tag("[", "]")
    assert tag.value("22.110.1:[7]") == 0.7
    assert tag.value("[7][7]") is None
    assert tag.label(10) == "[10]"
    assert tag.endings() == [f"{n}]" for n in range(11)]
    assert [tag.value(tag.label(n)) for n in range(11)] == [n / 10 for n in range(11)]


@pytest.mark.parametrize("pair", [("", "]"), ("[", ""), (" [", "]"), ("[1", "]")])
def test_a_tag_that_can_not_be_told_from_the_number_is_refused(pair):
    with pytest.raises(UserError, match="tag"):
        Tag(*pair)


def test_the_expectation_over_labels_normalises_among_them():
    certain = [-900.0] * 11
    certain[7] = -800.0
    assert expected_value(certain) == pytest.approx(0.7)
    assert expected_value([-5.0] * 11) == pytest.approx(0.5)
    # 3/4 on a score of 2 and 1/4 on one of 10, whatever mass lies outside of the eleven
    halves = [-math.inf] * 11
    halves[2], halves[10] = math.log(0.3), math.log(0.1)
    assert expected_value(halves) == pytest.approx(0.75 * 0.2 + 0.25 * 1.0)
