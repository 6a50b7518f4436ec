"""The clipped surrogate and its aggregations: the sheet's T8, gradients, plain loops, and TRL's own loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vantage.config import TrainConfig, resolve
from vantage.objectives import MAX_LOG_RATIO, Objective, clipped_surrogate, rollout_weights, weighted_sum

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def aggregate(loss_BT: Tensor, mask_BT: Tensor, aggregation: Any, constant: int = 1) -> Tensor:
    return weighted_sum(loss_BT, mask_BT, rollout_weights(aggregation, mask_BT.sum(1), constant))


# --- T8 -------------------------------------------------------------------------------------------------------------

T8_RATIO = f64([[1, 1.5, 0.5, 1.1], [0.7, 1.3, 12, 1]])
T8_MASK = torch.tensor([[True] * 4, [True, True, True, False]])
T8_ADVANTAGE = f64([[0.67] * 4, [-0.48] * 4])
T8 = Objective(clip_low=0.2, clip_high=0.28, dual_clip=10.0)
T8_LOSS = [-0.67, -0.8576, -0.335, -0.737, 0.384, 0.624, 4.8]


def t8_tokens(objective: Objective = T8) -> Any:
    return clipped_surrogate(T8_RATIO.log(), torch.zeros_like(T8_RATIO), T8_ADVANTAGE, objective)


def test_t8_token_losses() -> None:
    found = t8_tokens()
    assert found.loss_MT[T8_MASK].tolist() == pytest.approx(T8_LOSS, abs=1e-12)
    torch.testing.assert_close(found.ratio_MT, T8_RATIO, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("aggregation", "constant", "wanted"),
    [
        ("token-mean", 1, 0.458342857142857),
        ("seq-mean-token-mean", 1, 0.64305),
        ("seq-mean-token-sum", 1, 1.6042),
        ("seq-mean-token-sum-norm", 1, 1.6042),
        ("seq-mean-token-sum-norm", 8, 1.6042 / 8),
    ],
)
def test_t8_aggregations(aggregation: str, constant: int, wanted: float) -> None:
    assert float(aggregate(t8_tokens().loss_MT, T8_MASK, aggregation, constant)) == pytest.approx(wanted, abs=1e-12)


def test_t8_clip_fraction() -> None:
    # 1.5 above 1.28 with a positive advantage, 0.7 below 0.8 with a negative one.
    found = t8_tokens().clipped_MT & T8_MASK
    assert found.nonzero().tolist() == [[0, 1], [1, 0]]
    assert float(found.sum() / T8_MASK.sum()) == pytest.approx(2 / 7)


def test_t8_without_dual_clip_a_large_ratio_is_paid_in_full() -> None:
    found = t8_tokens(Objective(clip_low=0.2, clip_high=0.28))
    assert found.loss_MT[1].tolist() == pytest.approx([0.384, 0.624, 5.76, 0.48], abs=1e-12)
    assert (found.clipped_MT & T8_MASK).nonzero().tolist() == [[0, 1], [1, 0]]


# --- the surrogate, token by token ----------------------------------------------------------------------------------

CLIPS = [(0.2, 0.2, 0.0), (0.2, 0.28, 0.0), (0.2, 0.28, 10.0), (0.1, 0.3, 2.0)]
RATIOS = [0.01, 0.5, 0.79, 0.81, 0.95, 1.0, 1.05, 1.19, 1.21, 1.27, 1.29, 1.9, 2.1, 5.0, 9.9, 10.1, 40.0]


def loop_loss(ratio: float, advantage: float, low: float, high: float, dual: float) -> tuple[float, float]:
    """Loss of a token and its derivative by the log-prob, from the definition."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    plain, clipped = ratio * advantage, bounded * advantage
    objective, slope = (plain, plain) if plain <= clipped else (clipped, 0.0)
    if dual and advantage < 0 and objective < dual * advantage:
        objective, slope = dual * advantage, 0.0
    return -objective, -slope


