"""Real comparisons with a very small policy: processes, training, resumption, signals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vantage
from vantage import cli
from vantage.compare import Ended, compare
from vantage.compare.plan import Cell
from vantage.runfiles import read_metrics, read_samples

TIMES = ("time/", "throughput/", "mem/")
SHAPE: dict[str, Any] = {
    "rollouts_per_step": 16, "eval_problems": 20, "max_new_tokens": 12, "device": "cpu", "eval_every": 1,
    "learning_rate": 1e-3, "samples_every": 1, "samples_count": 16,
}  # fmt: skip


def train_here(cell: Cell, alive: Callable[[], int]) -> Ended:
    """Real training without the cost of a process; a stop asked for is left to the trainer's own handlers."""
    from vantage.trainer import Trainer

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Trainer(cell.config).train()
    return Ended(0)


@pytest.fixture(autouse=True)
def no_pages_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a single run has tests of its own, and takes longer than these runs."""
    monkeypatch.setattr("vantage.report.write_report", lambda runs: SimpleNamespace(html=runs[0] / "report.html"))


def test_two_algorithms_two_seeds_two_steps(small_model: Path, tmp_path: Path) -> None:
    outcome = compare(
        ["poise", "grpo"], runner=train_here, silent=True, out=tmp_path / "c", seeds=2, steps=2, model=str(small_model),
        **SHAPE,
    )  # fmt: skip
    found = outcome.results
    assert outcome.failed == {}
    (problem,) = found["problems"]  # random weights never have a right answer, so the last accuracy is the first
    assert problem.startswith("the target of 0.000 was there before training in 4 of 4 runs")
    assert [(c["algorithm"], c["seed"], c["status"], c["steps"]) for c in found["cells"]] == [
        ("poise", 0, "finished", 2), ("grpo", 0, "finished", 2), ("poise", 1, "finished", 2), ("grpo", 1, "finished", 2),
    ]  # fmt: skip
    for cell in found["cells"]:
        assert [p["step"] for p in cell["evaluations"]] == [0, 1, 2]
        spent = [p["tokens"] for p in cell["evaluations"]]
        assert spent[0] == 0
        assert spent[1] < spent[2] == cell["tokens"] == cell["tokens_generated"]
        assert 0 < cell["evaluations"][1]["seconds"] < cell["evaluations"][2]["seconds"] == cell["seconds"]
        phases = sum(
            cell[f"time/{p}"] for p in ("rollout", "reward", "value", "forward_backward", "value_update", "other")
        )
        assert phases == pytest.approx(cell["seconds"])
        assert cell["peak_memory_gb"] > 0
        assert cell["versions"]["vantage"] == vantage.__version__
    prompts = {
        c["algorithm"]: [row["prompt"] for row in read_samples(outcome.out / c["run"]) if row["step"] == 1]
        for c in found["cells"]
        if c["seed"] == 0
    }
    # 16 rollouts: the first 2 prompts with groups of 8, 8 prompts with groups of 2, from the same stream.
    assert list(dict.fromkeys(prompts["grpo"])) == list(dict.fromkeys(prompts["poise"]))[:2]
    assert (outcome.out / "plots" / "accuracy_step.png").is_file()
    assert "poise, grpo on sums" in outcome.report.read_text()


def test_a_token_budget_ends_every_run_with_the_step_that_uses_it_up(small_model: Path, tmp_path: Path) -> None:
    budget = 400
    outcome = compare(
        ["poise", "grpo"], runner=train_here, silent=True, out=tmp_path / "c", seeds=1, budget_tokens=budget,
        model=str(small_model), **SHAPE,
    )  # fmt: skip
    for cell in outcome.results["cells"]:
        rows = read_metrics(outcome.out / cell["run"])
        assert cell["steps"] > 1
        assert rows[-2]["tokens/total"] < budget <= rows[-1]["tokens/total"] == cell["tokens"]
        assert cell["evaluations"][-1]["step"] == cell["steps"]


FEW_EVALUATIONS = {**SHAPE, "eval_every": 7, "eval_problems": 8, "samples_every": 0}


def command(out: Path, model: Path, steps: int, shape: dict[str, Any] = SHAPE) -> list[str]:
    flags = {**shape, "model": model, "steps": steps, "seeds": 1, "algos": "grpo", "out": out}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["compare", *words]


def test_a_signal_is_passed_on_and_the_same_command_goes_on(small_model: Path, tmp_path: Path) -> None:
    line = command(tmp_path / "c", small_model, 14, FEW_EVALUATIONS)
    source = str(Path(vantage.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "vantage", *line], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    run = tmp_path / "c" / "cells" / "grpo-seed0"
    wait_for(lambda: (run / "metrics.jsonl").is_file() and len(read_metrics(run)) > 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "stopped by SIGINT in run 1 of 1 (grpo seed 0), checkpoint written" in err.splitlines()[-1]
    done = len(read_metrics(run)) - 1
    assert 0 < done < 14
    assert [int(p.name[5:]) for p in (run / "checkpoints").iterdir()] == [done]
    assert (tmp_path / "c" / "comparison.json").is_file() is False
    assert out == ""

    resumed = compare(["grpo"], runner=train_here, silent=True, out=tmp_path / "c", seeds=1, steps=14,
                      model=str(small_model), **FEW_EVALUATIONS)  # fmt: skip
    assert resumed.results["cells"][0]["status"] == "finished"
    assert [row["step"] for row in read_metrics(run)] == list(range(15))


class Killed(BaseException):
    """Ends a comparison as abruptly as SIGKILL: nothing that runs in it is asked."""


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """What comparison.json holds, less what a clock or the machine's memory said."""
    clock = ("second", "time", "memory", "value_share_of_time", "versions", "machine", "git_commit")

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items() if not any(word in key for word in clock)}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return plain(found)


