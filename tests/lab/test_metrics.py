import math

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    brier_score_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from vantage.lab import metrics
from vantage.lab.metrics import METRICS, Target


def random_data(seed: int, states: int = 200, k: int = 5):
    """Correlated predictions on a coarse grid (so that there are ties) and 0/1 outcomes."""
    draw = np.random.default_rng(seed)
    value = draw.beta(0.8, 0.8, states)
    outcome = (draw.random((states, k)) < value[:, None]).astype(float)
    predicted = np.round(np.clip(value + draw.normal(0, 0.25, states), 0, 1), 1)
    return predicted, outcome, draw.integers(40, size=states), value


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn_and_scipy(seed):
    predicted, outcome, prompt, _ = random_data(seed)
    target, mean = Target.of(outcome, prompt, 0.5), outcome.mean(1)
    assert metrics.mae(predicted, target) == pytest.approx(mean_absolute_error(mean, predicted), abs=1e-12)
    assert metrics.mse(predicted, target) == pytest.approx(mean_squared_error(mean, predicted), abs=1e-12)
    assert metrics.pearson(predicted, target) == pytest.approx(stats.pearsonr(predicted, mean).statistic, abs=1e-12)
    assert metrics.spearman(predicted, target) == pytest.approx(stats.spearmanr(predicted, mean).statistic, abs=1e-12)
    # Every single continuation is a case of its own: AUC and Brier over all of them.
    labels, scores = outcome.ravel(), np.repeat(predicted, outcome.shape[1])
    assert metrics.auc(predicted, target) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.brier(predicted, target) == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)
    skill = 1 - brier_score_loss(labels, scores) / brier_score_loss(labels, np.full(len(labels), 0.5))
    assert metrics.brier_skill(predicted, target) == pytest.approx(skill, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_calibration_is_that_of_scikit_learn(seed):
    predicted, outcome, prompt, _ = random_data(seed, k=1)
    predicted = predicted + 0.013 * (predicted < 0.9)
    found = metrics.calibration(predicted, Target.of(outcome, prompt, 0.5), bins=10)
    share, mean = calibration_curve(outcome[:, 0], predicted, n_bins=10)
    np.testing.assert_allclose(found.mean_C, share, atol=1e-12)
    np.testing.assert_allclose(found.predicted_C, mean, atol=1e-12)
    error = (found.count_C * np.abs(share - mean)).sum() / len(predicted)
    assert metrics.ece(predicted, Target.of(outcome, prompt, 0.5)) == pytest.approx(error, abs=1e-12)


def test_calibration_keeps_predictions_outside_of_the_range():
    target = Target.of(np.array([[0.0], [1.0]]), [0, 1], 0.5)
    found = metrics.calibration(np.array([-0.2, 1.3]), target, bins=4)
    assert found.count_C.tolist() == [1, 1]
    assert metrics.ece(np.array([-0.2, 1.3]), target, 4) == pytest.approx(0.25)


def test_explained_variance_without_noise_is_r_squared():
    draw = np.random.default_rng(0)
    value = draw.random(50)
    predicted = value + draw.normal(0, 0.1, 50) + 0.2
    exact = Target(value, np.zeros(50), np.zeros(50), np.arange(50), 0.5)
    # r2_score divides by the population variance, we by the unbiased one.
    unexplained = (1 - r2_score(value, predicted)) * 49 / 50
    assert metrics.explained_variance(predicted, exact) == pytest.approx(1 - unexplained, abs=1e-12)


def test_noise_correction_of_the_worked_example():
    """Three parsed predictions and one failure, truth from 32 continuations of 0/1 outcomes."""
    predicted, mean = np.array([0.5, 0.9, math.nan, 0.1]), np.array([0.25, 1.0, 0.5, 0.0])
    outcome = (np.arange(32)[None] < (32 * mean)[:, None]).astype(float)
    target = Target.of(outcome, range(4), 0.5)
    np.testing.assert_allclose(target.variance_N, mean * (1 - mean) / 31, atol=1e-15)
    assert metrics.mse(predicted, target) == pytest.approx(0.0275, abs=1e-12)
    assert metrics.mse_corrected(predicted, target) == pytest.approx(0.0254838710, abs=1e-10)
    assert metrics.mse_penalised(predicted, target) == pytest.approx(0.270625, abs=1e-12)


def test_corrected_metrics_forget_the_noise_of_the_truth():
    draw = np.random.default_rng(1)
    value = draw.beta(1, 1, 60_000)
    predicted = 0.7 * value + 0.1
    outcome = (draw.random((len(value), 4)) < value[:, None]).astype(float)
    target = Target.of(outcome, np.arange(len(value)), 0.5)
    error = float(((predicted - value) ** 2).mean())
    assert metrics.mse_corrected(predicted, target) == pytest.approx(error, abs=0.002)
    assert metrics.mse(predicted, target) == pytest.approx(error + float((value * (1 - value)).mean()) / 4, abs=0.002)
    assert metrics.explained_variance(predicted, target) == pytest.approx(1 - error / value.var(), abs=0.02)
    assert metrics.pearson_corrected(predicted, target) == pytest.approx(1, abs=0.01)
    assert metrics.pearson(predicted, target) < 0.9


def test_what_can_not_be_said_is_nan():
    outcome = np.array([[1.0, 0.0], [1.0, 1.0]])
    steady = np.full(2, 0.1 + 0.2)
    target = Target.of(outcome, [0, 1], 0.5)
    assert math.isnan(metrics.pearson(steady, target))
    assert math.isnan(metrics.spearman(steady, target))
    assert math.isnan(metrics.auc(steady, Target.of(np.ones((2, 2)), [0, 1], 0.5)))
    assert metrics.auc(steady, target) == 0.5
    assert math.isnan(metrics.brier_skill(steady, Target.of(np.ones((2, 2)), [0, 1], 1.0)))
    nothing = np.full(2, math.nan)
    assert all(math.isnan(metric(nothing, target)) for metric in METRICS.values())
    unjudged = Target.of(np.array([[math.nan, math.nan], [1.0, math.nan]]), [0, 1], 0.5)
    assert math.isnan(unjudged.mean_N[0])
    assert unjudged.mean_N[1] == 1
    assert math.isnan(unjudged.variance_N[1])


def test_bootstrap_draws_whole_prompts():
    prompt = np.array([0, 0, 0, 1, 2, 2])
    for rows in metrics.resampled_rows(prompt, 50, seed=3):
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[1] == counts[2]
        assert counts[4] == counts[5]
        assert counts[0] + counts[3] + counts[4] == 3


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        shift = np.repeat(draw.normal(0, 0.1, 40), 5)  # errors that all states of a prompt share
        value = draw.random(200)
        target = Target(value, np.zeros(200), np.zeros(200), np.repeat(np.arange(40), 5), 0.5)
        rows = metrics.resampled_rows(target.prompt_N, 200, seed)
        found = metrics.bootstrap(metrics.mse, value + shift, target, rows)
        covered += found.low <= 0.01 <= found.high
    assert 48 <= covered <= 60


def test_paired_difference_is_narrower_than_its_parts():
    predicted, outcome, prompt, _ = random_data(5)
    target = Target.of(outcome, prompt, 0.5)
    rows = metrics.resampled_rows(target.prompt_N, 200)
    other = predicted * 0.98
    difference = metrics.paired(metrics.mse, predicted, other, target, rows)
    alone = metrics.bootstrap(metrics.mse, predicted, target, rows)
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    assert difference.mean == pytest.approx(metrics.mse(predicted, target) - metrics.mse(other, target))
    assert set(metrics.measured(predicted, target, rows[:5])) == set(METRICS)
