"""Runs are made once, go on where they stopped, and are refused where they are of another comparison."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compare.made import MadeRuns, files_in, rows_of, write_run
from vantage import cli
from vantage.compare import Ended, Outcome, Stopped, compare, plan
from vantage.compare import api as compare_api
from vantage.compare.board import Clock
from vantage.compare.cells import share_done, state_of
from vantage.compare.plan import Cell, resolved, workload
from vantage.compare.run import run_process
from vantage.compare.slots import slots_of, visible_gpus
from vantage.errors import UserError
from vantage.estimators import REGISTRY
from vantage.settings.configfile import load_yaml_config


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have tests of their own, and take most of the time."""
    monkeypatch.setattr("vantage.compare.report.write_comparison_report", lambda found, folder: folder / "report.html")


def made(out: Path, runner: MadeRuns, algos: tuple[str, ...] = ("poise", "grpo"), **asked: Any) -> Outcome:
    return compare(list(algos), runner=runner, silent=True, out=out, **{"seeds": 2, "steps": 4, **asked})


def test_finished_runs_are_taken_as_they_are(tmp_path: Path) -> None:
    first, second = MadeRuns(), MadeRuns()
    made(tmp_path / "c", first)
    assert first.asked == ["poise-seed0", "grpo-seed0", "poise-seed1", "grpo-seed1"]
    before = {name: (tmp_path / "c" / "cells" / name).stat().st_mtime_ns for name in files_in(tmp_path / "c" / "cells")}
    made(tmp_path / "c", second)
    assert second.asked == []
    assert before == {
        name: (tmp_path / "c" / "cells" / name).stat().st_mtime_ns for name in files_in(tmp_path / "c" / "cells")
    }


def test_a_run_that_has_begun_is_made_again_by_the_runner_which_resumes_it(tmp_path: Path) -> None:
    comparison = plan(["poise", "grpo"], seeds=1, steps=4, out=tmp_path / "c")
    begun, other = comparison.cells()
    write_run(begun, rows_of(0.5)[:3], finished=False)
    write_run(other, rows_of(0.5))
    assert (state_of(begun), state_of(other)) == ("begun", "finished")
    runner = MadeRuns()
    made(tmp_path / "c", runner, seeds=1)
    assert runner.asked == ["poise-seed0"]


def test_a_comparison_can_grow_by_seeds_and_algorithms(tmp_path: Path) -> None:
    made(tmp_path / "c", MadeRuns())
    more = MadeRuns()
    made(tmp_path / "c", more, ("poise", "grpo", "rloo"), seeds=3)
    assert more.asked == ["rloo-seed0", "rloo-seed1", "poise-seed2", "grpo-seed2", "rloo-seed2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 5}, "--steps is 5, but the run in {run} has 4; give the same value, or choose another --out"),
        ({"temperature": 0.9}, "--temperature is 0.9, but the run in {run} has 1.0; give the same value, "),
        ({"eval_every": 3}, "--eval-every is 3, but the run in {run} has 10; give the same value, "),
        ({"eval_problems": 7}, "--eval-problems is 7, but the run in {run} has 1000; give the same value, "),
        ({"learning_rate": 1.0}, "--learning-rate is 1.0, but the run in {run} has 0.00015; give the same value, "),
        ({"budget_tokens": 9, "steps": None}, "--steps is 1000000, but the run in {run} has 4; "),
    ],
)
def test_a_run_of_another_configuration_is_refused_before_any_run(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    made(tmp_path / "c", MadeRuns(), seeds=1)
    before = files_in(tmp_path)
    runner = MadeRuns()
    with pytest.raises(UserError) as caught:
        made(tmp_path / "c", runner, seeds=3, **changed)
    assert str(caught.value).startswith(message.format(run=tmp_path / "c" / "cells" / "poise-seed0"))
    assert runner.asked == []
    assert files_in(tmp_path) == before


def test_settings_without_influence_may_change(tmp_path: Path) -> None:
    made(tmp_path / "c", MadeRuns())
    again = MadeRuns()
    made(tmp_path / "c", again, samples_every=3, checkpoint_every=2, keep_checkpoints=0)
    assert again.asked == []


def test_runs_of_an_older_version_that_lacked_an_option_are_taken_as_they_are(tmp_path: Path) -> None:
    made(tmp_path / "c", MadeRuns())
    for file in (tmp_path / "c" / "cells").glob("*/config.yaml"):
        kept = [line for line in file.read_text().splitlines() if not line.startswith("mismatch_correction:")]
        file.write_text("\n".join(kept))
    again = MadeRuns()
    made(tmp_path / "c", again)
    assert again.asked == []


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="this folder holds other files and no comparison; choose another"):
        made(tmp_path / "c", MadeRuns())
    (tmp_path / "f").touch()
    with pytest.raises(UserError, match="this is a file; give a folder"):
        made(tmp_path / "f", MadeRuns())
    inner = tmp_path / "d" / "cells" / "poise-seed0"
    inner.mkdir(parents=True)
    (inner / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="poise-seed0 holds other files and no run"):
        made(tmp_path / "d", MadeRuns())


