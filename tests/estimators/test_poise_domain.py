"""POISE's buffer, trust rule and diagnostics: the sheet's T9 and T10, enumeration, and scikit-learn as the probe."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.diagnostics import value_metrics
from vantage.errors import UserError
from vantage.estimators.base import Setup, State
from vantage.estimators.poise import Poise, PoiseEstimator
from vantage.estimators.poise_domain import TRUST_STEPS, Buffer, Domain, Errors, Rows, merge_metrics, worth
from vantage.probes.linear import Probe, Ridge, Scaler

HIDDEN = 1
WIDTH = 2 * HIDDEN + 3


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def setup(low: float = 0.0, high: float = 1.0, group: int = 2) -> Setup:
    return Setup(2, HIDDEN, group, (low, high))


def make_batch(
    step: int,
    outcome: Sequence[float],
    group: Sequence[int],
    *,
    reward: Sequence[float] | None = None,
    scorable: Sequence[bool] | None = None,
    domains: Sequence[str] | None = None,
) -> Batch:
    """Rollouts with two response tokens each."""
    rows = len(outcome)
    return Batch(
        step=step,
        prompt_ids=[[5]] * rows,
        response_ids=[[6, 7]] * rows,
        group_B=torch.tensor(list(group)),
        outcome_B=f64(list(outcome)),
        reward_B=f64(list(outcome if reward is None else reward)),
        scorable_B=torch.tensor([not math.isnan(r) for r in outcome] if scorable is None else list(scorable)),
        domains=list(domains or ["math"] * rows),
    )


def pairs(
    step: int, prompts: int, *, seed: int, group: int = 2, domain: str = "math"
) -> tuple[Batch, dict[str, Tensor]]:
    """Random prompts whose first feature shows the success rate, and outcomes drawn from it."""
    draw = torch.Generator().manual_seed(1000 * seed + step)
    value = torch.rand(prompts, generator=draw).repeat_interleave(group)
    features = torch.randn((prompts * group, WIDTH), generator=draw)
    features[:, 0] = value + 0.1 * features[:, 0]
    outcome = torch.bernoulli(value, generator=draw)
    labels = torch.arange(prompts).repeat_interleave(group)
    batch = make_batch(step, outcome.tolist(), labels.tolist(), domains=[domain] * len(outcome))
    return batch, {"features": features}


def shown(values: Sequence[float]) -> dict[str, Tensor]:
    """Reads whose first feature is the given number; `showing` predicts just that."""
    features = torch.zeros((len(values), WIDTH), dtype=torch.float64)
    features[:, 0] = f64(list(values))
    return {"features": features}


def showing(step: int = 0, low: float = 0.0, high: float = 1.0) -> Probe:
    """A probe that predicts the first feature."""
    beta = torch.zeros(WIDTH, dtype=torch.float64)
    beta[0] = 1
    scaler = Scaler(torch.zeros(WIDTH, dtype=torch.float64), torch.ones(WIDTH, dtype=torch.float64))
    return Probe(step, Ridge(beta, 0.0, 1.0, 1.0), {}, scaler, None, {"all": (0, WIDTH)}, low, high)


def with_probe(probe: Probe, **options: Any) -> PoiseEstimator:
    """An estimator that has `probe` for the domain "math" and trusts it."""
    estimator = PoiseEstimator(Poise(bootstrap=0, **options), setup(probe.low, probe.high))
    estimator.domains["math"] = Domain(estimator.options, estimator.setup)
    estimator.domains["math"].probe = probe
    return estimator


def first(tensor_BT: Tensor) -> list[float]:
    """The number of each rollout, which must be the same on all of its tokens."""
    assert torch.equal(tensor_BT.nan_to_num(-9), tensor_BT[:, :1].nan_to_num(-9).expand_as(tensor_BT))
    return tensor_BT[:, 0].tolist()


def near(values: Sequence[float], tolerance: float = 1e-12) -> Any:
    return pytest.approx(list(values), abs=tolerance, nan_ok=True)


# --- buffer ---------------------------------------------------------------------------------------------------------


def rows_of(step: int, labels: str) -> Rows:
    """A row for each letter; siblings share theirs, which is also their feature and target."""
    codes = [ord(c) for c in labels]
    return Rows(step, f64([[c] * WIDTH for c in codes]), f64(codes), torch.tensor(codes))


def contents(buffer: Buffer) -> list[str]:
    for step in buffer.steps:
        assert step.features_NP[:, 0].tolist() == step.target_N.tolist() == step.group_N.tolist()
    return ["".join(chr(int(c)) for c in step.target_N) for step in buffer.steps]


def test_t10_oldest_whole_groups_leave_until_the_rows_fit() -> None:
    buffer = Buffer(steps=100, rows=7)
    buffer.append(rows_of(1, "aabbcc"))
    assert contents(buffer) == ["aabbcc"]
    buffer.append(rows_of(2, "qq"))
    assert contents(buffer) == ["bbcc", "qq"]
    assert len(buffer) == 6
    buffer.append(rows_of(3, "rrss"))
    assert contents(buffer) == ["qq", "rrss"]
    assert [s.step for s in buffer.steps] == [2, 3]
    assert len(buffer) == 6


def test_a_buffer_that_is_just_full_keeps_everything() -> None:
    buffer = Buffer(steps=100, rows=8)
    buffer.append(rows_of(1, "aabbcc"))
    buffer.append(rows_of(2, "qq"))
    assert contents(buffer) == ["aabbcc", "qq"]


def test_a_group_of_three_leaves_for_one_row_too_many() -> None:
    buffer = Buffer(steps=100, rows=8)
    buffer.append(rows_of(1, "aaabbb"))
    buffer.append(rows_of(2, "ccc"))
    assert contents(buffer) == ["bbb", "ccc"]


def test_several_steps_leave_at_once() -> None:
    buffer = Buffer(steps=100, rows=6)
    for step, labels in ((1, "aa"), (2, "bb"), (3, "cc"), (4, "ddeeff")):
        buffer.append(rows_of(step, labels))
    assert contents(buffer) == ["ddeeff"]


def test_a_step_larger_than_the_buffer_keeps_its_last_groups() -> None:
    buffer = Buffer(steps=100, rows=4)
    buffer.append(rows_of(1, "aabbccdd"))
    assert contents(buffer) == ["ccdd"]


def test_the_same_group_number_in_two_steps_is_two_groups() -> None:
    buffer = Buffer(steps=100, rows=3)
    buffer.append(rows_of(1, "aa"))
    buffer.append(rows_of(2, "aa"))
    assert contents(buffer) == ["aa"]
    assert buffer.steps[0].step == 2


def test_only_the_newest_steps_stay() -> None:
    buffer = Buffer(steps=2, rows=100)
    for step, labels in ((1, "aa"), (2, "bbcc"), (5, "dd")):
        buffer.append(rows_of(step, labels))
    assert contents(buffer) == ["bbcc", "dd"]
    features, targets = buffer.data()
    assert features.shape == (6, WIDTH)
    assert targets.tolist() == [ord(c) for c in "bbccdd"]


def test_age_is_the_mean_over_rows() -> None:
    buffer = Buffer(steps=9, rows=100)
    assert buffer.age(3) == 0
    buffer.append(rows_of(2, "bbcc"))
    buffer.append(rows_of(5, "dd"))
    assert buffer.age(6) == pytest.approx((4 * 4 + 2 * 1) / 6)


# --- what learning stores -------------------------------------------------------------------------------------------


def test_rows_are_stored_by_group_with_the_siblings_mean_outcome_as_target() -> None:
    # Groups interleaved; the policy is paid something else than what the probe learns.
    batch = make_batch(1, [1, 0.5, 0, 1, 0.25, 0], [8, 3, 8, 3, 8, 3], reward=[9] * 6)
    reads = shown([10, 20, 11, 21, 12, 22])
    domain = Domain(Poise(), setup())
    metrics = domain.learn(batch, reads["features"], torch.arange(6))
    features, targets = domain.buffer.data()
    assert features[:, 0].tolist() == [20, 21, 22, 10, 11, 12]
    assert targets.tolist() == near([0.5, 0.25, 0.75, 0.125, 0.625, 0.5], 1e-7)
    assert domain.buffer.steps[0].group_N.tolist() == [3, 3, 3, 8, 8, 8]
    assert metrics["poise/buffer_rows"] == 6
    assert metrics["poise/buffer_age"] == 0
    assert domain.probe is not None
    assert domain.probe.step == 1
    assert domain.observed == 1


def test_unscorable_rollouts_and_those_without_a_scorable_sibling_are_not_stored() -> None:
    nan = math.nan
    batch = make_batch(1, [1, nan, 0, 1, 1, nan], [0, 0, 0, 1, 2, 2])
    domain = Domain(Poise(), setup())
    domain.learn(batch, shown([0, 1, 2, 3, 4, 5])["features"], torch.arange(6))
    features, targets = domain.buffer.data()
    assert features[:, 0].tolist() == [0, 2]
    assert targets.tolist() == [0, 1]


def test_a_step_without_a_usable_rollout_leaves_buffer_and_probe() -> None:
    estimator = PoiseEstimator(Poise(), setup())
    batch, reads = pairs(1, 6, seed=0)
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    before = estimator.domains["math"].probe
    empty = make_batch(2, [math.nan] * 4, [0, 0, 1, 1])
    estimate = estimator.advantages(empty, shown([0.5] * 4))
    assert first(estimate.advantage_BT) == [0.0] * 4
    estimator.learn(empty, shown([0.5] * 4), estimate)
    assert estimator.domains["math"].probe is before
    assert len(estimator.domains["math"].buffer) == 12


def test_a_row_limit_below_one_group_is_refused_or_does_no_harm() -> None:
    try:
        estimator = Poise(buffer_rows=1).build(setup())
    except UserError:
        return
    for step in (1, 2, 3):
        batch, reads = pairs(step, 4, seed=0)
        estimate = estimator.advantages(batch, reads)
        assert estimate.advantage_BT.isfinite().all()
        estimator.learn(batch, reads, estimate)


# --- diagnostics ----------------------------------------------------------------------------------------------------

T9_OUTCOME = [1, 0, 1, 1, 0, 0, 1, 0]
T9_VALUE = [0.8, 0.7, 0.9, 0.6, 0.2, 0.3, 0.4, 0.5]
T9_GROUP = [0, 0, 1, 1, 2, 2, 3, 3]


def test_t9_baselines_and_advantages() -> None:
    estimator = with_probe(showing())
    estimate = estimator.advantages(make_batch(1, T9_OUTCOME, T9_GROUP), shown(T9_VALUE))
    assert first(estimate.value_BT) == near([0.7, 0.8, 0.6, 0.9, 0.3, 0.2, 0.5, 0.4])
    assert first(estimate.advantage_BT) == near([0.3, -0.8, 0.4, 0.1, -0.3, -0.2, 0.5, -0.4])


def test_t9_error_estimate_and_bias_of_the_probe() -> None:
    estimator = with_probe(showing())
    batch, reads = make_batch(1, T9_OUTCOME, T9_GROUP), shown(T9_VALUE)
    metrics = estimator.learn(batch, reads, estimator.advantages(batch, reads))
    assert metrics["poise/mse_estimate"] == pytest.approx(0.18 - 0.25, abs=1e-12)
    assert math.isnan(metrics["poise/n_eff"])  # the estimate is not positive: no bound
    assert metrics["poise/bias"] == pytest.approx(0.05, abs=1e-12)
    assert metrics["poise/clipped"] == 0
    assert metrics["poise/trusted"] == 1


def test_t9_value_metrics_of_the_baselines() -> None:
    estimator = with_probe(showing())
    batch = make_batch(1, T9_OUTCOME, T9_GROUP)
    estimate = estimator.advantages(batch, shown(T9_VALUE))
    metrics = value_metrics(estimate.value_BT[:, 0], batch.outcome_B)
    assert metrics["value/mae"] == pytest.approx(0.375, abs=1e-12)
    assert metrics["value/pearson"] == pytest.approx(0.545544725589981, abs=1e-12)
    assert metrics["value/brier_skill"] == pytest.approx(0.28, abs=1e-12)
    assert metrics["value/explained_variance"] == pytest.approx(0.28, abs=1e-12)
    assert metrics["value/variance_reduction"] == pytest.approx(0.29, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "outcome", "wanted"),
    [
        ([0.1, 0.4, 0.9], [0, 0.5, 1], {"mae": 0.1, "brier_skill": 0.94, "pearson": 0.989743318610787}),
        (
            [0.8, 0.3, 0.6, 0.9, 0.2, 0.1, 0.5, 0.4],
            [1, 0, 1, 1, 0, 0, 1, 0],
            {"mae": 0.275, "brier_skill": 0.62, "pearson": 0.854242196177, "variance_reduction": 0.6225},
        ),
    ],
    ids=["T9a", "C8"],
)
def test_t9a_and_c8_value_metrics(value: list[float], outcome: list[float], wanted: dict[str, float]) -> None:
    metrics = value_metrics(f64(value), f64(outcome))
    assert {key: metrics[f"value/{key}"] for key in wanted} == pytest.approx(wanted, abs=1e-11)


def test_variance_reduction_is_skill_plus_squared_bias_over_the_outcomes_variance() -> None:
    metrics = value_metrics(f64([0.7, 0.8, 0.6, 0.9, 0.3, 0.2, 0.5, 0.4]), f64(T9_OUTCOME))
    bias, spread = 0.05, 0.25
    assert metrics["value/variance_reduction"] == pytest.approx(
        metrics["value/brier_skill"] + bias**2 / spread, abs=1e-12
    )


def test_t7_number_of_rollouts_that_the_probe_is_worth() -> None:
    found = worth([Errors(1, 0.299259939188497, 0.0, 0.239209948351763)])
    assert found["poise/mse_estimate"] == pytest.approx(0.0600499908367342, abs=1e-14)
    assert found["poise/n_eff"] == pytest.approx(4.983513486323994, abs=1e-11)


def test_worth_weighs_steps_by_their_rows() -> None:
    # (9 + 3)/40 = 0.3 squared error, (6 + 2)/40 = 0.2 within prompts → MSE 0.1, 1 + 0.2/0.1 = 3 rollouts.
    found = worth([Errors(30, 9.0, 0.0, 6.0), Errors(10, 3.0, 0.0, 2.0)])
    assert found == pytest.approx({"poise/mse_estimate": 0.1, "poise/n_eff": 3.0}, abs=1e-12)


@pytest.mark.parametrize("error", [0.2, 0.25])
def test_n_eff_is_unbounded_where_the_error_estimate_is_not_positive(error: float) -> None:
    assert math.isnan(worth([Errors(4, 4 * error, 0.0, 1.0)])["poise/n_eff"])


@pytest.mark.parametrize(
    ("values", "group", "prediction"),
    [
        ([0.3, 0.3, 0.8, 0.8], [0, 0, 1, 1], [0.1, 0.6, 0.9, 0.7]),
        ([0.6, 0.6, 0.6], [0, 0, 0], [0.2, 0.5, 0.9]),
        ([0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0], [0.2, 0.5, 0.9, 0.4]),
    ],
    ids=["pairs", "three", "four"],
)
def test_the_error_estimate_is_unbiased(values: list[float], group: list[int], prediction: list[float]) -> None:
    """Expectation over all binary outcomes equals the mean squared distance of baselines from the prompts' values."""
    expected = 0.0
    for outcome in itertools.product((0, 1), repeat=len(values)):
        domain = Domain(Poise(), setup())
        domain.probe = showing()
        weight = math.prod(v if r else 1 - v for v, r in zip(values, outcome))
        rows = torch.arange(len(values))
        metrics = domain.learn(make_batch(1, outcome, group), shown(prediction)["features"], rows)
        expected += weight * metrics["poise/mse_estimate"]
    total = 0.0
    for i, (value, label) in enumerate(zip(values, group)):
        others = [p for j, p in enumerate(prediction) if j != i and group[j] == label]
        total += (sum(others) / len(others) - value) ** 2
    assert expected == pytest.approx(total / len(values), abs=1e-12)


