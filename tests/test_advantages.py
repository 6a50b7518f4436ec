"""Group advantages against worked numbers, plain Python loops and TRL's own trainers (cases: T1, T7, C1 of the POISE sheet)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vantage.advantages import (
    group_spread,
    group_sums,
    grpo_advantages,
    leave_one_out,
    over_tokens,
    rloo_advantages,
)

EPS = 1e-4


def f64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def everyone(values: Sequence[float]) -> Tensor:
    return torch.ones(len(values), dtype=torch.bool)


def assert_close(found: Tensor, wanted: Sequence[float] | Tensor, tolerance: float = 1e-12) -> None:
    wanted = wanted if isinstance(wanted, Tensor) else f64(wanted)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, equal_nan=True, check_dtype=False)


# --- worked numbers -------------------------------------------------------------------------------------------------

T1_REWARD = f64([1, 0, 0, 1, 1, 1])
T1_VALUE = f64([0.62, 0.15, 0.48, 0.33, 0.91, 1.0])
T1_GROUP = torch.tensor([0, 1, 1, 0, 2, 2])


def test_t1_pairs_get_the_partners_reward_as_target_and_the_partners_prediction_as_baseline() -> None:
    target = leave_one_out(T1_REWARD, T1_GROUP, everyone(T1_REWARD))
    baseline = leave_one_out(T1_VALUE, T1_GROUP, everyone(T1_VALUE))
    assert_close(target, [1, 0, 0, 1, 1, 1])
    assert_close(baseline, [0.33, 0.48, 0.15, 0.62, 1.0, 0.91])
    advantage = T1_REWARD - baseline
    assert_close(advantage, [0.67, -0.48, -0.15, 0.38, 0, 0.09])
    assert float(T1_REWARD.var(correction=0)) == pytest.approx(2 / 9, abs=1e-12)
    assert float(advantage.var(correction=0)) == pytest.approx(0.135158333333333, abs=1e-12)
    assert 1 - float(advantage.var(correction=0) / T1_REWARD.var(correction=0)) == pytest.approx(0.3917875, abs=1e-12)


def test_t1_rloo_is_zero_where_siblings_agree() -> None:
    assert rloo_advantages(T1_REWARD, T1_GROUP, everyone(T1_REWARD)).tolist() == [0.0] * 6


def test_t1_groups_of_four_average_three_siblings() -> None:
    group = torch.zeros(4, dtype=torch.long)
    reward, value = f64([1, 0, 0, 1]), f64([0.7, 0.2, 0.4, 0.5])
    assert_close(leave_one_out(reward, group, everyone(reward)), [1 / 3, 2 / 3, 2 / 3, 1 / 3])
    baseline = leave_one_out(value, group, everyone(value))
    assert_close(baseline, [1.1 / 3, 1.6 / 3, 1.4 / 3, 1.3 / 3])
    assert_close(reward - baseline, [1.9 / 3, -1.6 / 3, -1.4 / 3, 1.7 / 3])
    assert_close(rloo_advantages(reward, group, everyone(reward)), [2 / 3, -2 / 3, -2 / 3, 2 / 3])


def test_c1_interleaved_pairs_with_a_fractional_reward() -> None:
    reward, value, group = f64([1, 0.5, 0, 1]), f64([0.1, 0.2, 0.9, 0.8]), torch.tensor([0, 1, 0, 1])
    assert_close(leave_one_out(reward, group, everyone(reward)), [0, 1, 1, 0.5])
    baseline = leave_one_out(value, group, everyone(value))
    assert_close(baseline, [0.9, 0.8, 0.1, 0.2])
    assert_close(reward - baseline, [0.1, -0.3, -0.1, 0.8])
    assert_close(rloo_advantages(reward, group, everyone(reward)), [1, -0.5, -1, 0.5])


def test_c1_groups_of_three() -> None:
    reward, value, group = f64([0, 0.5, 1]), f64([0.2, 0.4, 0.9]), torch.zeros(3, dtype=torch.long)
    assert_close(leave_one_out(reward, group, everyone(reward)), [0.75, 0.5, 0.25])
    baseline = leave_one_out(value, group, everyone(value))
    assert_close(baseline, [0.65, 0.55, 0.3])
    assert_close(reward - baseline, [-0.65, -0.05, 0.7])


def test_grpo_divides_by_the_sample_standard_deviation() -> None:
    # Mean 1/2; squared deviations sum to 1/2, over n − 1 = 1 → std 1/√2; over n it would have been 1/2.
    reward, group = f64([1, 0]), torch.zeros(2, dtype=torch.long)
    wanted = 0.5 / (math.sqrt(0.5) + EPS)
    assert_close(grpo_advantages(reward, group, everyone(reward), EPS), [wanted, -wanted])


def test_grpo_without_scale_subtracts_the_group_mean_and_does_nothing_else() -> None:
    reward, group = f64([1, 0, 0, 1, 0.25]), torch.tensor([7, 7, 7, 3, 3])
    found = grpo_advantages(reward, group, everyone(reward), EPS, scale=False)
    assert_close(found, [2 / 3, -1 / 3, -1 / 3, 0.375, -0.375])


# --- degenerate groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_a_group_of_equal_rewards_gets_exact_zeros(dtype: torch.dtype, method: str) -> None:
    # Not "small": Adam divides by the gradient's own size, so a residue of rounding could become a step.
    residues = {}
    for reward in (0.0, 1.0, 0.1, 0.7, 1 / 3, -2.3):
        for size in (2, 3, 7, 8):
            values = torch.full((size,), reward, dtype=dtype)
            group, valid = torch.zeros(size, dtype=torch.long), torch.ones(size, dtype=torch.bool)
            if method == "rloo":
                found = rloo_advantages(values, group, valid)
            else:
                found = grpo_advantages(values, group, valid, EPS, scale=method == "grpo")
            residues[reward, size] = float(found.abs().max())
    assert {key: size for key, size in residues.items() if size} == {}


def test_equal_rewards_in_one_group_leave_the_other_groups_alone() -> None:
    reward, group = f64([0.1, 0.1, 0.1, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    found = grpo_advantages(reward, group, everyone(reward), EPS, scale=False)
    assert found[:3].tolist() == [0.0] * 3
    assert_close(found[3:], [2 / 3, -1 / 3, -1 / 3])


def test_an_unscorable_member_has_no_advantage_and_no_part_in_its_siblings_statistics() -> None:
    nan = math.nan
    reward, group = f64([1, nan, 0, 0.5, 1, 0]), torch.tensor([0, 0, 0, 0, 1, 1])
    valid = torch.tensor([True, False, True, True, True, True])
    assert_close(rloo_advantages(reward, group, valid), [0.75, 0, -0.75, 0, 1, -1])
    std = 0.5  # of 1, 0, ½ with n − 1
    wanted = [0.5 / (std + EPS), 0, -0.5 / (std + EPS), 0]
    assert_close(grpo_advantages(reward, group, valid, EPS)[:4], wanted)
    # The unscorable member itself has three siblings, whose mean predicts it.
    assert_close(leave_one_out(reward, group, valid), [0.25, 0.5, 0.75, 0.5, 0, 1])


def test_the_reward_of_an_unscorable_member_is_never_looked_at() -> None:
    group, valid = torch.tensor([0, 0, 0]), torch.tensor([True, True, False])
    results = []
    for hidden in (math.nan, 0.0, 1e30, math.inf):
        reward = f64([1, 0.25, hidden])
        results.append(
            [
                leave_one_out(reward, group, valid),
                rloo_advantages(reward, group, valid),
                grpo_advantages(reward, group, valid, EPS),
                group_spread(reward, group, valid),
            ]
        )
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)
    assert_close(results[0][0], [0.25, 1, 0.625])


def test_a_lone_rollout_has_no_baseline_and_no_advantage() -> None:
    reward, group = f64([1, 0.3]), torch.tensor([4, 9])
    assert leave_one_out(reward, group, everyone(reward)).isnan().all()
    assert rloo_advantages(reward, group, everyone(reward)).tolist() == [0.0, 0.0]
    for scale in (True, False):
        assert grpo_advantages(reward, group, everyone(reward), EPS, scale=scale).tolist() == [0.0, 0.0]


def test_the_only_scorable_member_of_a_group_has_no_advantage() -> None:
    reward, group = f64([1, math.nan, math.nan]), torch.zeros(3, dtype=torch.long)
    valid = torch.tensor([True, False, False])
    assert_close(leave_one_out(reward, group, valid), [math.nan, 1, 1])
    assert rloo_advantages(reward, group, valid).tolist() == [0.0] * 3
    assert grpo_advantages(reward, group, valid, EPS).tolist() == [0.0] * 3


def test_a_group_without_any_scorable_member_is_zero_everywhere() -> None:
    reward, group = f64([math.nan, math.nan, 1, 0]), torch.tensor([0, 0, 1, 1])
    valid = torch.tensor([False, False, True, True])
    assert leave_one_out(reward, group, valid)[:2].isnan().all()
    assert_close(rloo_advantages(reward, group, valid), [0, 0, 1, -1])
    assert grpo_advantages(reward, group, valid, EPS)[:2].tolist() == [0.0, 0.0]
    assert_close(group_spread(reward, group, valid), [0, 0, 1, 1])


def test_an_empty_batch_gives_empty_results() -> None:
    nothing, group, valid = f64([]), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
    assert leave_one_out(nothing, group, valid).shape == (0,)
    assert rloo_advantages(nothing, group, valid).shape == (0,)
    assert grpo_advantages(nothing, group, valid, EPS).shape == (0,)
    assert group_spread(nothing, group, valid).shape == (0,)


def test_inputs_are_left_as_they_were() -> None:
    reward, group = f64([1, math.nan, 0.5]), torch.zeros(3, dtype=torch.long)
    valid = torch.tensor([True, False, True])
    before = reward.clone()
    grpo_advantages(reward, group, valid, EPS)
    rloo_advantages(reward, group, valid)
    assert_close(reward, before, 0)


# --- over the tokens ------------------------------------------------------------------------------------------------


def test_every_response_token_gets_the_rollouts_number_and_padding_gets_zero() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    found = over_tokens(f64([0.5, 9.0, -2.0]), mask)
    assert_close(found, f64([0.5, 0.5, 0, 0, 0, 0, -2, -2, -2]).reshape(3, 3), 0)
    assert found.dtype == torch.float64


def test_an_unknown_value_stays_nan_on_its_own_tokens_only() -> None:
    found = over_tokens(f64([math.nan, 1.0]), torch.tensor([[True, False], [True, True]]))
    assert found[0, 0].isnan()
    assert_close(found.flatten()[1:], [0, 1, 1], 0)


# --- against loops --------------------------------------------------------------------------------------------------


def random_batch(seed: int) -> tuple[list[float], list[int], list[bool]]:
    """Rewards, non-contiguous group labels of sizes 1 to 6 in random order, and which rollouts are scorable."""
    draw = random.Random(seed)
    labels = [label for label in draw.sample(range(-50, 50), 7) for _ in range(draw.randint(1, 6))]
    draw.shuffle(labels)
    rewards = [draw.choice([0.0, 1.0, draw.random(), 3 * draw.random() - 1]) for _ in labels]
    return rewards, labels, [draw.random() < 0.85 for _ in labels]


def loop_leave_one_out(rewards: list[float], labels: list[int], valid: list[bool]) -> list[float]:
    found = []
    for i, label in enumerate(labels):
        others = [r for j, r in enumerate(rewards) if j != i and labels[j] == label and valid[j]]
        found.append(math.fsum(others) / len(others) if others else math.nan)
    return found


def loop_grpo(rewards: list[float], labels: list[int], valid: list[bool], scale: bool) -> list[float]:
    found = []
    for i, label in enumerate(labels):
        mine = [r for j, r in enumerate(rewards) if labels[j] == label and valid[j]]
        if not valid[i] or len(mine) < 2:
            found.append(0.0)
            continue
        mean = math.fsum(mine) / len(mine)
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in mine) / (len(mine) - 1))
        found.append((rewards[i] - mean) / (std + EPS) if scale else rewards[i] - mean)
    return found


@pytest.mark.parametrize("seed", range(25))
def test_vectorised_results_equal_plain_loops(seed: int) -> None:
    rewards, labels, valid = random_batch(seed)
    arguments = f64(rewards), torch.tensor(labels), torch.tensor(valid)
    target = loop_leave_one_out(rewards, labels, valid)
    assert_close(leave_one_out(*arguments), target)
    rloo = [r - b if ok and not math.isnan(b) else 0.0 for r, b, ok in zip(rewards, target, valid)]
    assert_close(rloo_advantages(*arguments), rloo)
    for scale in (True, False):
        assert_close(grpo_advantages(*arguments, EPS, scale=scale), loop_grpo(rewards, labels, valid, scale), 1e-10)
    for i, label in enumerate(labels):
        mine = [r for j, r in enumerate(rewards) if labels[j] == label and valid[j]]
        assert float(group_sums(*arguments)[0][i]) == pytest.approx(math.fsum(mine), abs=1e-12)
        assert float(group_sums(*arguments)[1][i]) == len(mine)
        assert float(group_spread(*arguments)[i]) == (max(mine) - min(mine) if mine else 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_names_of_groups_do_not_matter(seed: int) -> None:
    rewards, labels, valid = random_batch(seed)
    reward, group, ok = f64(rewards), torch.tensor(labels), torch.tensor(valid)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    for function in (leave_one_out, rloo_advantages, lambda *a: grpo_advantages(*a, EPS)):
        straight = function(reward, group, ok)
        assert_close(function(reward[order], 1000 - group[order], ok[order]), straight[order])


@pytest.mark.parametrize("seed", range(5))
def test_the_own_reward_does_not_move_the_own_baseline(seed: int) -> None:
    rewards, labels, valid = random_batch(seed)
    group, ok = torch.tensor(labels), torch.tensor(valid)
    before = leave_one_out(f64(rewards), group, ok)
    for i in range(len(rewards)):
        changed = f64(rewards)
        changed[i] = 1 - changed[i]
        after = leave_one_out(changed, group, ok)
        assert_close(after[i], before[i], 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_advantages_sum_to_zero_in_every_group_and_rloo_is_dr_grpo_enlarged(seed: int) -> None:
    # R_i − mean of the others = (R_i − mean of all)·G/(G − 1).
    draw = torch.Generator().manual_seed(seed)
    reward = torch.rand(24, generator=draw, dtype=torch.float64)
    group = torch.arange(24) // 4
    rloo = rloo_advantages(reward, group, everyone(reward))
    centred = grpo_advantages(reward, group, everyone(reward), EPS, scale=False)
    assert_close(rloo, centred * 4 / 3)
    assert_close(rloo.reshape(6, 4).sum(1), [0.0] * 6)


# --- identities of the variance (T7) --------------------------------------------------------------------------------


def test_t7_mean_square_of_a_cross_baseline_is_bernoulli_variance_plus_error_of_the_baseline() -> None:
    # Enumerate both members of a pair: rewards Bernoulli(V), predictions drawn from a small table, independent given x.
    table = {0.25: [(0.1, 0.5), (0.6, 0.5)], 0.8: [(0.9, 0.25), (0.5, 0.75)]}
    expected_square = bernoulli = error = 0.0
    for value, predictions in table.items():
        bernoulli += value * (1 - value) / 2
        error += sum(p * (g - value) ** 2 for g, p in predictions) / 2
        for r1 in (0, 1):
            for g2, p2 in predictions:
                weight = (value if r1 else 1 - value) * p2 / 2
                pair = leave_one_out(f64([math.pi, g2]), torch.tensor([0, 0]), torch.tensor([True, True]))
                expected_square += weight * (r1 - float(pair[0])) ** 2
    assert expected_square == pytest.approx(bernoulli + error, abs=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_t7_rloo_of_n_rollouts_has_n_over_n_minus_1_times_the_bernoulli_variance(size: int) -> None:
    value = 0.3
    expected = 0.0
    for code in range(2**size):
        reward = f64([code >> k & 1 for k in range(size)])
        weight = value ** float(reward.sum()) * (1 - value) ** (size - float(reward.sum()))
        advantage = rloo_advantages(reward, torch.zeros(size, dtype=torch.long), everyone(reward))
        expected += weight * float((advantage**2).mean())
    assert expected == pytest.approx(value * (1 - value) * size / (size - 1), abs=1e-12)


def test_t7_numbers_of_the_sheet_fit_together() -> None:
    """The enumerable policy's published E[A²], E[V(1−V)] and MSE_g, recomputed from its definition."""
    squares = enumerate_toy()
    assert squares["cross"] == pytest.approx(0.299259939188497, abs=1e-12)
    assert squares["bernoulli"] == pytest.approx(0.239209948351763, abs=1e-12)
    assert squares["error"] == pytest.approx(0.0600499908367342, abs=1e-12)
    assert squares["rloo"] == pytest.approx(0.478419896703526, abs=1e-12)
    assert squares["cross"] == pytest.approx(squares["bernoulli"] + squares["error"], abs=1e-12)
    assert squares["rloo"] == pytest.approx(2 * squares["bernoulli"], abs=1e-12)
    assert 1 + squares["bernoulli"] / squares["error"] == pytest.approx(4.983513486323994, abs=1e-10)


