"""A critic's learning: the same for any micro-batch and number of processes, and resumed to the bit."""

from __future__ import annotations

import dataclasses
import math
import threading

import pytest
import torch

from tests.critics.made import POLICY, SETTINGS, model_critic, state_critic, stirred
from tests.helpers import random_batch, together
from vantage.batch import Batch
from vantage.critics.token import TokenCritic, places
from vantage.critics.training import CriticSettings, Targets, explained_variance
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import State

KINDS = {"model": model_critic, "head": state_critic}


def targets_of(batch: Batch, old: torch.Tensor | None = None) -> Targets:
    mask = batch.response_mask_BT
    target = torch.where(mask, batch.outcome_B[:, None], 0.0)
    return Targets(target, torch.full_like(target, 0.5) if old is None else old, mask)


def read(critic: TokenCritic, batch: Batch):
    if not critic.layers or not batch.size:
        return {}
    return critic.read(POLICY.forward(batch, layers=critic.layers))


def learned(critic: TokenCritic, batch: Batch, steps: int = 1) -> list[dict[str, float]]:
    return [critic.fit(batch, read(critic, batch), targets_of(batch)) for _ in range(steps)]


def weights(critic: TokenCritic) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in critic.training.module.parameters()])


@pytest.mark.parametrize("loss", ["mse", "clipped", "bce"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_learns_what_its_batch_shows(kind, loss):
    settings = dataclasses.replace(SETTINGS, loss=loss, clip=0.3)
    critic = KINDS[kind](settings)
    critic.head.probability = loss == "bce"
    found = learned(critic, random_batch(), 12)
    assert found[-1]["critic/loss"] < 0.8 * found[0]["critic/loss"]
    assert all(row["critic/grad_norm"] > 0 for row in found)


def test_the_first_step_is_the_gradient_of_half_the_mean_squared_error():
    """With no trunk in the way: score 0, so dL/db = mean(0 − (R − ½)) over all tokens, and AdamW moves b by its sign."""
    critic, batch = state_critic(dataclasses.replace(SETTINGS, minibatches=1), keep=20), random_batch()
    found = learned(critic, batch)[0]
    mask = batch.response_mask_BT
    error = (batch.outcome_B[:, None] - 0.5).expand(mask.shape)[mask]
    assert found["critic/loss"] == pytest.approx(float((error**2).mean()) / 2, abs=1e-7)
    assert float(critic.head.bias.detach()) == pytest.approx(1e-2 * math.copysign(1, float(error.mean())), abs=1e-6)


def test_micro_batches_change_nothing():
    batch, found = random_batch(), []
    for budget in (1, 45, 10000):
        critic = model_critic(budget=budget)
        stirred(critic, 0.02)
        found.append((learned(critic, batch, 2)[-1], weights(critic)))
    for metrics, after in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(after, found[0][1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_processes_learn_what_one_would(kind, size):
    settings = dataclasses.replace(SETTINGS, whiten=True, epochs=2)
    batch, lock = random_batch(groups=3), threading.Lock()

    def work(world: World):
        with lock:
            critic = KINDS[kind](settings, world=world)
            stirred(critic, 0.02)
        mine = [i for i, g in enumerate(batch.group_B.tolist()) if g % world.size == world.rank]
        return learned(critic, batch.select(mine), 2)[-1], weights(critic)

    metrics, expected = work(World())
    for found, after in together(size, work):  # with four, one process has no rollout
        assert found == pytest.approx(metrics, rel=1e-5)
        torch.testing.assert_close(after, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_critic_goes_on_bit_for_bit(kind):
    settings = dataclasses.replace(SETTINGS, whiten=True, schedule="linear", warmup=2)
    whole, other = KINDS[kind](settings), KINDS[kind](settings)
    learned(whole, random_batch(seed=0), 2)
    state = whole.training.state_dict()
    copied = State({k: v.clone() for k, v in state.tensors.items()}, dict(state.values))
    other.training.load_state_dict(copied)
    again = other.training.state_dict()
    assert again.values == state.values
    assert state.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(again.tensors[name], value) for name, value in state.tensors.items())
    assert any("exp_avg_sq" in name for name in state.tensors)
    expected, found = (learned(critic, random_batch(seed=1))[0] for critic in (whole, other))
    assert found == expected
    assert torch.equal(weights(other), weights(whole))


def test_the_state_of_another_critic_is_refused():
    with pytest.raises(UserError, match=r"--resume: .* --ppo\.critic"):
        model_critic().training.load_state_dict(state_critic().training.state_dict())


def test_what_can_not_be_scored_teaches_nothing():
    batch = random_batch()
    critic = model_critic()
    nothing = dataclasses.replace(targets_of(batch), mask_BX=torch.zeros_like(batch.response_mask_BT))
    before = weights(critic)
    found = critic.fit(batch, {}, nothing)
    assert torch.equal(weights(critic), before)
    assert found["critic/loss"] == 0
    some = targets_of(batch)
    some.mask_BX[0], some.target_BX[0] = False, float("nan")
    assert math.isfinite(critic.fit(batch, {}, some)["critic/loss"])


def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    batch = random_batch()
    critic = model_critic(dataclasses.replace(SETTINGS, minibatches=1))
    wrong = targets_of(batch)
    wrong.target_BX[0, 0] = float("inf")
    before = weights(critic)
    assert critic.fit(batch, {}, wrong)["critic/skipped_updates"] == 1
    assert torch.equal(weights(critic), before)


def test_whitened_targets_follow_running_statistics_that_begin_with_the_first_batch():
    critic = state_critic(CriticSettings(learning_rate=1e-9, updates_total=9, whiten=True), keep=20)
    batch = random_batch()
    target = targets_of(batch).target_BX[batch.response_mask_BT]
    learned(critic, batch)
    assert float(critic.head.mean) == pytest.approx(float(target.mean()))
    assert float(critic.head.scale) == pytest.approx(float(target.std(correction=0)))
    # Then a share of 1/(1 + 0.9) for the next batch; a mixture's variance has the spread of the means in it.
    more = dataclasses.replace(targets_of(batch), target_BX=targets_of(batch).target_BX + 1)
    critic.fit(batch, read(critic, batch), more)
    share = 1 / 1.9
    assert float(critic.head.mean) == pytest.approx(float(target.mean()) + share)
    expected = float(target.var(correction=0)) + share * (1 - share)
    assert float(critic.head.scale) ** 2 == pytest.approx(expected)


def test_the_schedule_counts_the_critics_own_steps():
    settings = CriticSettings(learning_rate=0.1, updates_total=8, schedule="linear", warmup=2, minibatches=2)
    found = learned(state_critic(settings), random_batch(), 3)
    # Six steps: 0.05, 0.1 | 0.1, 0.1·5/6 | 0.1·4/6, 0.1·3/6; the last of each batch is logged.
    assert [row["critic/learning_rate"] for row in found] == pytest.approx([0.1, 0.1 * 5 / 6, 0.05])


def test_a_head_leaves_the_policy_alone_and_keeps_a_bounded_number_of_states():
    critic, batch = state_critic(keep=5), random_batch()
    found = read(critic, batch)
    assert found["states"].shape == (batch.size, 5, POLICY.hidden_size)
    assert not any(value.requires_grad for value in found.values())
    learned(critic, batch)
    assert all(p.grad is None for p in POLICY.model.parameters())


def test_a_head_values_every_token_from_the_state_before_it():
    critic, batch = state_critic(keep=20), random_batch()
    stirred(critic, 0.02)
    found = read(critic, batch)
    forward = POLICY.forward(batch, layers=(3,))
    for i, (prompt, response) in enumerate(zip(batch.prompt_ids, batch.response_ids)):
        states = forward.hidden[3][i, len(prompt) - 1 : len(prompt) - 1 + len(response)].float()
        states = torch.nn.functional.layer_norm(states, states.shape[-1:])
        expected = (0.5 + critic.head(states)).detach().double().clamp(0, 1)
        torch.testing.assert_close(found["value_MT"][i, : len(response)], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found["states"][i, : len(response)], states.detach(), atol=1e-6, rtol=0)


def test_kept_places_are_spread_from_the_first_token_to_the_last():
    found = places(torch.tensor([1, 4, 5, 9, 100]), 5)
    assert found.tolist() == [
        [0, -1, -1, -1, -1], [0, 1, 2, 3, -1], [0, 1, 2, 3, 4], [0, 2, 4, 6, 8], [0, 25, 50, 74, 99],
    ]  # fmt: skip
    assert places(torch.tensor([1, 7]), 1).tolist() == [[0], [0]]


def test_explained_variance_by_hand():
    value, target = torch.tensor([0.5, 0.0, 1.0, 7.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    mask = torch.tensor([True, True, True, False])
    assert explained_variance(value, target, mask, World()) == pytest.approx(1 - (0.25 / 3) / (2 / 9))
    assert math.isnan(explained_variance(value, torch.ones(4), mask, World()))