def test_a_comparison_killed_in_the_middle_gives_the_report_of_one_that_was_not(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vantage.trainer import Trainer

    shape = {**FEW_EVALUATIONS, "eval_every": 2, "checkpoint_every": 1}
    asked: dict[str, Any] = {"silent": True, "seeds": 1, "steps": 4, "model": str(small_model), **shape}
    whole = compare(["poise", "grpo"], runner=train_here, out=tmp_path / "whole", **asked)
    step = Trainer.train_step

    def killed(trainer: Trainer, number: int) -> Any:
        if number == 3 and trainer.config.algo.name == "grpo":
            raise Killed
        return step(trainer, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(Killed):
            compare(["poise", "grpo"], runner=train_here, out=tmp_path / "cut", **asked)
    cut = tmp_path / "cut"
    before = json.loads((cut / "comparison.json").read_text())
    assert [cell["status"] for cell in before["cells"]] == ["finished", "missing"]
    assert read_metrics(cut / "cells" / "grpo-seed0")[-1]["step"] == 2
    resumed = compare(["poise", "grpo"], runner=train_here, out=cut, **asked)
    assert without_times(resumed.results) == without_times(whole.results)
    table = without_times(resumed.results)["cells"][1]
    assert [point["accuracy"] for point in table["evaluations"]]
    texts = [
        [line for line in outcome.report.read_text().split("\n") if "poise" in line and "<h1>" in line]
        for outcome in (whole, resumed)
    ]
    assert texts[0] == texts[1] != []


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(vantage.UserError):
            if ready():
                return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate())


def test_the_command_makes_each_run_in_a_process_and_prints_the_outcome(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    assert cli.main(command(out, small_model, 1)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("run 1 of 1: grpo seed 0: accuracy 0.")
    assert f"report   {out / 'report.html'}" in captured.out
    assert "grpo  accuracy 0." in captured.out
    assert "step 1/1" in (out / "cells" / "grpo-seed0.log").read_text()
    assert json.loads((out / "comparison.json").read_text())["cells"][0]["status"] == "finished"
    assert (out / "comparison.csv").read_text().count("\n") == 2


def test_an_input_that_the_run_refuses_is_one_line_and_nothing_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c"
    assert cli.main(command(out, tmp_path / "no-model", 1)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"vantage: error: grpo seed 0: --model {tmp_path / 'no-model'}: ")
    assert err.count("\n") == 1
    assert not out.exists()