def toy_responses(offset: Sequence[float]) -> list[tuple[float, float, float]]:
    """Probability, reward and prediction of the 15 responses of T6's policy for one prompt."""
    theta = {None: (0.2, -0.1, 0.0), 0: (-0.3, 0.4, 0.1), 1: (0.5, 0.0, -0.2)}
    finished: list[tuple[float, list[int]]] = []
    open_ones: list[tuple[float, list[int]]] = [(1.0, [])]
    while open_ones:
        probability, tokens = open_ones.pop()
        logits = [t + o for t, o in zip(theta[tokens[-1] if tokens else None], offset)]
        total = sum(math.exp(z) for z in logits)
        for token, logit in enumerate(logits):
            grown = (probability * math.exp(logit) / total, [*tokens, token])
            (finished if token == 2 or len(grown[1]) == 3 else open_ones).append(grown)
    found = []
    for probability, tokens in finished:
        features = len(tokens) / 3, tokens.count(0) / 3, float(tokens[-1] == 1)
        raw = -0.4 * features[0] + 0.9 * features[1] + 0.25 * features[2] + 0.5
        found.append((probability, float(tokens.count(0) % 2), min(max(raw, 0.0), 1.0)))
    return found


def enumerate_toy() -> dict[str, float]:
    """Expected squares over both prompts and all 15 × 15 pairs, advantages from the functions under test."""
    totals = dict.fromkeys(("cross", "rloo", "bernoulli", "error"), 0.0)
    for offset in ((0.0, 0.0, 0.0), (0.6, -0.4, 0.1)):
        responses = toy_responses(offset)
        assert len(responses) == 15
        value = sum(p * r for p, r, _ in responses)
        totals["bernoulli"] += value * (1 - value) / 2
        totals["error"] += sum(p * (g - value) ** 2 for p, _, g in responses) / 2
        pairs = [(a, b) for a in responses for b in responses]
        weight = f64([a[0] * b[0] / 2 for a, b in pairs])
        group = torch.arange(len(pairs)).repeat_interleave(2)
        reward = f64([x[1] for pair in pairs for x in pair])
        prediction = f64([x[2] for pair in pairs for x in pair])
        cross = reward - leave_one_out(prediction, group, everyone(reward))
        rloo = rloo_advantages(reward, group, everyone(reward))
        totals["cross"] += float((weight * (cross**2).reshape(-1, 2).mean(1)).sum())
        totals["rloo"] += float((weight * (rloo**2).reshape(-1, 2).mean(1)).sum())
    return totals


