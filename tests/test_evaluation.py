"""avg@k, pass@k, intervals, and what `vantage eval` writes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vantage.cli import main
from vantage.evaluation import mean_interval, pass_at_k, wilson


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 4, 2), (4, 0, 3), (8, 7, 2)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(samples, correct, k):
    outcomes = [1] * correct + [0] * (samples - correct)
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(correct, samples, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_wilson_interval_of_known_cases():
    assert wilson(0.5, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    assert wilson(0.0, 20)[0] == 0.0
    assert wilson(0.0, 20)[1] == pytest.approx(0.1611252, abs=1e-6)


def test_repeated_samples_of_a_problem_count_as_one_observation():
    scores = np.repeat(np.array([[1.0], [0.0], [1.0], [0.0]]), 16, axis=1)
    mean, low, high = mean_interval(scores)
    assert mean == 0.5
    half = 1.959963984540054 * np.std([1, 0, 1, 0], ddof=1) / 2
    assert (low, high) == pytest.approx((max(0, 0.5 - half), min(1, 0.5 + half)))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = mean_interval((draw.random((60, 1)) < 0.3).astype(float))
        covered += low <= 0.3 <= high
    assert 0.91 < covered / 400 < 0.99


def test_the_command_writes_results_and_every_response(small_model, tmp_path, capsys):
    argv = [
        "eval",
        str(small_model),
        "--problems",
        "5",
        "--k",
        "4",
        "--max-new-tokens",
        "6",
        "--out",
        str(tmp_path / "e"),
    ]
    assert main(argv) == 0
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert result["avg@k"] == 0.0
    assert set(result["pass@k"]) == {"1", "2", "4"}
    assert "torch" in result["versions"]
    lines = [json.loads(line) for line in (tmp_path / "e" / "problems.jsonl").read_text().splitlines()]
    assert [len(line["responses"]) for line in lines] == [4] * 5
    assert "avg@4" in capsys.readouterr().out
    assert main(argv) == 2
    assert "--out" in capsys.readouterr().err