def test_predictions_at_the_clip_are_counted() -> None:
    estimator = with_probe(showing())
    batch, reads = make_batch(1, [1, 0, 1, 1], [0, 0, 1, 1]), shown([-0.5, 0.3, 1.0, 7.0])
    assert first(estimator.advantages(batch, reads).value_BT) == near([0.3, 0, 1, 1])
    assert estimator.learn(batch, reads, estimator.advantages(batch, reads))["poise/clipped"] == 0.75


def test_predictions_are_clipped_to_the_range_of_the_reward() -> None:
    estimator = with_probe(showing(low=-1.0, high=3.0))
    estimate = estimator.advantages(make_batch(1, [1, 0, 1, 1], [0, 0, 1, 1]), shown([-5, -0.3, 2.5, 7.0]))
    assert first(estimate.value_BT) == near([-0.3, -1, 3, 2.5])


def test_metrics_of_domains_are_averaged_and_their_rows_added() -> None:
    merged = merge_metrics(
        [{"poise/bias": 0.1, "poise/buffer_rows": 5.0}, {"poise/bias": 0.3, "poise/buffer_rows": 7.0}]
    )
    assert merged == pytest.approx({"poise/bias": 0.2, "poise/buffer_rows": 12.0})
    assert merge_metrics([{"poise/bias": 0.1}, {"poise/alpha": 3.0}]) == {"poise/bias": 0.1, "poise/alpha": 3.0}


