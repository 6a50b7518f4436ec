import numpy as np
import pytest

from vantage.errors import UserError
from vantage.lab.bench import check_learnable


def test_states_are_step_starts_and_never_whole_responses(bench, test_states):
    newline = bench.policy.tokenizer.encode("\n", add_special_tokens=False)[0]
    for i in range(len(test_states)):
        prefix = test_states.prefix_ids(i)
        assert len(prefix) < len(test_states.rollouts.response_ids[test_states.rollout_N[i]])
        assert not prefix or prefix[-1] == newline
    assert max(np.bincount(test_states.rollout_N)) == 3


def test_truth_is_read_from_disk_the_second_time(bench, test_states):
    wanted = [test_states.state(i) for i in range(4)]
    first, generated = bench.values(wanted, 2, seed=5)
    again, nothing = bench.values(wanted, 2, seed=5)
    assert generated > 0
    assert nothing == 0
    np.testing.assert_array_equal(first, again)


def test_rollouts_do_not_depend_on_how_many_there_are(bench, test_states):
    fewer = bench.draw(test_states.rollouts.problems[:4:2], 2, 12)
    assert fewer.response_ids == test_states.rollouts.response_ids[:4]


def test_pools_hold_different_steps_of_one_state(bench, test_states):
    pools = bench.pools(test_states.rollouts, 2)
    assert pools is not None
    for number in range(len(pools.prompts)):
        rows = np.flatnonzero(pools.pool_N == number)
        prefixes = [tuple(pools.states.prefix_ids(i)) for i in rows]
        assert 2 <= len(set(prefixes)) == len(prefixes) <= 3
        assert len({tuple(pools.states.prompt_ids(i)) for i in rows}) == 1
        common = min(len(p) for p in prefixes)
        assert any(p[:common] != prefixes[0][:common] for p in prefixes)
    assert np.all((pools.truth_N >= 0) & (pools.truth_N <= 1))


def test_a_shift_needs_the_same_verifier(bench):
    with pytest.raises(UserError, match="a shift must have the same verifier"):
        bench.held_out("tools", 8)


def test_rewards_that_do_not_differ_are_refused(train):
    from dataclasses import replace

    with pytest.raises(UserError, match="all have the reward 1: there is nothing to predict"):
        check_learnable(replace(train, reward_B=np.ones(len(train))))
    with pytest.raises(UserError, match="none could be judged"):
        check_learnable(replace(train, reward_B=np.full(len(train), np.nan)))