@pytest.mark.parametrize(("low", "high", "dual"), CLIPS)
@pytest.mark.parametrize("advantage", [0.7, -0.7, 0.0])
def test_losses_and_gradients_equal_the_definition(low: float, high: float, dual: float, advantage: float) -> None:
    old = torch.linspace(-3, -0.5, len(RATIOS), dtype=torch.float64)[None]
    logp = (old + f64([RATIOS]).log()).requires_grad_()
    found = clipped_surrogate(logp, old, torch.full_like(old, advantage), Objective(low, high, dual))
    found.loss_MT.sum().backward()
    wanted = [loop_loss(r, advantage, low, high, dual) for r in RATIOS]
    assert found.loss_MT[0].tolist() == pytest.approx([loss for loss, _ in wanted], abs=1e-12)
    assert logp.grad is not None
    assert logp.grad[0].tolist() == pytest.approx([slope for _, slope in wanted], abs=1e-12)


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_the_gradient_before_any_update_is_the_policy_gradient(advantage: float) -> None:
    logp = f64([[-1.2, -0.3]]).requires_grad_()
    found = clipped_surrogate(logp, logp.detach(), torch.full((1, 2), advantage, dtype=torch.float64), T8)
    found.loss_MT.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [[-advantage, -advantage]]
    assert not found.clipped_MT.any()


def test_a_token_counts_as_clipped_where_the_interval_removes_its_gradient() -> None:
    for advantage in (0.7, -0.7):
        old = torch.zeros((1, len(RATIOS)), dtype=torch.float64)
        logp = f64([RATIOS]).log().requires_grad_()
        found = clipped_surrogate(logp, old, torch.full_like(old, advantage), Objective(0.2, 0.28))
        found.loss_MT.sum().backward()
        assert logp.grad is not None
        assert torch.equal(found.clipped_MT, logp.grad == 0)
        assert found.clipped_MT.any()


def test_the_dual_clip_caps_negative_advantages_only() -> None:
    old = torch.zeros((1, 2), dtype=torch.float64)
    logp = f64([[30.0, 30.0]]).log()
    found = clipped_surrogate(logp, old, f64([[-1.0, 1.0]]), Objective(0.2, 100.0, dual_clip=3.0))
    assert found.loss_MT.tolist() == [[3.0, pytest.approx(-30.0)]]


def test_every_token_has_its_own_advantage() -> None:
    zero = torch.zeros((2, 2), dtype=torch.float64)
    advantage = f64([[1, -2], [0.5, 0]])
    assert torch.equal(clipped_surrogate(zero, zero, advantage, T8).loss_MT, -advantage)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [25.0, 1000.0, -1000.0])
def test_a_huge_log_ratio_gives_a_finite_loss_and_gradient(gap: float, dtype: torch.dtype) -> None:
    for advantage in (1.0, -1.0):
        old = torch.full((1, 1), -gap, dtype=dtype)
        logp = torch.zeros((1, 1), dtype=dtype, requires_grad=True)
        found = clipped_surrogate(logp, old, torch.full((1, 1), advantage, dtype=dtype), Objective(0.2, 0.28))
        found.loss_MT.sum().backward()
        assert found.loss_MT.isfinite().all()
        assert logp.grad is not None
        assert logp.grad.isfinite().all()
        assert float(found.ratio_MT) == pytest.approx(math.exp(math.copysign(MAX_LOG_RATIO, gap)), rel=1e-5)


def test_neither_ratio_nor_clip_mark_carries_a_gradient() -> None:
    logp = torch.zeros((1, 1), requires_grad=True)
    found = clipped_surrogate(logp, torch.zeros((1, 1)), torch.ones((1, 1)), T8)
    assert found.loss_MT.requires_grad
    assert not found.ratio_MT.requires_grad
    assert not found.clipped_MT.requires_grad


# --- aggregation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregation", "wanted"),
    [
        ("token-mean", [1 / 8] * 3),
        ("seq-mean-token-mean", [1 / 6, 1 / 15, 1 / 3]),
        ("seq-mean-token-sum", [1 / 3] * 3),
        ("seq-mean-token-sum-norm", [1 / 21] * 3),
    ],
)
def test_weights_of_rollouts_of_2_5_and_1_tokens(aggregation: Any, wanted: list[float]) -> None:
    found = rollout_weights(aggregation, torch.tensor([2, 5, 1]), 7)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("aggregation", AGGREGATIONS[2:])
