"""Samples of a state that were sampled from earlier ones: who comes by, and who must not count."""

from __future__ import annotations

from vantage.montecarlo.passing import Sampled, passing, value_samples


def sampled(ids, start, rollout=None) -> Sampled:
    return Sampled(ids, start, 1.0, 1.0, rollout)


def test_a_response_counts_for_every_state_from_its_own_on_that_it_begins_with():
    from_prompt, from_1, from_12 = sampled((1, 2, 3), 0), sampled((1, 2, 4), 1), sampled((1, 2, 3), 2)
    other = sampled((2, 2, 3), 0)
    found = passing([from_prompt, from_1, from_12, other], [(), (1,), (1, 2), (1, 3), (2,)])
    assert found[()] == [from_prompt, other]
    assert found[(1,)] == [from_prompt, from_1]
    assert found[(1, 2)] == [from_prompt, from_1, from_12]
    assert found[(1, 3)] == []
    assert found[(2,)] == [other]


def test_a_response_that_ends_before_a_state_does_not_come_by():
    assert passing([sampled((1,), 0)], [(1,), (1, 2)]) == {(1,): [sampled((1,), 0)], (1, 2): []}


def test_a_rollouts_own_outcome_is_no_part_of_its_value():
    own, sibling, continuation = sampled((1, 2), 0, rollout=0), sampled((1, 3), 0, rollout=1), sampled((1, 4), 0)
    assert value_samples([own, sibling, continuation], 0) == [sibling, continuation]
    assert value_samples([own, sibling, continuation], 1) == [own, continuation]
