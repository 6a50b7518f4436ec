"""Trackers in a training run: what they get is what the run directory has, and the run is the same without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vantage import TrainConfig, Trainer, UserError
from vantage.compare.plan import plan

KEPT = """
import json
from vantage.trackers.base import Tracker

class Kept(Tracker):
    def _write(self, *call):
        with (self.folder / "kept.jsonl").open("a") as file:
            file.write(json.dumps(call) + "\\n")

    def start(self, config, run_name, resume_id, step):
        self._write("start", config["algo"], run_name, resume_id, step)
        return "id"

    def log(self, step, row):
        self._write("log", step, row)

    def samples(self, step, rows):
        self._write("samples", step, [row["response"] for row in rows])

    def finish(self):
        self._write("finish")

class Broken(Kept):
    def log(self, step, row):
        raise OSError("no network")
"""


@pytest.fixture
def trackers(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(KEPT)
    return f"{tmp_path}/mine.py"


def odd(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(c) % 2) for c in completions]


def train(model: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "model": str(model), "out": str(out), "steps": 2, "rollouts_per_step": 8, "max_new_tokens": 6, "eval_every": 0,
        "eval_problems": 4, "samples_every": 1, "samples_count": 3, "checkpoint_every": 1,
    }  # fmt: skip
    Trainer(TrainConfig(**(settings | changes)), reward_funcs=odd).train()
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def kept(out: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]


def test_a_tracker_gets_the_rows_of_the_run_directory_and_goes_on_with_a_resumed_run(small_model, tmp_path, trackers):
    report_to, out = (f"{trackers}:Kept",), tmp_path / "run"
    rows = train(small_model, out, report_to=report_to)
    calls = kept(out)
    assert [call[:2] for call in calls] == [
        ["start", "poise"], ["log", 0], ["samples", 1], ["log", 1], ["samples", 2], ["log", 2], ["finish"],
    ]  # fmt: skip
    assert calls[0][2:] == ["run", None, -1]
    for row, call in zip(rows, (call for call in calls if call[0] == "log"), strict=True):
        assert call[2] == {name: value for name, value in row.items() if name != "step" and value is not None}
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [response for call in calls if call[0] == "samples" for response in call[2]] == [
        sample["response"] for sample in samples
    ]
    train(small_model, out, report_to=report_to, steps=3, resume="auto")
    again = kept(out)[len(calls) :]
    assert [call[:2] for call in again] == [["start", "poise"], ["samples", 3], ["log", 3], ["finish"]]
    assert again[0][2:] == ["run", "id", 2]


def test_a_run_is_the_same_with_a_broken_tracker_and_without_one(small_model, tmp_path, trackers, capsys):
    broken = train(small_model, tmp_path / "broken", report_to=(f"{trackers}:Broken",))
    assert capsys.readouterr().err.count("OSError: no network") == 1
    alone = train(small_model, tmp_path / "alone")
    for one, other in zip(broken, alone, strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(("time/", "throughput/", "mem/"))} == {
            k: v for k, v in other.items() if not k.startswith(("time/", "throughput/", "mem/"))
        }


def test_tensorboard_shows_the_run(small_model, tmp_path):
    rows = train(small_model, tmp_path / "run", report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("reward/mean")}
    assert found == pytest.approx({row["step"]: row["reward/mean"] for row in rows[1:]})
    assert [event.step for event in events.Tensors("samples/text_summary")] == [1, 2]


def test_a_run_whose_tracker_is_gone_goes_on_without_it(small_model, tmp_path, trackers):
    """Another machine may lack the package; the folder still opens, as long as nobody asks for the tracker."""
    train(small_model, tmp_path / "run", report_to=(f"{trackers}:Kept",))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"{trackers}:Kept", "nowhere"))
    rows = train(small_model, tmp_path / "run", steps=3, resume="auto")
    assert rows[-1]["step"] == 3


def test_an_unknown_tracker_is_a_mistake_before_anything_is_written(small_model, tmp_path):
    with pytest.raises(UserError, match="--report-to: there is no tracker 'tensorbord', did you mean 'tensorboard'"):
        train(small_model, tmp_path / "run", report_to=("tensorbord",))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        plan(["grpo", "rloo"], report_to=("tensorbord",))
