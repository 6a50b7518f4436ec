"""Intervals, differences and time to target, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from vantage.compare.statistics import (
    censored_median,
    first_reach,
    mean_interval,
    paired_difference,
    t_probability,
    t_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
def test_quantiles_are_those_of_students_distribution(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-10)
    assert t_quantile(freedom, 0.5) == pytest.approx(stats.t.ppf(0.75, freedom), rel=1e-10)
    assert t_probability(1.3, freedom) == pytest.approx(2 * stats.t.cdf(1.3, freedom) - 1, abs=1e-13)


def test_no_degrees_of_freedom_are_an_error() -> None:
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        t_quantile(0)


def test_the_interval_of_three_seeds_by_hand() -> None:
    # Mean 0.6, deviations −0.1, 0, 0.1: sample std 0.1; half width 4.302653 × 0.1 / √3 = 0.248414.
    found = mean_interval([0.5, 0.6, 0.7])
    assert found is not None
    assert (found.n, found.mean, found.std) == (3, pytest.approx(0.6), pytest.approx(0.1))
    assert (found.low, found.high) == (pytest.approx(0.6 - 0.248414, abs=1e-6), pytest.approx(0.848414, abs=1e-6))


def test_one_seed_has_a_mean_and_no_interval() -> None:
    found = mean_interval([0.5])
    assert found is not None
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 0.5, None, None, None)
    assert mean_interval([]) is None


def test_differences_are_taken_within_seeds_that_both_have() -> None:
    # Seeds 0 and 1: differences 0.1 and 0.3, mean 0.2, std √0.02; half width 12.706205 × √0.02 / √2 = 1.270620.
    found = paired_difference({0: 0.6, 1: 0.9, 2: 0.1}, {0: 0.5, 1: 0.6, 3: 0.9})
    assert found is not None
    assert (found.n, found.mean) == (2, pytest.approx(0.2))
    assert found.high == pytest.approx(0.2 + 1.2706205, abs=1e-6)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pairing_removes_what_a_seed_does_to_both() -> None:
    ours, theirs = {0: 0.2, 1: 0.5, 2: 0.8}, {0: 0.1, 1: 0.4, 2: 0.7}
    found = paired_difference(ours, theirs)
    assert found is not None
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_the_target_is_reached_on_the_line_between_evaluations() -> None:
    xs, accuracies = [0, 10, 20, 30], [0.4, 0.6, 0.5, 0.9]
    assert first_reach(xs, accuracies, 0.5) == 5
    assert first_reach(xs, accuracies, 0.6) == 10
    assert first_reach(xs, accuracies, 0.7) == pytest.approx(25)
    assert first_reach(xs, accuracies, 0.3) == 0
    assert first_reach(xs, accuracies, 0.91) is None


def test_seeds_that_never_arrive_count_as_last() -> None:
    assert censored_median([30.0, None, 10.0]) == 30.0
    assert censored_median([None, None, 10.0]) is None
    assert censored_median([10.0, None]) is None
    assert censored_median([10.0, 20.0]) == 15.0
    assert censored_median([]) is None
    assert not math.isinf(censored_median([1.0]) or 0)
