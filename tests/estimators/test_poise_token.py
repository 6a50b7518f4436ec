"""POISE at every token: prefixes only, the ridge of scikit-learn, no bias at λ = 1, and the λ < 1 bias measured."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import random_batch, small_policy, together
from vantage.batch import Batch
from vantage.config import TrainConfig, resolve
from vantage.distributed.world import World
from vantage.enumerable import EnumerableWorld
from vantage.errors import UserError
from vantage.estimators.base import Setup, State
from vantage.estimators.poise_token import PoiseToken, PoiseTokenEstimator
from vantage.policy import Forward, Policy
from vantage.probes.token_features import (
    STATISTICS,
    chosen_positions,
    feature_rows,
    lambda_advantages,
    linear_values,
    predicting_states,
    running_statistics,
)
from vantage.probes.tokens import Errors, Sums, TokenDomain, ridge_path
from vantage.update import PolicyUpdate


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- features -------------------------------------------------------------------------------------------------------


def test_running_statistics_have_exact_numbers_and_lag_the_drawn_token_by_one() -> None:
    half, quarter, eighth = math.log(2), math.log(4), math.log(8)
    logp = f64([[-half, -eighth, -quarter], [-quarter, 0.0, 0.0]])
    entropy = f64([[0.5, 0.25, 1.0], [0.75, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = running_statistics(logp, entropy, mask, budget=8)
    log9 = math.log(9)
    expected = [
        [0, 0, 0.5, 0, 0, 0, 0, 0],
        [1 / 8, math.log(2) / log9, 0.25, 0.5, 0.5, half, 0.5, 0.5],
        [2 / 8, math.log(3) / log9, 1.0, 0.375, 0.5, (half + eighth) / 2, (0.5 + 0.875) / 2, 0.875],
    ]
    assert len(STATISTICS) == 8
    torch.testing.assert_close(found[0], f64(expected), rtol=0, atol=1e-15)
    assert found[1, 0].tolist() == [0, 0, 0.75, 0, 0, 0, 0, 0]
    assert found[1, 1].tolist()[3:] == pytest.approx([0.75, 0.75, quarter, 0.75, 0.75], abs=1e-15)


def test_statistics_stay_finite_for_impossible_tokens_and_broken_entropies() -> None:
    found = running_statistics(
        f64([[-math.inf, -1.0]]), f64([[math.nan, math.inf]]), torch.ones((1, 2), dtype=torch.bool), 4
    )
    assert found.isfinite().all()
    assert found[0, 1, 5] == 20  # the surprise of an impossible token is cut


def test_the_state_of_a_token_is_the_one_that_predicts_it() -> None:
    # One number a state: 10 · row + position.
    hidden = (10 * torch.arange(2)[:, None] + torch.arange(6)).double()[..., None]
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = predicting_states(hidden, torch.tensor([2, 3]), mask)
    assert found[..., 0].tolist() == [[1, 2, 3], [12, 13, 0]]


def test_rows_hold_the_state_and_the_mean_of_the_states_so_far_for_each_layer() -> None:
    first, second = f64([[[1.0], [3.0], [8.0]]]), f64([[[2.0], [0.0], [-5.0]]])
    statistics = f64([[[0.1], [0.2], [0.3]]])
    found = feature_rows([first, second], statistics, torch.tensor([[0, 2, -1]]))
    expected = f64([[[1, 1, 2, 2, 0.1], [8, 4, -5, -1, 0.3], [0, 0, 0, 0, 0]]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_values_at_all_positions_are_the_rows_times_the_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn((3, 7, 4), generator=draw, dtype=torch.float64) for _ in range(2)]
    statistics = torch.randn((3, 7, 8), generator=draw, dtype=torch.float64)
    mean, weight = (torch.randn((24, 2), generator=draw, dtype=torch.float64) for _ in range(2))
    offset = f64([0.3, -2.0])
    found = linear_values(states, statistics, mean, weight, offset)
    rows = feature_rows(states, statistics, torch.arange(7).expand(3, 7))
    for k in range(2):
        expected = offset[k] + (rows - mean[:, k]) @ weight[:, k]
        torch.testing.assert_close(found[..., k], expected, rtol=0, atol=1e-12)


def test_one_token_is_chosen_from_each_stretch_and_all_of_a_short_response() -> None:
    responses = [list(range(40)), list(range(5)), [7] * 8, list(range(3, 43))]
    found = chosen_positions(responses, 8, seed=3)
    assert found[1].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert found[2].tolist() == list(range(8))
    for row in (0, 3):
        assert all(5 * k <= p < 5 * (k + 1) for k, p in enumerate(found[row].tolist()))
    assert found[0].tolist() != found[3].tolist()
    assert chosen_positions(responses, 8, seed=4)[0].tolist() != found[0].tolist()
    counts = np.zeros(40)
    for i in range(600):
        np.add.at(counts, chosen_positions([[i, *range(39)]], 8, seed=0)[0].numpy(), 1)
    assert counts.min() > 80  # 120 expected of each, standard deviation about 10
    assert counts.max() < 160


def test_chosen_positions_do_not_depend_on_the_rest_of_the_micro_batch() -> None:
    responses = [list(range(40)), list(range(5)), list(range(9, 29))]
    together_ = chosen_positions(responses, 4, seed=1)
    alone = torch.cat([chosen_positions([r], 4, seed=1) for r in responses])
    assert torch.equal(together_, alone)


# --- advantages -----------------------------------------------------------------------------------------------------


def test_lambda_advantages_by_hand() -> None:
    value, mask = f64([[0.5, 0.25, 0.75], [0.4, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]])
    reward = f64([1.0, 0.0])
    one = lambda_advantages(value, reward, mask, 1.0)
    assert one.tolist() == [[0.5, 0.75, 0.25], [-0.4, 0, 0]]
    # δ = −0.25, 0.5, 0.25
    half = lambda_advantages(value, reward, mask, 0.5)
    assert half.tolist() == [[-0.25 + 0.5 * 0.5 + 0.25 * 0.25, 0.5 + 0.5 * 0.25, 0.25], [-0.4, 0, 0]]
    assert lambda_advantages(value, reward, mask, 0.0).tolist() == [[-0.25, 0.5, 0.25], [-0.4, 0, 0]]


# --- the fit --------------------------------------------------------------------------------------------------------


def random_steps(steps: int, rows: int = 60, width: int = 5) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    found = []
    for _ in range(steps):
        x = torch.randn((rows, width), generator=draw, dtype=torch.float64) * f64([1, 10, 0.1, 3, 0.5]) + 2
        y = (x[:, 0] + torch.randn(rows, generator=draw, dtype=torch.float64) > 2).double()
        found.append((x, y))
    return found


def faded(steps: Sequence[tuple[Tensor, Tensor]], share: float) -> Sums:
    sums: Sums | None = None
    for x, y in steps:
        new = Sums.of(x, y, World())
        assert new is not None
        sums = new if sums is None else sums.faded(share, new)
    assert sums is not None
    return sums


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_the_fit_is_scikit_learns_weighted_ridge_on_standardised_rows_of_all_steps(alpha: float) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    steps, share = random_steps(4), 0.75
    sums = faded(steps, share)
    x, y = torch.cat([s[0] for s in steps]).numpy(), torch.cat([s[1] for s in steps]).numpy()
    weight = np.repeat([share**3, share**2, share, 1.0], 60)
    scaler = StandardScaler().fit(x, sample_weight=weight)
    model = Ridge(alpha=alpha).fit(scaler.transform(x), y, sample_weight=weight)
    path = ridge_path(sums, [alpha])
    fresh = random_steps(5)[-1][0]
    found = sums.target + (fresh - sums.mean_P) @ path[:, 0]
    np.testing.assert_allclose(found.numpy(), model.predict(scaler.transform(fresh.numpy())), rtol=0, atol=1e-10)


def test_the_fit_is_numpys_solution_of_the_normal_equations() -> None:
    (x, y) = random_steps(1)[0]
    z = (x.numpy() - x.numpy().mean(0)) / x.numpy().std(0)
    beta = np.linalg.solve(z.T @ z + 3.0 * np.eye(5), z.T @ (y.numpy() - y.numpy().mean()))
    found = ridge_path(faded([(x, y)], 1.0), [1.0, 3.0])
    np.testing.assert_allclose(found[:, 1].numpy(), beta / x.numpy().std(0), rtol=0, atol=1e-12)


def test_a_constant_column_and_more_columns_than_rows_give_finite_weights() -> None:
    x = torch.cat([torch.full((3, 1), 1e6, dtype=torch.float64), torch.eye(3, 7, dtype=torch.float64)], dim=1)
    path = ridge_path(faded([(x, f64([1, 0, 1]))], 1.0), [0.01])
    assert path.isfinite().all()
    assert path[0, 0] == 0


def test_sums_of_two_processes_are_those_of_one() -> None:
    (x, y) = random_steps(1)[0]
    alone = Sums.of(x, y, World())
    assert alone is not None
    for found in together(2, lambda world: Sums.of(x[world.rank :: 2], y[world.rank :: 2], world)):
        for field in dataclasses.fields(Sums):
            torch.testing.assert_close(
                torch.as_tensor(getattr(found, field.name)),
                torch.as_tensor(getattr(alone, field.name)),
                rtol=1e-12,
                atol=0,
            )
    assert together(2, lambda world: Sums.of(x[:0], y[:0], world)) == [None, None]


def domain(alphas: Sequence[float] = (0.1, 10.0, 1e3), bootstrap: int | None = None, **options: Any) -> TokenDomain:
    return TokenDomain(alphas, options.get("memory", 8.0), bootstrap, 0.0, 1.0)


def test_the_penalty_with_the_smallest_past_error_is_used_and_must_beat_the_mean_to_be_trusted() -> None:
    it = domain()
    assert it.alpha == 10.0
    assert not it.trusted()
    it.path_PA = torch.zeros((5, 3))
    it.history = [Errors(10, (4.0, 3.0, 5.0), 3.5), Errors(10, (1.0, 4.0, 3.0), 3.5)]
    assert it.alpha == 0.1
    assert it.trusted()  # 5 < 7
    it.history = [Errors(10, (4.0, 3.0, 5.0), 3.0)]
    assert it.alpha == 10.0
    assert not it.trusted()  # a tie is not enough


def test_a_fixed_bootstrap_counts_steps() -> None:
    it, one = domain(bootstrap=2), torch.ones(60, dtype=torch.float64)
    for step, (x, y) in enumerate(random_steps(3), start=1):
        assert it.trusted() == (step == 3)
        it.learn(step, x, y, y, 0.5 * one, World())


def test_errors_are_those_of_predictions_made_before_a_step_was_seen() -> None:
    it, steps = domain(), random_steps(3)
    half = torch.full((60,), 0.5, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    for step, (x, y) in enumerate(steps, start=1):
        metrics = it.learn(step, x, y, y, half, World())
        if seen:
            before = faded(seen, 7 / 8)
            raw = before.target + (x - before.mean_P) @ ridge_path(before, it.alphas)
            squares = ((y[:, None] - raw.clamp(0, 1)) ** 2).sum(0)
            assert it.history[-1].probe_A == pytest.approx(squares.tolist(), abs=1e-10)
            assert it.history[-1].constant == pytest.approx(15.0)
            assert metrics["skill"] > 0
        seen.append((x, y))
    assert metrics["rows"] == pytest.approx(60 * (1 + 7 / 8 + 49 / 64))


# --- the estimator --------------------------------------------------------------------------------------------------


def small_setup(policy: Policy, world: World | None = None, reward_range: tuple[float, float] = (0.0, 1.0)) -> Setup:
    return Setup(policy.num_layers, policy.hidden_size, 1, reward_range, max_new_tokens=16, world=world or World())


ONE_AT_A_TIME = threading.Lock()
"""Threads that stand for processes share the policy, whose hooks are not made for that."""


def forward_of(policy: Policy, batch: Batch, estimator: PoiseTokenEstimator) -> Forward:
    with ONE_AT_A_TIME, torch.no_grad():
        return policy.forward(batch, layers=estimator.needs.hidden_layers)


def step_of(estimator: PoiseTokenEstimator, policy: Policy, batch: Batch):
    reads = estimator.read(forward_of(policy, batch, estimator))
    estimate = estimator.advantages(batch, reads)
    return reads, estimate, estimator.learn(batch, reads, estimate)


def fitted(policy: Policy, reward_range: tuple[float, float] = (0.0, 1.0), **options: Any) -> PoiseTokenEstimator:
    """Trusted, and fitted on one step of rollouts of the policy."""
    settings = {"bootstrap": 0, "alpha": 1.0, "layers": (1, 3), "positions": 4} | options
    estimator = PoiseTokenEstimator(PoiseToken(**settings), small_setup(policy, reward_range=reward_range))
    step_of(estimator, policy, random_batch(groups=20, group=1, seed=9))
    return estimator


def later(batch: Batch, step: int = 2) -> Batch:
    return dataclasses.replace(batch, step=step)


@pytest.mark.parametrize("options", [{}, {"layers": (0,)}, {"layers": (2,)}])
def test_the_value_at_a_token_does_not_depend_on_it_or_on_anything_later(options: dict[str, Any]) -> None:
    policy = small_policy()
    estimator = fitted(policy, (-9.0, 9.0), **options)  # so wide that the clip hides nothing
    batch = later(random_batch(groups=3, group=1, seed=2))
    row = max(range(batch.size), key=lambda i: len(batch.response_ids[i]))
    before = estimator.read(forward_of(policy, batch, estimator))["value0_MT"][row]
    for t in range(len(batch.response_ids[row])):
        changed = [list(ids) for ids in batch.response_ids]
        changed[row] = [*changed[row][:t], *(3 + (i + 11) % 37 for i in changed[row][t:])]
        other = dataclasses.replace(batch, response_ids=changed)
        after = estimator.read(forward_of(policy, other, estimator))["value0_MT"][row]
        torch.testing.assert_close(after[: t + 1], before[: t + 1], rtol=0, atol=1e-12)
        if t + 1 < len(changed[row]):
            assert (after[t + 1 :] - before[t + 1 :]).abs().max() > 1e-4


def test_a_response_cut_after_a_token_has_the_same_values_up_to_there() -> None:
    policy = small_policy()
    estimator = fitted(policy)
    batch = later(random_batch(groups=2, group=1, seed=6))
    before = estimator.read(forward_of(policy, batch, estimator))["value0_MT"]
    cut = dataclasses.replace(batch, response_ids=[ids[:2] for ids in batch.response_ids])
    after = estimator.read(forward_of(policy, cut, estimator))["value0_MT"]
    torch.testing.assert_close(after, before[:, :2], rtol=0, atol=1e-12)


def test_reads_do_not_depend_on_the_cut_into_micro_batches() -> None:
    policy = small_policy()
    estimator = fitted(policy)
    batch = later(random_batch(groups=5, group=1, seed=3))
    whole = estimator.read(forward_of(policy, batch, estimator))
    for i in range(batch.size):
        part = batch.select([i])
        found = estimator.read(forward_of(policy, part, estimator))
        assert torch.equal(found["positions"][0], whole["positions"][i])
        torch.testing.assert_close(found["rows"][0], whole["rows"][i], rtol=0, atol=1e-12)
        length = len(batch.response_ids[i])
        torch.testing.assert_close(found["value0_MT"][0], whole["value0_MT"][i, :length], rtol=0, atol=1e-12)
        assert (whole["value0_MT"][i, length:] == 0).all()


def test_values_are_the_ridge_of_past_rows_at_every_position() -> None:
    policy = small_policy()
    estimator = fitted(policy, positions=50)
    batch = later(random_batch(groups=4, group=1, seed=4))
    reads, estimate, _ = step_of(estimator, policy, batch)
    past = random_batch(groups=20, group=1, seed=9)
    fresh = PoiseTokenEstimator(estimator.options, estimator.setup)
    old = fresh.read(forward_of(policy, past, fresh))
    used = old["positions"] >= 0
    x = old["rows"][used].numpy()
    y = past.outcome_B[:, None].expand(used.shape)[used].numpy()
    scale = x.std(0)
    varies = scale > 1e-12
    z = (x - x.mean(0))[:, varies] / scale[varies]
    beta = np.linalg.solve(z.T @ z + np.eye(z.shape[1]), z.T @ (y - y.mean()))
    inside = reads["positions"] >= 0
    rows = (reads["rows"][inside].numpy() - x.mean(0))[:, varies] / scale[varies]
    wanted = np.clip(y.mean() + rows @ beta, 0, 1)
    np.testing.assert_allclose(reads["value0_MT"][batch.response_mask_BT].numpy(), wanted, rtol=0, atol=1e-9)
    expected = (batch.reward_B[:, None] - reads["value0_MT"]) * batch.response_mask_BT
    assert torch.equal(estimate.advantage_BT, expected)
    assert torch.equal(estimate.value_BT, reads["value0_MT"])


def asked(estimator: PoiseTokenEstimator, batch: Batch) -> Batch:
    from vantage.collect import Collected

    collected = Collected(batch, [], [], [], [], {}, [], 0, 0)
    return dataclasses.replace(batch, queried=estimator.query(collected).reads)


def test_before_the_probe_is_trusted_the_baseline_is_the_mean_of_the_other_rollouts_of_the_domain() -> None:
    policy = small_policy()
    estimator = PoiseTokenEstimator(PoiseToken(), small_setup(policy))
    batch = random_batch(groups=6, group=1, seed=1)
    outcome = f64([1, 0, 0, 1, math.nan, 1])
    domains = ["a", "a", "a", "b", "a", "b"]
    batch = dataclasses.replace(
        batch, outcome_B=outcome, reward_B=outcome, scorable_B=outcome.isfinite(), domains=domains
    )
    batch = asked(estimator, batch)
    assert batch.queried["others"].tolist() == pytest.approx([0, 0.5, 0.5, 1, 1 / 3, 1])
    _, estimate, _ = step_of(estimator, policy, batch)
    assert estimate.advantage_BT[:, 0].tolist() == pytest.approx([1, -0.5, -0.5, 0, 0, 0])
    assert estimate.advantage_BT[0].tolist() == batch.response_mask_BT[0].double().tolist()
    assert estimator.domains["a"].outcome == pytest.approx(1 / 3)
    # A domain with one rollout in its step falls back on the past; without a past it teaches nothing yet.
    alone = later(dataclasses.replace(batch.select([1, 3]), domains=["a", "c"], queried={}))
    found = estimator.advantages(asked(estimator, alone), estimator.read(forward_of(policy, alone, estimator)))
    assert found.advantage_BT[:, 0].tolist() == pytest.approx([-1 / 3, 0])
    assert math.isnan(found.value_BT[1, 0])


def test_the_mean_of_the_others_is_taken_over_all_processes() -> None:
    policy = small_policy()
    batch = random_batch(groups=7, group=1, seed=1)
    alone = asked(PoiseTokenEstimator(PoiseToken(), small_setup(policy)), batch).queried["others"]

    def part(world: World) -> Tensor:
        estimator = PoiseTokenEstimator(PoiseToken(), small_setup(policy, world))
        return asked(estimator, batch.select(range(world.rank, 7, 2))).queried["others"]

    found = together(2, part)
    torch.testing.assert_close(found[0], alone[0::2], rtol=0, atol=1e-15)
    torch.testing.assert_close(found[1], alone[1::2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [{}, {"targets": "td", "gae_lambda": 0.9}], ids=["mc", "td"])
def test_two_processes_learn_what_one_does(options: dict[str, Any]) -> None:
    policy = small_policy()
    settings = {"bootstrap": 1, "positions": 4} | options
    batches = [dataclasses.replace(random_batch(groups=9, group=1, seed=s), step=s) for s in (1, 2, 3)]
    batches[1].domains[2:5] = ["b"] * 3
    batches[2].domains[1] = "b"  # in one process only

    def run(world: World) -> tuple[PoiseTokenEstimator, list[dict[str, float]]]:
        estimator = PoiseTokenEstimator(PoiseToken(**settings), small_setup(policy, world))
        parts = [batch.select(range(world.rank, 9, world.size)) for batch in batches]
        return estimator, [dict(step_of(estimator, policy, asked(estimator, part))[2]) for part in parts]

    alone, expected = run(World())
    assert list(alone.domains) == ["default", "b"]
    for found, metrics in together(2, run):
        assert list(found.domains) == ["default", "b"]
        for ours, theirs in zip(metrics, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9, nan_ok=True)
        for name, it in alone.domains.items():
            torch.testing.assert_close(found.domains[name].path_PA, it.path_PA, rtol=1e-6, atol=1e-9)


def test_a_process_without_rollouts_takes_part() -> None:
    policy = small_policy()
    batch = random_batch(groups=4, group=1, seed=1)

    def run(world: World) -> PoiseTokenEstimator:
        estimator = PoiseTokenEstimator(PoiseToken(), small_setup(policy, world))
        own = asked(estimator, batch.select(range(4) if world.rank == 0 else []))
        reads = estimator.read(forward_of(policy, own, estimator)) if own.size else {}
        estimator.learn(own, reads, estimator.advantages(own, reads))
        return estimator

    found = together(2, run)
    assert torch.equal(found[0].domains["default"].path_PA, found[1].domains["default"].path_PA)


def test_td_targets_are_the_lambda_returns_of_the_old_values() -> None:
    policy = small_policy()
    estimator = fitted(policy, targets="td", td_lambda=0.5, positions=50)
    batch = later(random_batch(groups=4, group=1, seed=4))
    reads = estimator.read(forward_of(policy, batch, estimator))
    _, target, outcome, _ = estimator._rows(batch, reads, "default", torch.arange(4))
    expected: list[float] = []
    for i, ids in enumerate(batch.response_ids):
        value, behind = reads["value0_MT"][i].tolist(), float(batch.outcome_B[i])
        found = []
        for t in range(len(ids) - 1, -1, -1):
            following = value[t + 1] if t + 1 < len(ids) else float(batch.outcome_B[i])
            behind = 0.5 * following + 0.5 * behind
            found.append(behind)
        expected += found[::-1]
    assert target.tolist() == pytest.approx(expected, abs=1e-12)
    assert set(outcome.tolist()) <= {0.0, 1.0}


def test_unscorable_rollouts_are_not_learnt_from_and_get_no_advantage() -> None:
    policy = small_policy()
    estimator = fitted(policy)
    batch = later(random_batch(groups=6, group=1, seed=5))
    outcome = batch.outcome_B.clone()
    outcome[2] = math.nan
    batch = dataclasses.replace(batch, outcome_B=outcome, reward_B=outcome, scorable_B=outcome.isfinite())
    before = estimator.domains["default"].sums
    reads, estimate, _ = step_of(estimator, policy, batch)
    assert (estimate.advantage_BT[2] == 0).all()
    assert estimate.advantage_BT.isfinite().all()
    added = int(((reads["positions"] >= 0) & batch.scorable_B[:, None]).sum())
    assert estimator.domains["default"].sums.weight == pytest.approx(before.weight * 15 / 16 + added)


def test_a_probe_that_has_seen_a_step_gives_no_values_for_it() -> None:
    policy = small_policy()
    estimator = fitted(policy)
    batch = random_batch(groups=20, group=1, seed=9)
    with pytest.raises(RuntimeError, match="step 1"):
        estimator.advantages(batch, estimator.read(forward_of(policy, batch, estimator)))


def test_values_do_not_know_the_outcomes_of_their_step() -> None:
    policy = small_policy()
    estimator = fitted(policy)
    batch = later(random_batch(groups=5, group=1, seed=3))
    reads = estimator.read(forward_of(policy, batch, estimator))
    before = estimator.advantages(batch, reads).value_BT
    flipped = dataclasses.replace(batch, outcome_B=1 - batch.outcome_B, reward_B=1 - batch.reward_B)
    assert torch.equal(estimator.advantages(flipped, reads).value_BT, before)


def test_state_survives_json_and_tensors_to_the_bit() -> None:
    policy = small_policy()
    estimator = fitted(policy, alpha="auto", bootstrap="auto")
    for step in (2, 3):
        step_of(estimator, policy, later(random_batch(groups=12, group=1, seed=step), step))
    state = estimator.state_dict()
    copied = State({k: v.clone() for k, v in state.tensors.items()}, json.loads(json.dumps(state.values)))
    restored = PoiseTokenEstimator(estimator.options, estimator.setup)
    restored.load_state_dict(copied)
    batch = later(random_batch(groups=12, group=1, seed=7), 4)
    ours, theirs = step_of(estimator, policy, batch), step_of(restored, policy, batch)
    assert torch.equal(ours[1].advantage_BT, theirs[1].advantage_BT)
    assert ours[2] == theirs[2]
    again, expected = restored.state_dict(), estimator.state_dict()
    assert again.values == expected.values
    assert all(torch.equal(again.tensors[k], v) for k, v in expected.tensors.items())


def test_a_state_of_another_policy_is_refused() -> None:
    policy = small_policy()
    state = fitted(policy).state_dict()
    other = PoiseTokenEstimator(PoiseToken(layers=(1,)), small_setup(policy))
    with pytest.raises(UserError, match="136 features"):
        other.load_state_dict(state)


def test_an_empty_state_round_trips() -> None:
    policy = small_policy()
    estimator = PoiseTokenEstimator(PoiseToken(), small_setup(policy))
    estimator.load_state_dict(estimator.state_dict())
    assert estimator.domains == {}


# --- bias -----------------------------------------------------------------------------------------------------------


def odd_world() -> EnumerableWorld:
    """The sheet's T6: tokens a, b, end; reward 1 for an odd number of a's."""
    theta = f64([[0.2, -0.1, 0.0], [-0.3, 0.4, 0.1], [0.5, 0.0, -0.2], [0.0, 0.0, 0.0]])
    offset = f64([[0.0, 0.0, 0.0], [0.6, -0.4, 0.1]])
    return EnumerableWorld(theta, offset, lambda _, y: float(y.count(0) % 2 == 1), max_length=3, end_token=2)


def enumerated(lam: float) -> tuple[Tensor, Tensor, PoiseTokenEstimator]:
    """Expected and exact gradient with a token probe that was fitted on rollouts of an earlier step."""
    world = odd_world()
    policy = world.policy()
    setup = Setup(1, policy.hidden_size, 1, (0.0, 1.0), max_new_tokens=3)
    estimator = PoiseTokenEstimator(PoiseToken(layers=(0,), alpha=0.1, bootstrap=0, gae_lambda=lam), setup)
    for prompt in range(world.prompts):
        step_of(estimator, policy, world.batch(prompt, world.responses(), step=-2 + prompt))
    config = resolve(
        TrainConfig(algo=estimator.options, aggregation="seq-mean-token-sum", max_new_tokens=3, max_grad_norm=0),
        max_new_tokens=3, stop=(), reward_range=(0.0, 1.0),
    )  # fmt: skip
    update = PolicyUpdate(policy, estimator, config)
    return world.expected_gradient(update, 1), world.exact_gradient(policy), estimator


def test_at_lambda_one_a_fitted_token_probe_leaves_the_gradient_unbiased() -> None:
    expected, exact, estimator = enumerated(1.0)
    assert (expected - exact).abs().max() < 1e-12
    # The probe is not a constant: values differ between the prefixes of a response.
    world = odd_world()
    batch = world.batch(0, world.responses(), step=1)
    reads = estimator.read(forward_of(world.policy(), batch, estimator))
    values = reads["value0_MT"][batch.response_mask_BT]
    assert values.max() - values.min() > 0.2


@pytest.mark.parametrize(("lam", "bias"), [(0.99, 0.002636), (0.95, 0.012833), (0.5, 0.094105), (0.0, 0.152995)])
def test_below_lambda_one_the_probes_errors_bias_the_gradient(lam: float, bias: float) -> None:
    """Distance of the expected from the exact gradient as a share of its norm, measured on T6."""
    expected, exact, _ = enumerated(lam)
    assert float((expected - exact).norm() / exact.norm()) == pytest.approx(bias, abs=2e-6)