def test_the_unbiased_aggregations_ignore_the_lengths(aggregation: Any) -> None:
    short, long = (rollout_weights(aggregation, torch.tensor(lengths), 9) for lengths in ([1, 1, 1], [9, 4, 0]))
    assert torch.equal(short, long)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_response_adds_nothing_and_counts_as_a_rollout(aggregation: Any) -> None:
    weights = rollout_weights(aggregation, torch.tensor([0, 4]), 4)
    assert weights.isfinite().all()
    mask = torch.tensor([[False] * 4, [True] * 4])
    wanted = {"token-mean": 1.0, "seq-mean-token-mean": 0.5, "seq-mean-token-sum": 2.0, "seq-mean-token-sum-norm": 0.5}
    assert float(aggregate(torch.ones((2, 4), dtype=torch.float64), mask, aggregation, 4)) == wanted[aggregation]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_only_empty_responses_give_zero(aggregation: Any) -> None:
    mask = torch.zeros((2, 3), dtype=torch.bool)
    assert float(aggregate(torch.ones((2, 3), dtype=torch.float64), mask, aggregation, 3)) == 0.0


def test_what_lies_outside_of_the_mask_does_not_matter() -> None:
    mask = torch.tensor([[True, False, False], [True, True, False]])
    for outside in (0.0, 7.0, math.nan, math.inf):
        value = torch.where(mask, f64([[1, 0, 0], [2, 3, 0]]), outside)
        assert float(weighted_sum(value, mask, f64([0.5, 10]))) == 50.5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_cutting_into_micro_batches_changes_nothing(aggregation: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    length = torch.tensor([3, 7, 1, 0, 5, 7, 2])
    mask = torch.arange(7)[None] < length[:, None]
    logp = torch.randn((7, 7), generator=draw, dtype=torch.float64)
    loss = clipped_surrogate(
        logp, torch.zeros_like(logp), torch.randn((7, 1), generator=draw, dtype=torch.float64), T8
    ).loss_MT
    weights = rollout_weights(aggregation, length, 7)
    whole = weighted_sum(loss, mask, weights)
    for rows in ([[0, 1, 2, 3, 4, 5, 6]], [[6, 0], [3], [5, 1, 2], [4]], [[i] for i in range(7)]):
        parts = []
        for part in rows:
            width = int(length[part].max())
            parts.append(weighted_sum(loss[part, :width], mask[part, :width], weights[part]))
        assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregations_equal_plain_loops(aggregation: str) -> None:
    draw = torch.Generator().manual_seed(1)
    loss = torch.randn((5, 6), generator=draw, dtype=torch.float64)
    lengths = [6, 1, 4, 0, 3]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    sums = [math.fsum(row[:n]) for row, n in zip(loss.tolist(), lengths)]
    wanted = {
        "token-mean": sum(sums) / 14,
        "seq-mean-token-mean": sum(s / max(n, 1) for s, n in zip(sums, lengths)) / 5,
        "seq-mean-token-sum": sum(sums) / 5,
        "seq-mean-token-sum-norm": sum(sums) / (5 * 6),
    }
    assert float(aggregate(loss, mask, aggregation, 6)) == pytest.approx(wanted[aggregation], abs=1e-12)


def test_the_gradient_of_an_aggregate_is_the_rollouts_weight_on_its_own_tokens() -> None:
    value = torch.randn((3, 4), dtype=torch.float64, requires_grad=True)
    mask = torch.arange(4)[None] < torch.tensor([2, 4, 0])[:, None]
    aggregate(value, mask, "seq-mean-token-mean").backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[pytest.approx(1 / 6)] * 2 + [0, 0], [pytest.approx(1 / 12)] * 4, [0] * 4]