class FailsOnce(MadeRuns):
    """The runs of `broken` fail with `status`."""

    broken: frozenset[str] = frozenset()
    status = 1

    def __call__(self, cell: Cell, alive: Callable[[], int]) -> Ended:
        if cell.path.name in self.broken:
            self.asked.append(cell.path.name)
            return Ended(self.status, "out of memory")
        return super().__call__(cell, alive)


def test_a_run_that_fails_leaves_a_note_and_the_others_go_on(tmp_path: Path) -> None:
    runner = FailsOnce()
    runner.broken = frozenset({"poise-seed0"})
    outcome = made(tmp_path / "c", runner)
    assert runner.asked == ["poise-seed0", "grpo-seed0", "poise-seed1", "grpo-seed1"]
    assert outcome.failed == {str(tmp_path / "c" / "cells" / "poise-seed0"): "out of memory"}
    assert outcome.results["problems"] == ["poise seed 0 failed: out of memory"]
    assert outcome.results["algorithms"]["poise"]["finished"] == 1
    repaired = made(tmp_path / "c", again := MadeRuns())
    assert again.asked == ["poise-seed0"]
    assert repaired.failed == {}


def test_failed_runs_end_the_command_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = FailsOnce()
    runner.broken = frozenset({"grpo-seed0"})
    real = compare_api.run_comparison
    monkeypatch.setattr(compare_api, "run_comparison", lambda comparison: real(comparison, runner))
    line = ["compare", "--algos", "poise,grpo", "--seeds", "1", "--steps", "4", "--out", str(tmp_path / "c")]
    assert cli.main(line) == 1
    captured = capsys.readouterr()
    assert "note     grpo seed 0 failed: out of memory" in captured.out
    assert "run 2 of 2: grpo seed 0 failed: out of memory" in captured.err


def test_wrong_input_in_the_very_first_run_ends_the_comparison(tmp_path: Path) -> None:
    runner = FailsOnce()
    runner.broken, runner.status = frozenset({"poise-seed0", "poise-seed1"}), 2
    with pytest.raises(UserError, match=r"^poise seed 0: out of memory$"):
        made(tmp_path / "c", runner)
    assert runner.asked == ["poise-seed0"]
    assert not (tmp_path / "c").exists()