# --- baselines ------------------------------------------------------------------------------------------------------


def test_groups_of_three_average_the_two_siblings_predictions() -> None:
    estimator = with_probe(showing())
    estimate = estimator.advantages(make_batch(1, [0, 0.5, 1], [4, 4, 4]), shown([0.2, 0.4, 0.9]))
    assert first(estimate.value_BT) == near([0.65, 0.55, 0.3])
    assert first(estimate.advantage_BT) == near([-0.65, -0.05, 0.7])


def test_the_advantage_is_what_is_paid_minus_the_baseline() -> None:
    estimator = with_probe(showing())
    batch = make_batch(1, [1, 0], [0, 0], reward=[0.4, -0.2])
    assert first(estimator.advantages(batch, shown([0.9, 0.6])).advantage_BT) == near([-0.2, -1.1])


def test_an_unscorable_rollout_gets_no_advantage_and_gives_no_baseline() -> None:
    estimator = with_probe(showing())
    batch = make_batch(1, [1, math.nan, 0, 1, math.nan], [0, 0, 0, 1, 1])
    estimate = estimator.advantages(batch, shown([0.1, 0.2, 0.6, 0.7, 0.8]))
    assert first(estimate.advantage_BT) == near([0.4, 0, -0.1, 0, 0])
    assert first(estimate.value_BT)[0] == pytest.approx(0.6)
    assert first(estimate.value_BT)[2] == pytest.approx(0.1)
    assert math.isnan(first(estimate.value_BT)[3])


