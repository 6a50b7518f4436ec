"""T4 and T12 of the sheet, the gradient against enumeration, and cuts into micro-batches and processes."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch

from tests.helpers import small_policy, together
from vantage.enumerable import EnumerableWorld
from vantage.genac.critic import completions_batch
from vantage.genac.parsing import critic_reward
from vantage.genac.reinforce import CriticTrainer, Example, outcome_class, weights
from vantage.policy import Policy

R = [1, 1, 1, 0, 0]
REWARDS = [critic_reward(r, v) for r, v in zip(R, [0.9, 0.6, None, 0.2, 0.5])]
WEIGHTS = {
    "none": [0.99, 0.84, 0, 0.96, 0.75],
    "leave_one_out": [0.3525, 0.165, -0.885, 0.315, 0.0525],
    "leave_one_out_by_outcome": [0.57, 0.345, -0.915, 0.21, -0.21],
}


@pytest.mark.parametrize("baseline", WEIGHTS)
def test_t4_weights(baseline):
    assert pytest.approx([0.99, 0.84, 0, 0.96, 0.75]) == REWARDS
    assert weights(REWARDS, baseline, R) == pytest.approx(WEIGHTS[baseline], abs=1e-12)


LOSSES = {
    "token-mean": {"none": 0.306, "leave_one_out": -0.01575, "leave_one_out_by_outcome": -0.0105},
    "seq-mean": {"none": 1.224, "leave_one_out": -0.063, "leave_one_out_by_outcome": -0.042},
}


@pytest.mark.parametrize("aggregation", LOSSES)
@pytest.mark.parametrize("baseline", WEIGHTS)
def test_t4_loss(aggregation, baseline, monkeypatch):
    from vantage.policy import Forward

    lengths, each = [4, 2, 8, 5, 1], [-0.5, -1, -0.25, -0.2, -2]
    policy = small_policy()

    def forward(batch, **_):
        mask = batch.response_mask_BT
        rows = torch.tensor([each[int(ids[0])] for ids in batch.prompt_ids], dtype=torch.float64)
        logp = torch.where(mask, rows[:, None], 0.0).requires_grad_()
        return Forward(logp, torch.zeros_like(logp), mask, {}, batch.length_B, batch.length_B, batch.response_ids)

    monkeypatch.setattr(policy, "forward", forward)
    trainer = CriticTrainer(policy, learning_rate=0.0, aggregation=aggregation, tokens_per_microbatch=8)
    examples = [Example([i], [5] * n, reward, float(r)) for i, (n, reward, r) in enumerate(zip(lengths, REWARDS, R))]
    loss, _, tokens = trainer.gradient(examples, weights(REWARDS, baseline, R))
    assert loss == pytest.approx(LOSSES[aggregation][baseline], abs=1e-12)
    assert tokens == 20


def test_t4_a_single_sample_keeps_its_reward_and_copies_count_once():
    assert weights([0.7], "leave_one_out") == [0.7]
    assert weights([0.7, 0.2], "leave_one_out_by_outcome", [0, 1]) == [0.7, 0.2]
    found = weights([1, 1, 1, 1, 0.75], "leave_one_out_by_outcome", [1] * 5, same=["a", "a", "a", "a", "b"])
    assert found == pytest.approx([0.25] * 4 + [-0.25])
    assert weights([], "leave_one_out") == []


def test_pooled_targets_are_compared_within_their_tenth():
    assert [outcome_class(t) for t in (0.0, 0.04, 0.05, 0.375, 0.4, 1.0)] == [0, 0, 1, 4, 4, 10]


def test_t12_every_baseline_has_the_exact_gradient_in_the_mean():
    """A critic of one token among three scores (0, 5, 10) with equal logits, r = 1: enumerated over pairs of completions."""
    world = EnumerableWorld(torch.zeros(4, 3), torch.zeros(1, 3), lambda p, y: [0.0, 0.75, 1.0][y[0]], 1)
    exact = torch.tensor([-7 / 36, 2 / 36, 5 / 36], dtype=torch.float64)
    assert exact.tolist() == pytest.approx([-0.19444444, 0.05555556, 0.13888889], abs=1e-8)
    for baseline in WEIGHTS:
        policy = world.policy()
        head = policy.model.get_output_embeddings().weight
        total = torch.zeros_like(head)
        for pair in itertools.product(range(3), repeat=2):
            trainer = CriticTrainer(policy, learning_rate=0.0, aggregation="seq-mean")
            examples = [Example([3], [y], world.reward(0, (y,)), 1.0) for y in pair]
            trainer.gradient(examples, weights([e.reward for e in examples], baseline, [1, 1]))
            total -= head.grad / 9
            policy.model.zero_grad()
        assert torch.allclose(total[:, 0], exact, atol=1e-12)  # the column of the state "nothing said yet"


@pytest.mark.parametrize("baseline", WEIGHTS)
def test_with_several_states_and_outcomes_the_mean_gradient_is_that_of_the_expected_reward(baseline):
    """Two states with targets 1 and 0.25, two-token completions, one sample each: all 16 pairs of completions."""
    torch.manual_seed(0)
    theta, offset = torch.randn(3, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    world = EnumerableWorld(
        theta, offset, lambda p, y: critic_reward([1.0, 0.25][p], [0.1, 0.4, None, 0.9][2 * y[0] + y[1]]), 2
    )
    policy = world.policy()
    exact = world.exact_gradient(policy)
    head = policy.model.get_output_embeddings().weight
    probability = [world.log_probabilities(policy, p).detach().exp().tolist() for p in (0, 1)]
    total = torch.zeros_like(head)
    for a, b in itertools.product(range(4), repeat=2):
        pair = [world.responses()[a], world.responses()[b]]
        examples = [Example([2 + p], list(y), world.reward(p, y), [1.0, 0.25][p]) for p, y in enumerate(pair)]
        weight = weights([e.reward for e in examples], baseline, [outcome_class(e.target) for e in examples])
        CriticTrainer(policy, learning_rate=0.0, aggregation="seq-mean").gradient(examples, weight)
        total -= head.grad * probability[0][a] * probability[1][b]
        policy.model.zero_grad()
    assert torch.allclose(total, exact, atol=1e-12)


def examples_of(count: int) -> tuple[list[Example], list[float]]:
    examples = [
        Example(
            [5 + i % 7] * (1 + i % 4),
            [6 + (3 * i + j) % 30 for j in range(i % 5)],
            (i % 11) / 10,
            float(i % 2),
            1 + i % 2,
        )
        for i in range(count)
    ]
    return examples, weights([e.reward for e in examples], "leave_one_out_by_outcome", [e.target for e in examples])


def parameters(policy) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy.model.parameters()])


START = small_policy()  # made once: random initialisation is not made for threads


def copied() -> Policy:
    return Policy(copy.deepcopy(START.model), START.tokenizer)


def stepped(count: int, world=None, **options) -> tuple[torch.Tensor, object]:
    policy = copied()
    examples, weight = examples_of(count)
    trainer = CriticTrainer(policy, learning_rate=1e-2, world=world, **options)
    mine = range(count) if world is None else world.share(count)
    learned = trainer.step([examples[i] for i in mine], [weight[i] for i in mine])
    return parameters(policy), learned


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean"])
def test_neither_micro_batches_nor_processes_change_the_step(aggregation):
    whole, learned = stepped(23, aggregation=aggregation)
    cut, _ = stepped(23, aggregation=aggregation, tokens_per_microbatch=9)
    assert torch.allclose(whole, cut, atol=1e-9)
    for size in (2, 3):
        for found, theirs in together(size, lambda world: stepped(23, world, aggregation=aggregation)):
            assert torch.allclose(found, whole, atol=1e-9)
            assert theirs.loss == pytest.approx(learned.loss)
            assert theirs.tokens == learned.tokens


def test_weights_over_processes_are_those_of_all_rows():
    rewards, keys = [0.1 * i for i in range(10)], [i % 3 for i in range(10)]
    for baseline in WEIGHTS:
        whole = weights(rewards, baseline, keys)
        parts = together(2, lambda w, b=baseline: weights(rewards[w.rank :: 2], b, keys[w.rank :: 2], world=w))
        assert parts[0] == pytest.approx(whole[0::2], abs=1e-12)
        assert parts[1] == pytest.approx(whole[1::2], abs=1e-12)


def test_a_process_without_completions_takes_the_same_step():
    whole, _ = stepped(1 + 1, tokens_per_microbatch=50)  # rows 0 (empty) and 1
    for found, _ in together(3, lambda world: stepped(2, world)):
        assert torch.allclose(found, whole, atol=1e-9)


def test_nothing_to_learn_from_skips_the_step_on_all_processes():
    before = parameters(START)
    for examples, weight in (([], []), ([Example([5], [], 0.0, 1.0)], [0.7]), ([Example([5], [6], 1.0, 1.0)], [0.0])):

        def attempt(world, examples=examples, weight=weight):
            policy = copied()
            trainer = CriticTrainer(policy, learning_rate=1.0, weight_decay=0.1, world=world)
            return trainer.step(examples, weight), parameters(policy)

        for learned, found in together(2, attempt):
            assert not learned.stepped
            assert torch.equal(found, before)


def test_prompts_get_no_loss_and_a_completion_with_weight_becomes_likelier():
    policy = small_policy()
    trainer = CriticTrainer(policy, learning_rate=1e-2)
    batch = completions_batch([([5, 6, 7], [8, 9])])
    before = float(policy.forward(batch).logp_MT.detach().sum())
    learned = trainer.step([Example([5, 6, 7], [8, 9], 1.0, 1.0)], [1.0])
    assert learned.loss == pytest.approx(-before / 2)
    assert learned.tokens == 2
    assert float(policy.forward(batch).logp_MT.detach().sum()) > before + 0.1
    assert math.isfinite(learned.entropy)


def test_equal_completions_are_one_row_with_the_sum_of_their_weights():
    one, two = Example([5, 6], [7, 8], 0.9, 1.0), Example([5, 6], [9], 0.2, 1.0)
    rows = [one, two, one, dataclasses.replace(one, scale=2.0)]
    found = []
    for policy, merge in ((copied(), True), (copied(), False)):
        trainer = CriticTrainer(policy, learning_rate=0.0)
        if merge:
            seen = []
            forward = policy.forward
            policy.forward = lambda batch, seen=seen, forward=forward: seen.append(batch.size) or forward(batch)
            loss, entropy, tokens = trainer.gradient(rows, [0.5, -0.25, 0.1, 0.3])
            assert sum(seen) == 2
            found.append((loss, entropy, tokens))
        else:  # the definition, a row at a time
            parts = [policy.forward(completions_batch([(e.prompt_ids, e.response_ids)])) for e in rows]
            terms = [w * e.scale * f.logp_MT.sum() for f, e, w in zip(parts, rows, [0.5, -0.25, 0.1, 0.3])]
            loss = -torch.stack(terms).sum() / 7
            loss.backward()
            found.append((float(loss.detach()), sum(float(f.entropy_MT.detach().sum()) for f in parts), 7))
        found.append(torch.cat([p.grad.reshape(-1) for p in policy.model.parameters()]))
    assert found[0] == pytest.approx(found[2])
    torch.testing.assert_close(found[1], found[3], rtol=0, atol=1e-6)  # the norms are float32 inside
