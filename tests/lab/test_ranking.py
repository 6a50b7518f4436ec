import itertools
import math

import numpy as np
import pytest

from vantage.lab import ranking

POOLS = [
    ([0.7, 0.7, 0.3, 0.1], [0.9, 0.5, 0.4, 0.1], 0.5, 0.91666667),
    ([0.2, 0.8, 0.5, 0.5], [0.3, 0.6, 0.6, 0.1], 1.0, 0.7),
    ([0.4, 0.4, 0.4, 0.4], [0.2, 0.3, 0.5, 0.4], 0.25, 0.5),
    ([0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.8, 0.3], 0.0, 0.33333333),
]


def test_ties_count_as_a_guess_among_them():
    for predicted, truth, credit, pairs in POOLS:
        assert ranking.top1(predicted, truth)[0] == pytest.approx(credit, abs=1e-12)
        assert ranking.pairwise(predicted, truth) == pytest.approx(pairs, abs=1e-8)
    chances = [ranking.top1(predicted, truth)[1] for predicted, truth, _, _ in POOLS]
    assert np.mean(chances) == pytest.approx(0.3125, abs=1e-12)


def test_regret_is_what_a_guess_gives_away():
    assert ranking.regret([0.7, 0.7, 0.3], [0.9, 0.5, 0.4]) == pytest.approx(0.9 - 0.7)
    assert ranking.regret([0.1, 0.9], [0.2, 0.8]) == 0


def test_a_candidate_without_prediction_is_last():
    assert ranking.top1([math.nan, 0.1], [0.9, 0.1]) == (0.0, 0.5)


def test_subsets_are_all_of_them_or_different_samples():
    assert ranking.subsets(5, 2, 100).tolist() == [list(pair) for pair in itertools.combinations(range(5), 2)]
    drawn = ranking.subsets(16, 8, 50, seed=1)
    assert drawn.shape == (50, 8)
    assert all(len(set(row)) == 8 for row in drawn.tolist())
    assert (drawn == ranking.subsets(16, 8, 50, seed=1)).all()
    with pytest.raises(ValueError, match="no subsets of 4 of 3"):
        ranking.subsets(3, 4)


def test_random_predictions_get_what_chance_gets():
    draw = np.random.default_rng(0)
    predicted, truth = draw.random((800, 8)), np.round(draw.random((800, 8)) * 4)
    for size in (2, 4, 8):
        found = ranking.ranked(list(predicted), list(truth), range(800), size, limit=1, resamples=200)
        assert found is not None
        assert found.credit[0] == pytest.approx(found.chance, abs=0.06)
        assert found.pairwise[0] == pytest.approx(0.5, abs=0.06)
        assert found.credit[1] < found.credit[0] < found.credit[2]


def test_all_subsets_of_two_are_pairwise_accuracy():
    """A pool of two with different truths is a pair: credit and pairwise accuracy are one thing."""
    draw = np.random.default_rng(1)
    for _ in range(20):
        predicted, truth = np.round(draw.random(6), 1), np.round(draw.random(6), 1)
        found = ranking.pool_score(predicted, truth, 2)
        assert found is not None
        assert found.credit == pytest.approx(ranking.pairwise(predicted, truth), abs=1e-12)
        assert found.chance == pytest.approx(0.5)


def test_pools_without_a_best_are_left_out():
    assert ranking.pool_score([0.1, 0.9], [0.5, 0.5], 2) is None
    flat, told = np.array([0.5, 0.5, 0.5]), np.array([0.1, 0.2, 0.3])
    found = ranking.ranked([told, told], [flat, told], [0, 1], 2, resamples=20)
    assert found is not None
    assert found.states == 1
    assert found.credit[0] == 1
    assert found.regret[0] == 0
    assert ranking.ranked([told], [told], [0], 8) is None
    assert ranking.ranked([told], [flat], [0], 2) is None


def test_a_state_counts_once_however_many_subsets_it_has():
    good, bad = np.array([0.1, 0.2]), np.array([0.4, 0.3, 0.2, 0.1])
    truth = [np.array([0.1, 0.2]), np.array([0.1, 0.2, 0.3, 0.4])]
    found = ranking.ranked([good, bad], truth, [0, 1], 2, resamples=20)
    assert found is not None
    assert found.credit[0] == pytest.approx(0.5)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="2 predictions for 1"):
        ranking.top1([0.1, 0.2], [0.3])
    with pytest.raises(ValueError, match="no truth"):
        ranking.top1([0.1, 0.2], [0.3, math.nan])


def test_pairs_without_predictions_are_ties_and_lose_to_those_with_one(recwarn):
    """Of (0, 1), (0, 2), (1, 2): a tie, right, wrong; nothing is said of infinite differences."""
    assert ranking.pairwise([math.nan, math.nan, 0.5], [0.1, 0.9, 0.5]) == 0.5
    assert ranking.pairwise([math.nan, math.nan, 0.5], [0.1, 0.2, 0.9]) == pytest.approx(2.5 / 3)
    assert not recwarn.list
