"""Formulas of evaluation against closed forms and against enumeration of every subset."""

from __future__ import annotations

import itertools
import math
import random
import time
from fractions import Fraction

import numpy as np
import pytest

from vantage.evaluation import statistics
from vantage.evaluation.statistics import (
    Z95,
    bootstrap_interval,
    macro_average,
    majority_at_k,
    mean_interval,
    paired_difference,
    pass_all_k,
    pass_at_k,
    powers_of_two,
    standard_error,
    wilson,
)


def majority_by_enumeration(votes, scores, k):
    """Every subset, every winner of it."""
    total = Fraction(0)
    subsets = list(itertools.combinations(range(len(votes)), k))
    score = {
        vote: Fraction(sum(Fraction(s) for v, s in zip(votes, scores) if v == vote)) / votes.count(vote)
        for vote in votes
    }
    for subset in subsets:
        given = [votes[i] for i in subset if votes[i] is not None]
        if given:
            most = max(given.count(v) for v in given)
            winners = [v for v in set(given) if given.count(v) == most]
            total += sum(score[v] for v in winners) / len(winners)
    return float(total / len(subsets))


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_and_pass_all_k_are_shares_of_subsets(samples):
    for correct in range(samples + 1):
        outcomes = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            assert pass_at_k(correct, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
            assert pass_all_k(correct, samples, k) == pytest.approx(sum(map(all, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased():
    p, samples, k = 0.3, 6, 3
    chance = [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    expected = sum(w * pass_at_k(c, samples, k) for c, w in enumerate(chance))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    plug_in = sum(w * (1 - (1 - c / samples) ** k) for c, w in enumerate(chance))
    assert abs(plug_in - (1 - (1 - p) ** k)) > 0.03  # what the formula is there to avoid


def test_pass_at_k_stays_exact_where_binomials_overflow_floats():
    exact = 1 - Fraction(math.comb(4090, 512), math.comb(4096, 512))
    assert pass_at_k(6, 4096, 512) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("correct", "samples", "k"), [(1, 2, 3), (3, 2, 1), (-1, 2, 1), (0, 0, 0)])
def test_impossible_counts_are_refused(correct, samples, k):
    for formula in (pass_at_k, pass_all_k):
        with pytest.raises(ValueError, match=f"k is {k} and {correct} are correct, of {samples} samples"):
            formula(correct, samples, k)


def test_majority_of_all_samples_by_hand():
    assert majority_at_k(["7", "7", "8"], [1, 1, 0], 3) == 1.0
    assert majority_at_k(["7", "8", "8"], [1, 0, 0], 3) == 0.0
    assert majority_at_k(["7", "8"], [1, 0], 2) == 0.5  # a tie is split
    assert majority_at_k(["7", "8", "9"], [1, 0, 0], 3) == pytest.approx(1 / 3)
    assert majority_at_k(["7", None, None, None], [1, 0, 0, 0], 4) == 1.0  # who gives no answer does not vote
    assert majority_at_k([None, None], [0, 0], 2) == 0.0


def test_majority_at_one_is_the_mean_score():
    votes, scores = ["a", "b", "a", None, "c"], [1.0, 0.0, 1.0, 0.0, 0.5]
    assert majority_at_k(votes, scores, 1) == pytest.approx(np.mean(scores))


def test_majority_is_the_mean_over_every_subset():
    draw = random.Random(1)
    for _ in range(60):
        samples = draw.randint(1, 8)
        votes = [draw.choice(["a", "b", "c", "d", None]) for _ in range(samples)]
        worth = {"a": 1, "b": 0, "c": Fraction(1, 2), "d": 0, None: 0}
        scores = [worth[v] for v in votes]
        for k in range(1, samples + 1):
            exact = majority_by_enumeration(votes, scores, k)
            assert majority_at_k(votes, [float(s) for s in scores], k) == pytest.approx(exact, abs=1e-12)


def test_answers_that_are_scored_in_two_ways_count_with_their_mean():
    votes, scores = ["a", "a", "b"], [1, 0, 1]
    assert majority_at_k(votes, scores, 3) == 0.5
    assert majority_at_k(votes, scores, 2) == pytest.approx(majority_by_enumeration(votes, scores, 2))


def test_chances_of_winning_add_up_to_one():
    for counts, abstaining in (((1, 1, 2, 4), 0), ((1,) * 32, 0), ((5, 5, 5), 17)):
        for k in (1, 3, 8):
            chances = statistics._winning_chances(counts, abstaining, k)
            silent = Fraction(math.comb(abstaining, k), math.comb(sum(counts) + abstaining, k))
            assert sum(chances[c] for c in counts) == 1 - silent


def test_majority_of_many_scattered_answers_takes_no_time():
    votes = [str(i) for i in range(40)] + ["x"] * 12 + ["y"] * 7 + ["z"] * 5
    started = time.perf_counter()
    found = majority_at_k(votes, [float(v == "x") for v in votes], 32)
    assert 0.5 < found < 1
    assert time.perf_counter() - started < 5


def test_majority_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="k is 3 for 2 votes and 2 scores"):
        majority_at_k(["a", "b"], [1, 0], 3)
    with pytest.raises(ValueError, match="k is 1 for 2 votes and 1 scores"):
        majority_at_k(["a", "b"], [1], 1)


def test_wilson_interval_of_known_cases():
    assert wilson(0.5, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(0.0, 20)[1] == pytest.approx(0.1611252, abs=1e-6)


def test_problems_that_all_fail_leave_room_for_doubt():
    assert mean_interval(np.zeros((30, 8))) == (0.0, *wilson(0.0, 30))
    assert mean_interval(np.ones((30, 8))) == (1.0, *wilson(1.0, 30))
    assert np.isnan(mean_interval(np.zeros((0, 4)))).all()


def test_one_problem_says_nothing_about_others():
    assert mean_interval(np.array([[1.0, 0.0]])) == (0.5, 0.0, 1.0)
    assert standard_error(np.array([0.5])) == math.inf


def test_responses_to_one_problem_are_one_observation():
    scores = np.repeat(np.array([[1.0], [0.0], [1.0], [0.0]]), 16, axis=1)
    half = Z95 * np.std([1, 0, 1, 0], ddof=1) / 2
    assert mean_interval(scores) == pytest.approx((0.5, max(0, 0.5 - half), min(1, 0.5 + half)))


def test_the_bootstrap_draws_problems():
    value_P = np.random.default_rng(3).beta(2, 3, size=200)
    mean, low, high = bootstrap_interval(value_P)
    half = Z95 * standard_error(value_P)
    assert mean == pytest.approx(value_P.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert bootstrap_interval(value_P) == (mean, low, high)  # the same at every call


def test_the_bootstrap_of_two_problems_is_known():
    # Means of two draws from {0, 1}: 0, ½ and 1 with chances ¼, ½, ¼.
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.5, 0.0, 1.0)
    assert bootstrap_interval(np.array([0.25, 0.25])) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("method", ["normal", "bootstrap"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(method):
    draw = np.random.default_rng(0)
    covered, rounds = 0, 300
    for _ in range(rounds):
        # Problems of different difficulty with 8 responses each; the truth is the mean difficulty.
        difficulty_P = draw.beta(1, 2, size=60)
        value_P = draw.binomial(8, difficulty_P) / 8
        if method == "normal":
            _, low, high = mean_interval(value_P[:, None])
        else:
            _, low, high = bootstrap_interval(value_P, 1000)
        covered += low <= 1 / 3 <= high
    assert 0.91 < covered / rounds < 0.985


def test_the_macro_average_counts_every_benchmark_once():
    small, large = np.array([1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])
    found = macro_average([small, large])
    assert found.mean == pytest.approx((0.5 + 0.75) / 2)
    error = math.sqrt(0.5 / 2 + 0.25 / 4) / 2  # variances ½ of two problems and ¼ of four
    assert (found.low, found.high) == pytest.approx((max(0, 0.625 - Z95 * error), min(1, 0.625 + Z95 * error)))
    many = [np.random.default_rng(i).random(300) for i in range(3)]
    closed, resampled = macro_average(many), macro_average(many, "bootstrap")
    assert resampled.mean == closed.mean
    assert resampled.half == pytest.approx(closed.half, rel=0.1)


def test_benchmarks_that_are_unanimous_leave_room_for_doubt_in_the_mean():
    found = macro_average([np.zeros(30), np.zeros(30)])
    half = (wilson(0.0, 30)[1] / 2) * 2**0.5 / 2
    assert (found.mean, found.low, found.high) == pytest.approx((0.0, 0.0, half))
    assert macro_average([np.zeros(30)], least=-1.0).high == 0.0  # two models that do the same on every problem
    assert macro_average([np.array([0.5])]) == statistics.Estimate(0.5, 0.0, 1.0)


def test_a_paired_difference_is_free_of_what_problems_share():
    draw = np.random.default_rng(5)
    difficulty_P = draw.random(100)
    before_P, after_P = difficulty_P * 0.8, difficulty_P * 0.8 + 0.1
    found = paired_difference(after_P, before_P)
    assert found.difference.mean == pytest.approx(0.1)
    assert found.difference.half < 1e-9 < standard_error(before_P)
    assert (found.better, found.worse, found.equal) == (100, 0, 0)


def test_paired_difference_by_hand():
    found = paired_difference(np.array([1.0, 0.5, 0.0, 1.0]), np.array([0.0, 0.5, 0.5, 1.0]))
    changes = [1.0, 0.0, -0.5, 0.0]
    half = Z95 * np.std(changes, ddof=1) / 2
    assert found.difference.mean == pytest.approx(0.125)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.125 - half, 0.125 + half))
    assert (found.better, found.worse, found.equal) == (1, 1, 2)
    with pytest.raises(ValueError, match="2 values for one, 3 for the other"):
        paired_difference(np.zeros(2), np.zeros(3))


def test_paired_intervals_cover_the_truth():
    draw = np.random.default_rng(7)
    covered = {"normal": 0, "bootstrap": 0}
    for _ in range(60):
        difficulty_P = draw.random(50) * 0.8
        one_P, other_P = draw.binomial(4, difficulty_P + 0.1) / 4, draw.binomial(4, difficulty_P) / 4
        for method in covered:
            found = paired_difference(one_P, other_P, method).difference
            covered[method] += found.low <= 0.1 <= found.high
    assert all(52 <= count <= 60 for count in covered.values()), covered


def test_the_mean_of_paired_differences_over_benchmarks():
    first = (np.array([1.0, 0.0]), np.array([0.0, 0.0]))
    second = (np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.0, 0.5, 0.0, 0.5]))
    found = macro_average([one_P - other_P for one_P, other_P in (first, second)], least=-1.0)
    assert found.mean == pytest.approx((0.5 + 0.25) / 2)
    error = math.sqrt(0.5 / 2 + np.var([0.5, 0, 0.5, 0], ddof=1) / 4) / 2
    assert found.half == pytest.approx(Z95 * error)


def test_the_ks_that_are_shown():
    assert powers_of_two(1) == [1]
    assert powers_of_two(8) == [1, 2, 4, 8]
    assert powers_of_two(12) == [1, 2, 4, 8, 12]