def test_a_run_that_ends_well_without_a_result_counts_as_failed(tmp_path: Path) -> None:
    def nothing(cell: Cell, alive: Callable[[], int]) -> Ended:
        return Ended(0)

    outcome = compare(["poise"], runner=nothing, silent=True, out=tmp_path / "c", seeds=1)
    assert list(outcome.failed.values()) == ["ended without a result"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_running_run(tmp_path: Path, number: signal.Signals) -> None:
    seen: list[int] = []

    def interrupted(cell: Cell, alive: Callable[[], int]) -> Ended:
        os.kill(os.getpid(), number)
        seen.append(alive())
        write_run(cell, rows_of(0.5)[:2], finished=False)
        return Ended(128 + number)

    with pytest.raises(Stopped) as caught:
        compare(["poise", "grpo"], runner=interrupted, silent=True, out=tmp_path / "c", seeds=1, steps=4)
    assert seen == [number]
    assert caught.value.signal == number
    assert str(caught.value) == f"stopped by {number.name} in run 1 of 2 (poise seed 0)"
    more = MadeRuns()
    made(tmp_path / "c", more, seeds=1)
    assert more.asked == ["poise-seed0", "grpo-seed0"]


def test_the_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        raise Stopped(signal.SIGINT, "in run 2 of 4 (grpo seed 0)")

    monkeypatch.setattr(compare_api, "run_comparison", stop)
    line = ["compare", "--algos", "poise,grpo", "--out", str(tmp_path / "my runs")]
    assert cli.main(line) == 130
    assert capsys.readouterr().err == (
        "vantage: stopped by SIGINT in run 2 of 4 (grpo seed 0), checkpoint written; go on with the same command: "
        f"vantage compare --algos poise,grpo --out '{tmp_path}/my runs'\n"
    )


def test_the_time_left_is_that_of_finished_runs_of_the_same_algorithm() -> None:
    poise, grpo = plan(["poise", "grpo"], seeds=1).cells()
    clock = Clock()
    assert clock.left([poise]) is None
    assert clock.left([poise, grpo], running=10.0, share=0.25) == 30 + 40
    clock.add("poise", 100.0)
    assert clock.left([grpo, poise]) == 200.0
    clock.add("grpo", 40.0)
    assert clock.left([grpo, poise]) == 140.0
    assert clock.left([grpo, poise], running=30.0) == 110.0
    assert clock.left([]) == 0.0


def test_the_share_of_a_run_follows_its_budget() -> None:
    row = {"step": 3, "tokens/total": 50, "time/total": 9.0}
    by_steps, by_tokens, by_seconds = (
        plan(["poise"], **asked).cells()[0].config
        for asked in ({"steps": 4}, {"budget_tokens": 200}, {"budget_seconds": 10.0})
    )
    assert share_done(row, by_steps) == 0.75
    assert share_done(row, by_tokens) == 0.25
    assert share_done(row, by_seconds) == 0.9
    assert share_done({}, by_tokens) == 0.0


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Cell]:
    """A cell whose `python -m vantage train` is a shell script."""

    def make(script: str) -> Cell:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("sys.executable", str(program))
        return plan(["poise"], seeds=1, out=tmp_path / "c").cells()[0]

    return make


def test_a_process_gets_the_settings_of_its_run_and_its_output_goes_to_a_log(
    stand_in: Callable[[str], Cell], tmp_path: Path
) -> None:
    cell = stand_in('echo "$@"')
    assert run_process(cell, lambda: 0) == Ended(0)
    log = (tmp_path / "c" / "cells" / "poise-seed0.log").read_text()
    assert log == f"-m vantage train {cell.path}.yaml --out {cell.path} --resume auto\n"
    assert load_yaml_config(Path(f"{cell.path}.yaml")) == cell.config


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("echo x; echo 'vantage: error: --model x: no such' >&2; exit 2", Ended(2, "--model x: no such")),
        ("echo Traceback; echo 'ValueError: no' >&2; exit 1", Ended(1, "ValueError: no")),
        ("exit 3", Ended(3, "ended with status 3")),
        ("kill -9 $$", Ended(-9, "killed by SIGKILL")),
        ("exit 143", Ended(143, "stopped by SIGTERM from outside")),
    ],
)
def test_the_last_words_of_a_failed_process_are_its_note(
    stand_in: Callable[[str], Cell], script: str, ended: Ended
) -> None:
    assert run_process(stand_in(script), lambda: 0) == ended


def test_a_process_gets_the_signal_once_and_may_finish_its_step(
    stand_in: Callable[[str], Cell], tmp_path: Path
) -> None:
    script = "trap 'echo caught; sleep 0.6; exit 130' INT; echo ready; while :; do sleep 0.05; done"
    log = tmp_path / "c" / "cells" / "poise-seed0.log"

    def alive() -> int:
        return signal.SIGINT if log.exists() and "ready" in log.read_text() else 0

    assert run_process(stand_in(script), alive).status == 130
    assert log.read_text() == "ready\ncaught\n"


def test_a_second_signal_ends_the_process_at_once(stand_in: Callable[[str], Cell]) -> None:
    calls = []

    def alive() -> int:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return signal.SIGINT

    with pytest.raises(KeyboardInterrupt):
        run_process(stand_in("trap '' INT; while :; do sleep 0.05; done"), alive)


