"""Micro-batches from free memory, and what happens where memory runs out: nothing but smaller micro-batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.helpers import random_batch, small_policy
from tests.test_memory import SETTINGS, shape
from vantage.config import TrainConfig, resolve
from vantage.errors import UserError
from vantage.estimators.base import Setup
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.estimators.rloo import Rloo
from vantage.flops import update_flops
from vantage.memory import Estimator
from vantage.sizing import microbatch_size, size_for
from vantage.update import PolicyUpdate


def resolved(**settings) -> TrainConfig:
    given = {"rollouts_per_step": 12, "rollouts_per_prompt": 2, "algo": Rloo()} | settings
    return resolve(TrainConfig(**given), max_new_tokens=20, stop=(), reward_range=(0.0, 1.0))


def short_of_memory(update: PolicyUpdate, most: int, monkeypatch, every: int = 1) -> list[int]:
    """Let every forward pass over more than `most` padded tokens fail; returns the sizes that were tried."""
    plain, tried = update.policy.forward, []

    def forward(batch, **options):
        padded = batch.size * max(batch.tokens())
        tried.append(padded)
        if padded > most:
            raise torch.OutOfMemoryError("out of memory")
        return plain(batch, **options)

    monkeypatch.setattr(update.policy, "forward", forward)
    return tried


@pytest.mark.parametrize(
    "settings", [{}, {"algo": Grpo(), "epochs": 2, "minibatches": 2}, {"algo": Poise()}], ids=["once", "many", "fused"]
)
def test_an_update_that_runs_out_of_memory_is_the_same_in_smaller_pieces(settings, monkeypatch):
    config = resolved(tokens_per_microbatch=400, learning_rate=1e-2, **settings)
    batch, weights, metrics = random_batch(), [], []
    for most in (400, 60):
        policy = small_policy()
        estimator = config.algo.build(Setup(3, 32, 2, (0.0, 1.0)))
        update = PolicyUpdate(policy, estimator, config)
        tried = short_of_memory(update, most, monkeypatch)
        if most < 400:
            with pytest.warns(UserWarning, match=r"not enough memory .*--tokens-per-microbatch \d+ from here on"):
                result = update.run(batch)
            assert max(tried) > 60
            assert tried[-1] <= 60
            assert update.budget < 120
        else:
            result = update.run(batch)
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
        metrics.append(result.metrics)
    assert torch.allclose(*weights, atol=1e-9)
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-9)


def test_a_rollout_that_does_not_fit_alone_is_a_mistake_with_what_to_change(monkeypatch):
    update = PolicyUpdate(small_policy(), Rloo().build(None), resolved(tokens_per_microbatch=400))
    short_of_memory(update, 5, monkeypatch)
    with (
        pytest.raises(
            UserError, match=r"one rollout of \d+ tokens; try --gradient-checkpointing, --optimizer adamw-8bit"
        ),
        pytest.warns(UserWarning, match="from here on"),
    ):
        update.run(random_batch())
    assert all(p.grad is None for p in update.policy.model.parameters())


def test_an_optimizer_step_without_room_is_a_mistake_with_what_to_change(monkeypatch):
    update = PolicyUpdate(small_policy(), Rloo().build(None), resolved(learning_rate=1.0))

    def full() -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(update.optimizer, "step", full)
    with pytest.raises(UserError, match="for the optimizer's step; try"):
        update.run(random_batch())


def test_a_micro_batch_is_as_large_as_memory_allows():
    estimator = Estimator(shape())
    settings = dataclasses.replace(SETTINGS, prompt_tokens=24, new_tokens=40)
    rows = {n: estimator(dataclasses.replace(settings, microbatch_tokens=64 * n)) for n in (1, 3, 4)}
    there = rows[1].weights
    for n in (1, 3):
        size = microbatch_size(estimator, settings, rows[n].phases["update"] - there)
        assert size is not None
        assert size.tokens == 64 * n
        assert size.whole_groups == (n >= 2)
    assert microbatch_size(estimator, settings, rows[1].phases["update"] - there - 1) is None
    huge = microbatch_size(estimator, settings, 1e12, most=700)
    assert huge is not None
    assert huge.tokens == 700


def test_a_critic_takes_its_part_of_the_memory():
    estimator = Estimator(shape())
    alone = dataclasses.replace(SETTINGS, prompt_tokens=24, new_tokens=40)
    beside = dataclasses.replace(alone, critic="values")
    six = estimator(dataclasses.replace(alone, microbatch_tokens=6 * 64))
    free = six.phases["update"] - six.weights
    sizes = [microbatch_size(estimator, settings, free, most=10**9) for settings in (alone, beside)]
    assert None not in sizes
    assert sizes[0].tokens == 6 * 64
    assert sizes[1].tokens < 6 * 64


def test_the_size_for_a_run_is_said_or_refused(monkeypatch):
    policy, config = small_policy(dtype=torch.float32), resolved(model="init:tiny", tokens_per_microbatch=0)
    assert config.tokens_per_microbatch == 0
    monkeypatch.setattr("vantage.memory.report.free_bytes", lambda device: int(4e9))
    tokens, note = size_for(policy, config, 12)
    assert tokens > 4096
    assert note == ""
    monkeypatch.setattr("vantage.memory.report.free_bytes", lambda device: int(1e6))
    with pytest.raises(
        UserError, match=r"a rollout of 32 tokens \(prompt 12, response 20\) does not fit into the 0\.0 GB"
    ):
        size_for(policy, config, 12)
    monkeypatch.setattr("vantage.memory.report.free_bytes", lambda device: None)
    tokens, note = size_for(policy, config, 12)
    assert tokens == 4136
    assert "does not tell" in note


def test_the_operations_of_an_update_by_hand():
    config = shape()  # 3 layers of 4 heads of 4, vocabulary 50, width 8, tied
    count, trunk = 1000 + 400, 1000
    found = update_flops(config, count, [3, 1], [2, 4])
    assert found == 6 * (trunk * 10 + 400 * 6) + 6 * 3 * 4 * 4 * (25 + 25)
    assert found - update_flops(config, count, [3, 1], [2, 4], frozen=True) == 2 * (trunk * 10 + 400 * 6)
