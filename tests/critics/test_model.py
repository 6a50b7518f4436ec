"""A critic's values: of prefixes only, the base rate at first, the same for any padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.critics.made import model_critic, stirred
from tests.helpers import random_batch, small_policy
from vantage.batch import Batch
from vantage.critics.model import LEAST_SHARE, ValueHead, copied_trunk
from vantage.errors import UserError


def replaced(batch: Batch, row: int, place: int, token: int) -> Batch:
    responses = [list(r) for r in batch.response_ids]
    responses[row][place] = token
    return dataclasses.replace(batch, response_ids=responses)


def test_a_value_sees_the_tokens_before_its_own_and_no_other():
    critic, batch = model_critic(), random_batch()
    stirred(critic, 0.02)
    row = max(range(batch.size), key=lambda i: len(batch.response_ids[i]))
    place = 3
    before = critic.values(batch)
    after = critic.values(replaced(batch, row, place, 44))
    assert torch.equal(after[row, : place + 1], before[row, : place + 1])
    later = slice(place + 1, len(batch.response_ids[row]))
    assert (after[row, later] != before[row, later]).all()
    others = [i for i in range(batch.size) if i != row]
    assert torch.equal(after[others], before[others])


def test_values_do_not_depend_on_how_a_batch_is_cut():
    batch = random_batch()
    found = []
    for budget in (1, 40, 10000):
        critic = model_critic(budget=budget)
        stirred(critic)
        found.append(critic.values(batch))
    assert found[0].std() > 0.01
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-12, rtol=0)
    assert (found[0][~batch.response_mask_BT] == 0).all()


@pytest.mark.parametrize("probability", [False, True])
def test_every_value_is_the_base_rate_until_something_is_learned(probability):
    critic, batch = model_critic(probability=probability), random_batch()
    inside = batch.response_mask_BT
    assert critic.values(batch)[inside].unique().tolist() == [0.5]  # the middle of the range
    critic.head.begin(0.3)
    assert critic.values(batch)[inside].unique().tolist() == pytest.approx([0.3], abs=1e-7)


def test_a_base_rate_at_the_end_of_the_range_leaves_a_logit_that_can_still_learn():
    head = ValueHead(4, (-1.0, 3.0), probability=True)
    head.begin(-5.0)
    assert float(head.value(torch.zeros(()))) == pytest.approx(-1 + 4 * LEAST_SHARE, abs=1e-6)


def test_values_stay_within_the_reward_range():
    critic, batch = model_critic(reward_range=(-1.0, 2.0)), random_batch()
    stirred(critic, 5.0)
    found = critic.values(batch)
    assert found.min() == -1
    assert found.max() == 2


def test_the_head_is_float32_whatever_the_trunk():
    critic = model_critic()
    assert critic.head.weight.dtype == torch.float32
    assert critic.model.trunk.embed_tokens.weight.dtype == torch.float64
    head = ValueHead(4, (0.0, 1.0))
    assert head(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_new_statistics_change_no_value():
    head = ValueHead(5, (0.0, 1.0))
    torch.manual_seed(0)
    with torch.no_grad():
        head.weight.normal_()
        head.bias.fill_(0.2)
    states = torch.randn(7, 5, dtype=torch.float64)
    before = head.value(head(states))
    head.rescale(0.83, 0.21)
    torch.testing.assert_close(head.value(head(states)), before, atol=1e-6, rtol=0)
    assert (float(head.mean), float(head.scale)) == (0.83, 0.21)


def test_a_copied_trunk_is_its_own():
    policy = small_policy()
    trunk = copied_trunk(policy)
    with torch.no_grad():
        trunk.embed_tokens.weight.add_(1)
    assert not torch.equal(trunk.embed_tokens.weight, policy.model.model.embed_tokens.weight)


def test_a_policy_whose_trunk_is_inseparable_has_no_copy():
    policy = small_policy()
    policy.head = dataclasses.replace(policy.head, trunk=None)
    with pytest.raises(UserError, match=r"--ppo\.critic copy: .* give --ppo\.critic head or a model"):
        copied_trunk(policy)


def test_a_rollout_beyond_the_critics_positions_is_refused():
    critic = model_critic()
    critic.model.trunk.config.max_position_embeddings = 5
    with pytest.raises(UserError, match="has only 5 positions"):
        critic.values(random_batch())