class Together(MadeRuns):
    """Runs that end only when as many run side by side as are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(lambda cell: 0.6 + 0.01 * cell.seed)
        self.barrier = threading.Barrier(count, timeout=240)
        self.environments: list[dict[str, str]] = []

    def __call__(self, cell: Cell, alive: Callable[[], int]) -> Ended:
        self.environments.append(dict(cell.environment))
        self.barrier.wait()
        return super().__call__(cell, alive)


def test_runs_go_side_by_side_and_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    beside, alone = Together(2), MadeRuns(lambda cell: 0.6 + 0.01 * cell.seed)
    ours = made(tmp_path / "a", beside, device="cuda").results  # type: ignore[arg-type]
    theirs = made(tmp_path / "b", alone, device="cuda", jobs=1).results
    assert sorted(beside.asked) == sorted(alone.asked)
    assert sorted(e["CUDA_VISIBLE_DEVICES"] for e in beside.environments) == ["4", "4", "7", "7"]
    assert {**ours, "git_commit": ""} == {**theirs, "git_commit": ""}
    assert made(tmp_path / "a", again := MadeRuns(), device="cuda").results["cells"] == ours["cells"]
    assert again.asked == []


def test_a_mistake_that_one_of_several_finds_stops_the_others(tmp_path: Path) -> None:
    seen: list[int] = []

    def runner(cell: Cell, alive: Callable[[], int]) -> Ended:
        if cell.path.name == "poise-seed0":
            return Ended(2, "no such model")
        for _ in range(6000):
            if number := alive():
                seen.append(number)
                return Ended(128 + number)
            time.sleep(0.01)
        raise AssertionError("nobody said to stop")

    with pytest.raises(UserError, match="poise seed 0: no such model"):
        compare(["poise", "grpo"], runner=runner, silent=True, out=tmp_path / "c", seeds=2, jobs=2, device="cpu")
    assert seen == [signal.SIGTERM]


def test_a_signal_reaches_all_that_run(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=240)

    def runner(cell: Cell, alive: Callable[[], int]) -> Ended:
        both.wait()
        if cell.algorithm == "poise":
            os.kill(os.getpid(), signal.SIGTERM)
        while not (number := alive()):
            time.sleep(0.01)
        write_run(cell, rows_of(0.5)[:2], finished=False)
        return Ended(128 + number)

    with pytest.raises(Stopped, match="stopped by SIGTERM after 0 of 4 runs"):
        compare(
            ["poise", "grpo"], runner=runner, silent=True, out=tmp_path / "c", seeds=2, steps=4, jobs=2, device="cpu"
        )
    more = MadeRuns()
    assert made(tmp_path / "c", more, device="cpu").failed == {}
    assert len(more.asked) == 4


def test_what_each_of_several_runs_gets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    assert slots_of(None, "auto", []) == slots_of(1, "auto", ["0", "1"]) == [{}]
    assert slots_of(4, "cpu", ["0"]) == [{"OMP_NUM_THREADS": "2"}] * 4
    assert slots_of(None, "auto", ["0", "1"]) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    with pytest.raises(UserError, match="--jobs is 3, but there are 2 GPUs"):
        slots_of(3, "cuda", ["0", "1"])
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == ["2", "10"]
    with pytest.raises(UserError, match="--jobs is 0, it must be greater than 0"):
        plan(["poise"], jobs=0)


def test_a_process_gets_the_environment_of_its_slot(stand_in: Callable[[str], Cell], tmp_path: Path) -> None:
    cell = dataclasses.replace(stand_in("echo gpu $CUDA_VISIBLE_DEVICES"), environment={"CUDA_VISIBLE_DEVICES": "5"})
    assert run_process(cell, lambda: 0) == Ended(0)
    assert (tmp_path / "c" / "cells" / "poise-seed0.log").read_text() == "gpu 5\n"


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_algorithm_can_be_a_cell_and_be_tuned(name: str, tmp_path: Path) -> None:
    comparison = plan([name, "grpo" if name == "rloo" else "rloo"], seeds=1, steps=4, tune=True, out=tmp_path / "c")
    cells = [*comparison.tuning_cells(), *comparison.cells(dict.fromkeys(comparison.names, 1e-4))]
    assert len(cells) == 2 * 3 + 2
    work = workload(comparison.base)
    for cell in cells:
        assert resolved(cell, work).rollouts_per_step == 256
        write_run(cell, rows_of(0.5))
        assert load_yaml_config(cell.path / "config.yaml").algo == cell.config.algo