def test_only_constant_weights_keep_an_independent_baseline_harmless() -> None:
    """A policy over one bit that stops at once or writes two tokens: E[b·∇log π] by enumeration for every aggregation.

    With b = 1 for every rollout the expected gradient of Σ weight·(−b)·log π(y) is zero only if the weight does not
    depend on the sampled length (one rollout a batch, so that token-mean is 1/length as well).
    """
    found = {}
    for aggregation in AGGREGATIONS:
        theta = f64(0.3).requires_grad_()
        stop, go = torch.nn.functional.logsigmoid(theta), torch.nn.functional.logsigmoid(-theta)
        total = torch.zeros((), dtype=torch.float64)
        for logp in (stop[None, None], torch.stack([go, f64(0.0)])[None]):
            mask = torch.ones(logp.shape, dtype=torch.bool)
            tokens = clipped_surrogate(logp, logp.detach(), -torch.ones(logp.shape, dtype=torch.float64), T8)
            total = total + logp.detach().sum().exp() * aggregate(tokens.loss_MT, mask, aggregation, 2)
        (gradient,) = torch.autograd.grad(total, theta)
        found[aggregation] = float(gradient)
    assert found["seq-mean-token-sum"] == pytest.approx(0, abs=1e-15)
    assert found["seq-mean-token-sum-norm"] == pytest.approx(0, abs=1e-15)
    assert abs(found["token-mean"]) > 0.1
    assert abs(found["seq-mean-token-mean"]) > 0.1


# --- configuration --------------------------------------------------------------------------------------------------


def test_the_objective_is_taken_from_a_resolved_configuration() -> None:
    with pytest.raises(ValueError, match="resolved"):
        Objective.of(TrainConfig())
    config = TrainConfig(clip_high=0.5, entropy_coef=0.01)
    found = Objective.of(resolve(config, max_new_tokens=24, stop=(), reward_range=(0.0, 1.0)))
    assert found == Objective(0.2, 0.5, 10.0, "seq-mean-token-sum-norm", 24, 0.01)


def test_an_explicit_zero_switches_a_clip_off_or_closes_it() -> None:
    config = TrainConfig(dual_clip=0.0, clip_low=0.0)
    found = Objective.of(resolve(config, max_new_tokens=24, stop=(), reward_range=(0.0, 1.0)))
    assert found.dual_clip == 0.0
    assert found.clip_low == 0.0
    assert found.clip_high == 0.28


# --- against TRL ----------------------------------------------------------------------------------------------------

TRL_LOSSES = {
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}


def trl_trainer(folder: Path, model: Any = None, **options: Any) -> Any:
    """A trainer with the given model or a random one; only its `_compute_loss` is used."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from vantage import tiny

    fresh, tokenizer = tiny.fresh(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=9,
        **({"beta": 0.0} | options),
    )
    trainer = trl.GRPOTrainer(
        model=fresh if model is None else model,
        processing_class=tokenizer,
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 6),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("delta", [None, 2.0])
@pytest.mark.parametrize("loss_type", TRL_LOSSES)
def test_loss_and_gradient_equal_trl(loss_type: str, delta: float | None, tmp_path: Path) -> None:
    """TRL's `_compute_loss` on random log-probs, ratios on both sides of the clip; its `delta` is the dual clip."""
    trainer = trl_trainer(tmp_path, loss_type=loss_type, epsilon=0.2, epsilon_high=0.28, delta=delta)
    draw = torch.Generator().manual_seed(4)
    old = -2 * torch.rand((6, 9), generator=draw, dtype=torch.float64)
    new = old + 0.6 * torch.randn((6, 9), generator=draw, dtype=torch.float64)
    advantage = torch.randn(6, generator=draw, dtype=torch.float64)
    length = torch.tensor([9, 1, 4, 7, 2, 5])
    mask = torch.arange(9)[None] < length[:, None]

    theirs_logp = new.clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (theirs_logp, torch.zeros_like(old), None)
    ids = torch.zeros((6, 9), dtype=torch.long)
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids,
            "prompt_mask": torch.ones_like(ids),
            "completion_ids": ids,
            "completion_mask": mask.long(),
            "advantages": advantage,
            "old_per_token_logps": old,
            "num_items_in_batch": mask.sum(),
        },
    )
    theirs.backward()

    ours_logp = new.clone().requires_grad_()
    objective = Objective(0.2, 0.28, delta or 0.0)
    tokens = clipped_surrogate(ours_logp, old, advantage[:, None].expand(6, 9), objective)
    ours = aggregate(tokens.loss_MT, mask, TRL_LOSSES[loss_type], 9)
    ours.backward()

    assert 0.1 < float((tokens.clipped_MT & mask).sum() / mask.sum()) < 0.9
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours_logp.grad, theirs_logp.grad, rtol=0, atol=1e-6)
