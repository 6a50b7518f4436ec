"""Micro-batches: budget, siblings together, sorted by length, nothing lost."""

from __future__ import annotations

import random

import pytest
import torch

from tests.helpers import random_batch
from vantage.batch import plan_microbatches, split_groups


@pytest.mark.parametrize("seed", range(5))
def test_every_rollout_is_in_exactly_one_microbatch_within_the_budget(seed):
    draw = random.Random(seed)
    tokens = [draw.randint(1, 50) for _ in range(24)]
    groups = [list(range(i, i + 4)) for i in range(0, 24, 4)]
    for budget in (1, 49, 120, 400, 10_000):
        plan = plan_microbatches(tokens, groups, budget)
        assert sorted(i for rows in plan.micro for i in rows) == list(range(24))
        for rows in plan.micro:
            assert len(rows) == 1 or len(rows) * max(tokens[i] for i in rows) <= budget
        together = all(any(set(g) <= set(rows) for rows in plan.micro) for g in groups)
        assert plan.whole_groups == together or not plan.whole_groups


def test_groups_that_fit_stay_whole_and_those_that_do_not_are_cut():
    plan = plan_microbatches([10, 10, 60, 60], [[0, 1], [2, 3]], budget=100)
    assert plan.micro == [[0, 1], [2], [3]]
    assert not plan.whole_groups
    assert plan_microbatches([10, 10, 50, 50], [[0, 1], [2, 3]], budget=100).whole_groups


def test_short_rollouts_are_not_padded_to_the_longest():
    plan = plan_microbatches([5, 90, 6, 91], [[0], [1], [2], [3]], budget=200)
    assert plan.micro == [[0, 2], [1, 3]]


def test_selected_rows_keep_what_belongs_together():
    batch = random_batch()
    part = batch.select([5, 2])
    assert part.response_ids == [batch.response_ids[5], batch.response_ids[2]]
    assert part.outcome_B.tolist() == batch.outcome_B[[5, 2]].tolist()
    assert part.response_mask_BT.shape[1] == max(len(batch.response_ids[5]), len(batch.response_ids[2]))
    assert part.response_mask_BT.sum(1).tolist() == [len(batch.response_ids[5]), len(batch.response_ids[2])]


def test_minibatches_hold_whole_groups_and_everything_once():
    batch = random_batch(groups=7, group=3)
    parts = split_groups(batch, 3)
    assert [i for rows in parts for i in rows] == list(range(21))
    assert [len(rows) // 3 for rows in parts] == [2, 3, 2]
    for rows in parts:
        assert torch.bincount(batch.group_B[rows])[batch.group_B[rows]].eq(3).all()


def test_rows_by_domain_name_every_row_once():
    batch = random_batch(groups=2)
    mixed = type(batch)(**{**batch.__dict__, "domains": ["b", "b", "a", "a"]})
    assert {k: v.tolist() for k, v in mixed.rows_by_domain().items()} == {"b": [0, 1], "a": [2, 3]}


def test_a_large_microbatch_ends_where_padding_would_grow():
    tokens = [100] * 40 + [300] * 10
    plan = plan_microbatches(tokens, [[i] for i in range(50)], budget=10**9)
    assert plan.micro == [list(range(40)), list(range(40, 50))]
    few = plan_microbatches(tokens[30:43], [[i] for i in range(13)], budget=10**9)
    assert len(few.micro) == 1  # a thousand tokens are too few to stand alone
