import functools
import math
import operator

import numpy as np
import pytest

from vantage.lab.data import Rollouts, States
from vantage.tasks.base import Problem


def made(rewards, prompts):
    count = len(rewards)
    return Rollouts(
        [Problem(f"p{p}") for p in prompts], [[1, p] for p in prompts], [[5, 6, 7][: 1 + i % 3] for i in range(count)],
        ["x"] * count, np.array(prompts), np.array(rewards, dtype=float), np.zeros(count, dtype=bool),
    )  # fmt: skip


def test_means_of_others_leave_the_own_reward_out():
    rollouts = made([1, 0, 1, 0, math.nan, 1], [0, 0, 0, 1, 1, 2])
    np.testing.assert_allclose(rollouts.others_mean(), [0.5, 1, 0.5, math.nan, 0, math.nan])
    np.testing.assert_allclose(rollouts.batch_mean(), [2 / 4, 3 / 4, 2 / 4, 3 / 4, 3 / 5, 2 / 4])


def test_chunks_keep_prompts_whole_and_lose_nothing():
    rollouts = made([0, 1] * 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    parts = rollouts.chunks(4)
    assert [part.prompt_B.tolist() for part in parts] == [[0, 0, 1, 1], [2, 2, 3, 3, 4, 4]] or len(parts) == 2
    assert functools.reduce(operator.iadd, (part.prompt_B.tolist() for part in parts), []) == rollouts.prompt_B.tolist()


def test_a_batch_is_in_units_of_the_reward():
    batch = made([0, 1, math.nan], [0, 0, 1]).batch(4, (-1.0, 1.0))
    assert batch.outcome_B.tolist()[:2] == [-1.0, 1.0]
    assert batch.scorable_B.tolist() == [True, True, False]
    assert batch.step == 4


def test_a_few_states_bring_their_siblings_along():
    rollouts = made([0, 1, 1, 0], [0, 0, 1, 1])
    states = States(rollouts, np.array([1, 3]), np.array([1, 0]))
    few = states.few(1)
    assert few.rollouts.prompt_B.tolist() == [0, 0]
    assert few.rollout_N.tolist() == [1]
    assert few.prefix_ids(0) == [5]
    assert states.state(0).prefix_ids == (5,)
    assert states.prompt_ids(1) == [1, 1]


def test_predictions_of_terminal_states_are_not_made_up(bench, train):
    """A whole response has no token behind it: an algorithm has no baseline there."""
    from vantage.estimators.rloo import Rloo
    from vantage.lab.algorithms import AlgorithmValues

    estimator = AlgorithmValues([Rloo()])
    estimator.fit(train, bench)
    held = train.of_prompts([0, 1])
    states = bench.places(held, [0, 1], [len(held.response_ids[0]), 0])
    found = estimator.predict(states)
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(held.reward_B[0])
