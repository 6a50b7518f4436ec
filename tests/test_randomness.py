"""Counter-based draws: uniform, and a function of their coordinates only."""

from __future__ import annotations

import numpy as np

from vantage.randomness import Stream, key, permutation, uniforms


def test_keys_differ_wherever_a_coordinate_differs():
    places = [(s, t, p, r) for s in range(5) for t in range(5) for p in range(10) for r in range(4)]
    keys = {key(s, Stream.ROLLOUT, t, p, r) for s, t, p, r in places}
    keys |= {key(s, Stream.EVAL, t, p, r) for s, t, p, r in places}
    assert len(keys) == 2 * len(places)
    assert key(1, Stream.DATA, 2, 3) != key(1, Stream.DATA, 3, 2)
    assert all(0 <= k < 2**64 for k in keys)


def test_streams_keep_the_numbers_that_earlier_runs_drew_with():
    numbers = {"ROLLOUT": 1, "DATA": 2, "EVAL": 3, "NOISE": 4, "SFT": 5, "CONTINUATION": 6, "CRITIC": 7, "PROBE": 8}
    assert {s.name: s.value for s in Stream} == numbers
    assert len({key(0, s, 1, 2) for s in Stream}) == len(numbers)


def test_uniform_numbers_are_the_same_in_pieces_and_in_one():
    keys = np.array([key(0, Stream.ROLLOUT, i) for i in range(7)], dtype=np.uint64)
    whole = uniforms(keys, 0, 40)
    assert np.array_equal(whole, np.concatenate([uniforms(keys, 0, 13), uniforms(keys, 13, 27)], axis=1))
    assert np.array_equal(whole[3:4], uniforms(keys[3:4], 0, 40))


def test_uniform_numbers_look_uniform_and_uncorrelated():
    keys = np.array([key(0, Stream.ROLLOUT, i) for i in range(500)], dtype=np.uint64)
    drawn = uniforms(keys, 0, 200)
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert abs(counts / drawn.size - 0.05).max() < 0.003
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.15
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02
    assert drawn.min() >= 0
    assert drawn.max() < 1


def test_every_epoch_has_its_own_order_of_everything():
    first, second = permutation(3, Stream.DATA, 0, 50), permutation(3, Stream.DATA, 1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == permutation(3, Stream.DATA, 0, 50).tolist()