# --- against TRL ----------------------------------------------------------------------------------------------------


def trl_advantages(method: str, rewards: Sequence[float | None], size: int, folder: Path, **options: Any) -> Tensor:
    """What TRL's trainer itself computes in `_generate_and_score_completions`: a random tiny policy, given rewards."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from vantage import tiny

    model, tokenizer = tiny.fresh(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )
    trainer_class = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[method]
    config_class = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig}[method]
    arguments = config_class(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=len(rewards),
        num_generations=size,
        max_completion_length=2,
        beta=0.0,
        **options,
    )
    rows = [{"prompt": "a"}] * len(rewards)
    trainer = trainer_class(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda prompts, **_: list(rewards),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
    )
    return trainer._generate_and_score_completions(rows)["advantages"]


def rewards_for_trl(seed: int) -> list[float | None]:
    """Eight groups of four: random, binary, all equal, with one, with three and with all members unscorable."""
    draw = random.Random(seed)
    rewards: list[float | None] = [draw.random() for _ in range(12)]
    rewards += [1.0, 0.0, 0.0, 1.0]
    rewards += [0.5] * 4
    rewards += [None, draw.random(), draw.random(), draw.random()]
    rewards += [None, None, 0.75, None]
    return rewards + [None] * 4


@pytest.mark.parametrize(
    ("method", "options"),
    [("grpo", {"scale_rewards": "group"}), ("grpo", {"scale_rewards": "none"}), ("rloo", {})],
    ids=["grpo", "dr_grpo", "rloo"],
)
def test_equal_to_trl(method: str, options: dict[str, str], tmp_path: Path) -> None:
    rewards = rewards_for_trl(seed=11)
    theirs = trl_advantages(method, rewards, 4, tmp_path, **options)
    reward = f64([math.nan if r is None else r for r in rewards])
    group, valid = torch.arange(len(rewards)) // 4, ~reward.isnan()
    if method == "rloo":
        ours = rloo_advantages(reward, group, valid)
    else:
        ours = grpo_advantages(reward, group, valid, EPS, scale=options["scale_rewards"] == "group")
    assert float(theirs.abs().max()) > 0.3
    assert_close(ours, theirs.double(), 1e-6)
