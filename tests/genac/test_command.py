"""`vantage critic sft|pretrain|score` from the command line, and `vantage train` with what they leave."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tests.genac.made import save_schooled_critic
from vantage.cli import main
from vantage.genac.critic import read_card
from vantage.genac.scoring import errors
from vantage.lab.metrics import Target
from vantage.tasks import get_task

COMMON = ["--task", "sums", "--max-new-tokens", "8", "--rollouts-per-step", "16", "--genac.success-problems", "4"]


@pytest.fixture(scope="module")
def schooled(tmp_path_factory) -> str:
    return str(save_schooled_critic(tmp_path_factory.mktemp("critic") / "schooled"))


def test_the_stages_follow_each_other_and_a_run_takes_their_critic(small_model, schooled, tmp_path, capsys):
    model = ["--model", str(small_model)]
    first, second = str(tmp_path / "sft"), str(tmp_path / "pretrained")
    school = ["--genac.sft-steps", "2", "--genac.sft-examples", "16", "--genac.sft-batch", "8"]
    assert main(["critic", "sft", *model, *COMMON, *school, "--genac.critic", "copy", "--out", first]) == 0
    assert read_card(first)["stage"] == "sft"
    assert "--genac.critic " + first in capsys.readouterr().out
    made = ["critic", "pretrain", *model, *COMMON, "--genac.critic", schooled, "--steps", "2", "--out", second]
    assert main([*made, "--genac.panel-every", "1"]) == 0
    card = read_card(second)
    assert card["stage"] == "pretrain"
    assert 0 <= card["rate"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "pretrained" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {"genac/brier", "genac/panel_brier", "genac/critic_reward", "reward/mean"} <= rows[1].keys()
    assert rows[0]["genac/parse_rate"] > 0.5
    assert "parse_rate" in capsys.readouterr().err


def test_a_score_has_outcomes_truth_and_every_state(small_model, schooled, tmp_path, capsys):
    out = tmp_path / "score"
    settings = [
        "--model",
        str(small_model),
        "--task",
        "sums",
        "--problems",
        "3",
        "--rollouts",
        "2",
        "--max-new-tokens",
        "6",
    ]
    settings = ["critic", "score", schooled, *settings, "--samples", "2", "--rate", "0.3"]
    assert main([*settings, "--continuations", "2", "--out", str(out)]) == 0
    found = json.loads((out / "score.json").read_text())
    states = [json.loads(line) for line in (out / "states.jsonl").read_text().splitlines()]
    assert found["states"] == len(states) >= 3
    assert found["shown_rate"] == 0.3
    assert all(len(row["said"]) == 2 and row["truth"] == 0.0 for row in states)
    values = [row["value"] for row in states if row["value"] is not None]
    assert found["against_truth"]["mse"] == pytest.approx(sum(v * v for v in values) / len(values))
    task = get_task("sums")
    problems = {p.prompt: p for p in task.evaluation(3)}
    said = [task.critique(problems[row["problem"]], row["prefix"], 0.3).value for row in states]
    assert found["against_truth"]["mse_of_the_oracle"] == pytest.approx(sum(v * v for v in said) / len(said))
    assert sum(found["parts"][part]["states"] for part in found["parts"]) == len(states)
    assert "can be parsed" in capsys.readouterr().out
    again = tmp_path / "again"
    assert main([*settings, "--out", str(again)]) == 0
    assert [json.loads(line)["said"] for line in (again / "states.jsonl").read_text().splitlines()] == [
        row["said"] for row in states
    ]


def test_errors_have_intervals_over_problems_and_a_paired_difference_to_the_constant():
    truth_N = np.array([0.0, 0.0, 1.0, 1.0] * 20)
    noise_N, problem_N = np.full(80, 0.01), np.repeat(np.arange(20), 4)
    target = Target(truth_N, noise_N, np.zeros(80), problem_N, 0.5)
    value_N = np.where(truth_N == 1.0, 0.8, 0.2)
    found = errors(value_N, target)
    assert found["mse"] == pytest.approx(0.04)
    assert found["mse_noise_corrected"] == pytest.approx(0.03)
    assert found["mse_of_the_best_constant_noise_corrected"] == pytest.approx(0.24)
    assert found["mse_noise_corrected_less_that_of_the_constant"] == pytest.approx(-0.21)
    assert found["pearson"] == pytest.approx(1.0)
    assert "mse_of_the_oracle" not in found
    assert errors(value_N, target, truth_N)["mse_of_the_oracle_noise_corrected"] == pytest.approx(-0.01)
    value_N[:4] = [
        0.0,
        0.0,
        math.nan,
        0.0,
    ]  # one problem is judged otherwise: a failure, and a value as wrong as can be
    found = errors(value_N, target)
    assert found["mse_penalised"] == pytest.approx((2 + 76 * 0.04) / 80)
    low, high = found["intervals"]["mse_penalised"]
    assert low < found["mse_penalised"] < high
    assert low == pytest.approx(0.04)  # resamples without that problem


def test_a_dry_run_prints_the_settings_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["critic", "sft", "--out", "x", "--dry-run", "--genac.sft-steps", "7"]) == 0
    assert "sft_steps: 7" in capsys.readouterr().out
    assert main(["critic"]) == 0
    assert "pretrain" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