def sklearn_baselines(history: Sequence[tuple[Batch, dict[str, Tensor]]], features: Tensor, alpha: float) -> Tensor:
    """StandardScaler and Ridge on pairs of past steps with the partner's outcome as target; predictions swapped."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import Ridge as Linear
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = torch.cat([reads["features"] for _, reads in history]).double().numpy()
    y = torch.cat([batch.outcome_B.reshape(-1, 2).flip(1).flatten() for batch, _ in history]).numpy()
    model = make_pipeline(StandardScaler(), Linear(alpha=alpha)).fit(x, y)
    predicted = torch.from_numpy(model.predict(features.double().numpy())).clamp(0, 1)
    return predicted.reshape(-1, 2).flip(1).flatten()


def swap(outcome_B: Tensor) -> Tensor:
    return outcome_B.reshape(-1, 2).flip(1).flatten()


def test_baselines_come_from_a_ridge_fit_on_the_buffered_past_steps_only() -> None:
    estimator = PoiseEstimator(Poise(bootstrap=2, alpha=3.0, buffer_steps=2), setup())
    history = []
    for step in range(1, 6):
        batch, reads = pairs(step, 12, seed=3)
        estimate = estimator.advantages(batch, reads)
        if step <= 2:
            wanted = swap(batch.outcome_B)
        else:
            wanted = sklearn_baselines(history[-2:], reads["features"], alpha=3.0)
        torch.testing.assert_close(estimate.value_BT[:, 0], wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(estimate.advantage_BT[:, 0], batch.reward_B - wanted, rtol=0, atol=1e-10)
        estimator.learn(batch, reads, estimate)
        history.append((batch, reads))


def test_a_trusted_probes_baselines_do_not_know_the_outcomes_of_their_step() -> None:
    estimator = PoiseEstimator(Poise(bootstrap=1), setup())
    batch, reads = pairs(1, 20, seed=5)
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    batch, reads = pairs(2, 20, seed=5)
    before = estimator.advantages(batch, reads).value_BT
    flipped = make_batch(2, (1 - batch.outcome_B).tolist(), batch.group_B.tolist())
    assert torch.equal(estimator.advantages(flipped, reads).value_BT, before)
    assert not torch.equal(before[:, 0], swap(batch.outcome_B))


def test_a_baseline_does_not_look_at_its_own_rollouts_features() -> None:
    estimator = with_probe(showing())
    batch = make_batch(1, T9_OUTCOME, T9_GROUP)
    before = estimator.advantages(batch, shown(T9_VALUE)).value_BT
    for i in range(8):
        changed = shown(T9_VALUE)
        changed["features"][i] = 0.123
        after = estimator.advantages(batch, changed).value_BT
        assert torch.allclose(after[i], before[i], rtol=0, atol=1e-12)
        assert not torch.allclose(after[i ^ 1], before[i ^ 1])


def test_a_probe_that_has_seen_a_step_gives_no_baselines_for_it() -> None:
    domain = Domain(Poise(), setup())
    with pytest.raises(RuntimeError, match="step 1"):
        domain.predict(shown([0.5])["features"], 1)
    batch, reads = pairs(3, 6, seed=0)
    domain.learn(batch, reads["features"], torch.arange(12))
    for step in (3, 2):
        with pytest.raises(RuntimeError, match=f"step {step}"):
            domain.predict(reads["features"], step)
    assert domain.predict(reads["features"], 4).shape == (12,)


def test_the_estimator_refuses_advantages_for_a_step_after_it_has_learnt_from_it() -> None:
    estimator = PoiseEstimator(Poise(bootstrap=0), setup())
    batch, reads = pairs(1, 6, seed=0)
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    with pytest.raises(RuntimeError):
        estimator.advantages(batch, reads)


def test_advantages_change_nothing() -> None:
    estimator = PoiseEstimator(Poise(bootstrap=1), setup())
    for step in (1, 2):
        batch, reads = pairs(step, 10, seed=1)
        estimator.learn(batch, reads, estimator.advantages(batch, reads))
    before = estimator.state_dict()
    batch, reads = pairs(3, 10, seed=1)
    results = [estimator.advantages(batch, reads) for _ in range(3)]
    assert torch.equal(results[0].advantage_BT, results[2].advantage_BT)
    after = estimator.state_dict()
    assert after.values == before.values
    assert all(torch.equal(after.tensors[k], before.tensors[k]) for k in before.tensors)


# --- trust ----------------------------------------------------------------------------------------------------------


def trusted_with(history: Sequence[tuple[float, float]]) -> bool:
    domain = Domain(Poise(), setup())
    domain.probe = showing()
    domain.history = [Errors(10, probe, loo, 0.0) for probe, loo in history]
    return domain.trusted(99)


def test_auto_needs_a_scored_step() -> None:
    assert not trusted_with([])
    assert not Domain(Poise(), setup()).trusted(1)


@pytest.mark.parametrize(
    ("history", "wanted"),
    [
        ([(1.0, 2.0)], True),
        ([(2.0, 1.0)], False),
        ([(1.0, 1.0)], False),  # no better, no change
        ([(3.0, 1.0), (1.0, 4.0)], True),  # 4 < 5: the sum counts, not the last step
        ([(1.0, 1.5), (5.0, 4.0)], False),
    ],
)
def test_auto_compares_summed_squared_errors_of_past_steps(history: list[tuple[float, float]], wanted: bool) -> None:
    assert trusted_with(history) is wanted


def test_auto_forgets_steps_older_than_its_window() -> None:
    """One terrible step, then better ones: trusted as soon as the terrible one has left the last TRUST_STEPS."""
    domain = Domain(Poise(), setup())
    found = []
    for step in range(1, TRUST_STEPS + 3):
        domain.probe = showing(step=step - 1)
        # Both siblings predicted alike. Step 1: outcomes 1, 1, predicted 0: errors 1, 1 (siblings: 0, 0).
        # Later: outcomes 1, 0, predicted 1/2: errors 1/4, 1/4 (siblings: 1, 1).
        outcome, value = ([1, 1] * 50, 0.0) if step == 1 else ([1, 0], 0.5)
        labels = torch.arange(len(outcome) // 2).repeat_interleave(2).tolist()
        rows = torch.arange(len(outcome))
        domain.learn(make_batch(step, outcome, labels), shown([value] * len(outcome))["features"], rows)
        found.append(domain.trusted(step + 1))
    assert found == [False] * TRUST_STEPS + [True] * 2


def test_auto_switches_at_the_step_after_the_probe_was_first_scored_better() -> None:
    # Every prompt is a coin: the mean of one sibling errs by 1/2, the mean of everything by 1/4.
    estimator = PoiseEstimator(Poise(), setup())
    draw = torch.Generator().manual_seed(0)
    used = []
    for step in range(1, 5):
        outcome = torch.randint(0, 2, (200,), generator=draw).double()
        batch = make_batch(step, outcome.tolist(), torch.arange(100).repeat_interleave(2).tolist())
        reads = {"features": torch.randn((200, WIDTH), generator=draw)}
        estimate = estimator.advantages(batch, reads)
        used.append(not torch.equal(estimate.value_BT[:, 0], swap(outcome)))
        metrics = estimator.learn(batch, reads, estimate)
        assert metrics["poise/trusted"] == float(used[-1])
    assert used == [False, False, True, True]  # step 1: no probe; step 2: a probe, never scored


def test_auto_keeps_the_siblings_mean_where_siblings_always_agree() -> None:
    estimator = PoiseEstimator(Poise(), setup())
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 7):
        outcome = torch.randint(0, 2, (50,), generator=draw).double().repeat_interleave(2)
        batch = make_batch(step, outcome.tolist(), torch.arange(50).repeat_interleave(2).tolist())
        reads = {"features": torch.randn((100, WIDTH), generator=draw)}
        estimate = estimator.advantages(batch, reads)
        assert first(estimate.advantage_BT) == [0.0] * 100
        estimator.learn(batch, reads, estimate)


@pytest.mark.parametrize("bootstrap", [0, 1, 3])
def test_an_integer_bootstrap_counts_steps_whatever_the_errors(bootstrap: int) -> None:
    # Siblings always agree: by its errors the probe would never be trusted.
    estimator = PoiseEstimator(Poise(bootstrap=bootstrap), setup())
    used = []
    for step in range(1, 6):
        outcome = [1, 1, 0, 0] * 5
        batch = make_batch(step, outcome, torch.arange(10).repeat_interleave(2).tolist())
        draw = torch.Generator().manual_seed(step)
        reads = {"features": torch.randn((20, WIDTH), generator=draw)}
        estimate = estimator.advantages(batch, reads)
        used.append(first(estimate.advantage_BT) != [0.0] * 20)
        estimator.learn(batch, reads, estimate)
    needed = max(1, bootstrap)  # with 0 there is still no probe in the first step
    assert used == [False] * needed + [True] * (5 - needed)


# --- domains --------------------------------------------------------------------------------------------------------


def joined(parts: Sequence[tuple[Batch, dict[str, Tensor]]]) -> tuple[Batch, dict[str, Tensor]]:
    """Batches of different domains side by side, rows of the domains interleaved."""
    outcome = torch.stack([b.outcome_B for b, _ in parts], 1).flatten()
    group = torch.stack([b.group_B + 1000 * k for k, (b, _) in enumerate(parts)], 1).flatten()
    features = torch.stack([r["features"] for _, r in parts], 1).flatten(0, 1)
    domains = [name for names in zip(*(b.domains for b, _ in parts)) for name in names]
    return make_batch(parts[0][0].step, outcome.tolist(), group.tolist(), domains=domains), {"features": features}


def test_domains_are_as_independent_as_two_estimators() -> None:
    both = PoiseEstimator(Poise(bootstrap=1), setup())
    single = {name: PoiseEstimator(Poise(bootstrap=1), setup()) for name in ("math", "code")}
    for step in (1, 2, 3):
        parts = [pairs(step, 15, seed=k, domain=name) for k, name in enumerate(single)]
        alone = [e.advantages(*part) for e, part in zip(single.values(), parts)]
        mixed_batch, mixed_reads = joined(parts)
        mixed = both.advantages(mixed_batch, mixed_reads)
        for k, estimate in enumerate(alone):
            torch.testing.assert_close(mixed.value_BT[k::2], estimate.value_BT, rtol=0, atol=1e-12)
        for estimator, part, estimate in zip(single.values(), parts, alone):
            estimator.learn(*part, estimate)
        both.learn(mixed_batch, mixed_reads, mixed)


def test_a_domain_absent_in_a_step_is_untouched() -> None:
    estimator = PoiseEstimator(Poise(bootstrap=2), setup())
    parts = [pairs(1, 15, seed=k, domain=name) for k, name in enumerate(("math", "code"))]
    batch, reads = joined(parts)
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    code = estimator.domains["code"]
    before = code.probe, code.observed, len(code.buffer), list(code.history)
    for step in (2, 3):
        batch, reads = pairs(step, 15, seed=0, domain="math")
        estimator.learn(batch, reads, estimator.advantages(batch, reads))
    assert estimator.domains["code"] is code
    assert (code.probe, code.observed, len(code.buffer), list(code.history)) == before
    assert not code.trusted(4)  # its own two steps, not the run's
    assert estimator.domains["math"].trusted(4)


def test_a_new_domain_starts_with_the_siblings_mean_while_another_is_trusted() -> None:
    estimator = with_probe(showing())
    batch = make_batch(1, [1, 0, 1, 0], [0, 0, 1, 1], domains=["math", "math", "code", "code"])
    estimate = estimator.advantages(batch, shown([0.3, 0.6, 0.3, 0.6]))
    assert first(estimate.value_BT) == near([0.6, 0.3, 0, 1])


# --- state ----------------------------------------------------------------------------------------------------------


def through_files(state: State) -> State:
    """What a checkpoint keeps: plain JSON values and copies of tensors."""
    return State({k: v.clone() for k, v in state.tensors.items()}, json.loads(json.dumps(state.values)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bootstrap": 2},
        {"alpha": 5.0, "pca_prompt": 1, "pca_response": 1},
        {"buffer_steps": 2},
        {"buffer_rows": 21},
    ],
    ids=str,
)
def test_a_restored_estimator_goes_on_as_if_nothing_had_happened(options: dict[str, Any]) -> None:
    running = PoiseEstimator(Poise(**options), setup())
    for step in (1, 2, 3):
        batch, reads = joined([pairs(step, 9, seed=k, domain=name) for k, name in enumerate(("math", "code"))])
        running.learn(batch, reads, running.advantages(batch, reads))
    restored = PoiseEstimator(Poise(**options), setup())
    restored.load_state_dict(through_files(running.state_dict()))
    for step in (4, 5, 6):
        batch, reads = joined([pairs(step, 9, seed=k, domain=name) for k, name in enumerate(("math", "code"))])
        ours, theirs = running.advantages(batch, reads), restored.advantages(batch, reads)
        assert torch.equal(ours.value_BT, theirs.value_BT)
        for name in ("math", "code"):
            kept, found = (e.domains[name].predict(reads["features"], step) for e in (running, restored))
            assert torch.equal(kept, found)
        assert running.learn(batch, reads, ours) == pytest.approx(
            restored.learn(batch, reads, theirs), abs=0, nan_ok=True
        )


def test_more_than_ten_domains_are_restored_each_to_its_own() -> None:
    names = [f"d{k}" for k in range(12)]
    running = PoiseEstimator(Poise(bootstrap=0), setup())
    batch, reads = joined([pairs(1, 5, seed=k, domain=name) for k, name in enumerate(names)])
    running.learn(batch, reads, running.advantages(batch, reads))
    restored = PoiseEstimator(Poise(bootstrap=0), setup())
    restored.load_state_dict(through_files(running.state_dict()))
    assert set(restored.domains) == set(names)
    for name in names:
        kept, found = (e.domains[name].predict(reads["features"], 2) for e in (running, restored))
        assert torch.equal(kept, found)


def test_an_estimator_that_has_seen_nothing_can_be_restored() -> None:
    restored = PoiseEstimator(Poise(), setup())
    restored.load_state_dict(through_files(PoiseEstimator(Poise(), setup()).state_dict()))
    batch = make_batch(1, [1, 0], [0, 0])
    assert first(restored.advantages(batch, shown([0, 0])).advantage_BT) == [1.0, -1.0]


def test_a_domain_whose_rollouts_were_all_unscorable_can_be_restored() -> None:
    running = PoiseEstimator(Poise(bootstrap=1), setup())
    batch, reads = make_batch(1, [math.nan] * 2, [0, 0]), shown([0.1, 0.2])
    running.learn(batch, reads, running.advantages(batch, reads))
    restored = PoiseEstimator(Poise(bootstrap=1), setup())
    restored.load_state_dict(through_files(running.state_dict()))
    batch, reads = pairs(2, 4, seed=0)
    assert torch.equal(running.advantages(batch, reads).value_BT, restored.advantages(batch, reads).value_BT)


def test_restoring_replaces_what_was_learnt_before() -> None:
    blank = PoiseEstimator(Poise(), setup()).state_dict()
    estimator = PoiseEstimator(Poise(bootstrap=0), setup())
    batch, reads = pairs(1, 6, seed=0)
    estimator.learn(batch, reads, estimator.advantages(batch, reads))
    estimator.load_state_dict(through_files(blank))
    assert torch.equal(estimator.advantages(batch, reads).value_BT[:, 0], swap(batch.outcome_B))


def test_rows_of_another_policy_are_refused() -> None:
    running = PoiseEstimator(Poise(), setup())
    batch, reads = pairs(1, 6, seed=0)
    running.learn(batch, reads, running.advantages(batch, reads))
    other = PoiseEstimator(Poise(), Setup(2, HIDDEN + 1, 2, (0.0, 1.0)))
    with pytest.raises(UserError, match=f"{WIDTH} features.*{WIDTH + 2}"):
        other.load_state_dict(through_files(running.state_dict()))
