"""Trackers: what each sink is sent, what happens when one fails, and that a resumed run goes on under its id."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vantage import trackers
from vantage.errors import UserError
from vantage.trackers.base import Tracker, numbers, table
from vantage.trackers.reporting import Reporting
from vantage.trackers.tensorboard_sink import markdown

SAMPLES = [
    {"step": 1, "prompt": "1+1=", "response": "2\n<b>|", "reward": 1.0, "length": 6},
    {"step": 1, "prompt": "2+2=", "response": "5", "reward": float("nan"), "length": 2, "extra": {"a": 1}},
]


class Recorder(Tracker):
    """Keeps every call."""

    calls: list[tuple]

    def start(self, config, run_name, resume_id, step):
        type(self).calls.append(("start", dict(config), run_name, resume_id, step))
        return resume_id or "id-1"

    def log(self, step, row):
        type(self).calls.append(("log", step, dict(row)))

    def samples(self, step, rows):
        type(self).calls.append(("samples", step, list(rows)))

    def finish(self):
        type(self).calls.append(("finish",))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """`--report-to wandb` is a tracker that keeps its calls."""
    kind = type("Kept", (Recorder,), {"calls": []})
    monkeypatch.setattr("vantage.trackers.reporting.check", trackers.names_of)
    monkeypatch.setattr("vantage.trackers.reporting.load", lambda name: kind)
    return kind


def reporting(folder: Path, report_to: str = "wandb") -> tuple[Reporting, list[str]]:
    said: list[str] = []
    return Reporting(report_to, folder, said.append), said


def test_names_are_split_at_commas_and_each_counts_once() -> None:
    assert trackers.names_of("wandb, tensorboard,,wandb") == ("wandb", "tensorboard")
    assert trackers.names_of(("wandb,trackio", "none")) == ("wandb", "trackio")
    assert trackers.names_of("") == ()


def test_a_misspelt_tracker_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^--report-to: there is no tracker 'wandbb', did you mean 'wandb'\?$"):
        trackers.check("wandbb")
    with pytest.raises(UserError, match=r"'comet'; known: wandb, tensorboard, trackio, or FILE.py:CLASS$"):
        trackers.check("comet")


def test_a_missing_package_is_answered_with_the_command_that_adds_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_installed", lambda package: False)
    with pytest.raises(UserError) as caught:
        trackers.check("tensorboard")
    assert str(caught.value) == (
        "--report-to tensorboard: the package tensorboard or tensorboardX is not installed; "
        'pip install "vantage-rl[tensorboard]"'
    )
    monkeypatch.setattr(trackers, "_installed", lambda package: package == "tensorboardX")
    assert trackers.check("tensorboard") == ("tensorboard",)


def test_importing_the_names_loads_no_tracker_and_no_torch() -> None:
    import subprocess

    code = "import sys, vantage.trackers as t; t.names_of('wandb'); print({'wandb', 'torch', 'tensorboard'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_class_in_a_file_is_a_tracker_and_another_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from vantage.trackers.base import Tracker\nclass Mine(Tracker):\n    pass\nclass Other:\n    pass\n"
    )
    assert trackers.load(trackers.check(f"{tmp_path}/mine.py:Mine")[0]).__name__ == "Mine"
    with pytest.raises(UserError, match=r"Other.* is not a subclass of vantage.trackers.base.Tracker"):
        reporting(tmp_path, f"{tmp_path}/mine.py:Other")


def test_only_finite_numbers_are_sent_and_the_step_is_no_number() -> None:
    row = {"step": 3, "a": 1.5, "b": float("nan"), "c": None, "d": "x", "e": float("inf"), "f": 2}
    assert numbers(row) == {"a": 1.5, "f": 2}


def test_a_table_has_a_column_for_every_key_and_none_where_a_row_has_no_entry() -> None:
    columns, cells = table(SAMPLES)
    assert columns == ["step", "prompt", "response", "reward", "length", "extra"]
    assert cells == [[1, "1+1=", "2\n<b>|", 1.0, 6, None], [1, "2+2=", "5", None, 2, "{'a': 1}"]]


def test_a_markdown_table_shows_text_as_it_is() -> None:
    head, rule, first, second = markdown(SAMPLES).split("\n")
    assert (head, rule) == ("| step | prompt | response | reward | length | extra |", "|" + " --- |" * 6)
    assert first == "| 1 | 1+1= | 2<br>&#60;b&#62;&#124; | 1 | 6 |  |"
    assert second.startswith("| 2 |") is False
    assert second.count("|") == head.count("|")


def test_a_run_is_started_logged_and_finished_in_order(tmp_path: Path, recorder: type[Recorder]) -> None:
    sinks, said = reporting(tmp_path)
    sinks.start({"steps": 2}, "name")
    sinks.log({"step": 0, "eval/accuracy": 0.5})
    sinks.samples(SAMPLES)
    sinks.log({"step": 1, "reward/mean": 0.25, "value/mae": float("nan")})
    sinks.finish()
    assert recorder.calls == [
        ("start", {"steps": 2}, "name", None, -1),
        ("log", 0, {"eval/accuracy": 0.5}),
        ("samples", 1, SAMPLES),
        ("log", 1, {"reward/mean": 0.25}),
        ("finish",),
    ]
    assert said == []
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": {"id": "id-1", "step": 1}}
    assert [p.name for p in tmp_path.iterdir()] == ["trackers.json"]


def test_a_resumed_run_goes_on_under_its_id_and_sends_no_step_twice(tmp_path: Path, recorder: type[Recorder]) -> None:
    first, _ = reporting(tmp_path)
    first.start({}, "name")
    for step in range(4):
        first.log({"step": step, "x": float(step)})
    recorder.calls.clear()  # killed; the newest checkpoint is of step 2
    again, _ = reporting(tmp_path)
    again.start({}, "name")
    for step in (2, 3, 4):
        again.samples([{"step": step, "prompt": "p"}])
        again.log({"step": step, "x": float(step)})
    assert recorder.calls == [
        ("start", {}, "name", "id-1", 3),
        ("samples", 4, [{"step": 4, "prompt": "p"}]),
        ("log", 4, {"x": 4.0}),
    ]


def test_ids_that_can_not_be_read_mean_a_fresh_run(tmp_path: Path, recorder: type[Recorder]) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb": ')
    sinks, _ = reporting(tmp_path)
    sinks.start({}, "name")
    assert recorder.calls == [("start", {}, "name", None, -1)]


@pytest.mark.parametrize("failing", ["__init__", "start", "log", "samples", "finish"])
def test_a_tracker_that_fails_is_named_once_and_not_called_again(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def broken(self: object, *arguments: object) -> None:
        recorder.calls.append(("broken",))
        raise OSError(28, "No space left on device\n(really)")

    monkeypatch.setattr(recorder, failing, broken, raising=False)
    sinks, said = reporting(tmp_path)
    sinks.start({}, "name")
    for step in (1, 2):
        sinks.samples([{"step": step, "prompt": "p"}])
        sinks.log({"step": step, "x": 1.0})
    sinks.finish()
    assert said == [
        "tracker wandb: OSError: [Errno 28] No space left on device (really); nothing more is sent to it, "
        "metrics.jsonl has every row"
    ]
    assert recorder.calls.count(("broken",)) == 1
    assert recorder.calls[-1] == ("broken",)


def test_one_tracker_that_fails_leaves_the_other_at_work(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Recorder):
        def log(self, step, row):
            raise SystemExit("no network")

    monkeypatch.setattr("vantage.trackers.reporting.load", lambda name: Broken if name == "trackio" else recorder)
    Broken.calls = []
    sinks, said = reporting(tmp_path, "trackio,wandb")
    sinks.start({}, "name")
    sinks.log({"step": 0, "x": 1.0})
    sinks.log({"step": 1, "x": 2.0})
    assert [call[:2] for call in recorder.calls[1:]] == [("log", 0), ("log", 1)]
    assert len(said) == 1
    assert said[0].startswith("tracker trackio: SystemExit: no network; ")


def test_what_a_tracker_prints_and_draws_stays_out_of_the_run(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def noisy(self: object, step: int, row: object) -> None:
        print("hello", random.random(), np.random.rand())

    monkeypatch.setattr(recorder, "log", noisy)
    sinks, _ = reporting(tmp_path)
    sinks.start({}, "name")
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    sinks.log({"step": 1, "x": 1.0})
    assert (random.random(), np.random.rand()) == expected
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("hello")


def test_ids_that_can_not_be_kept_are_said_once_and_reporting_goes_on(tmp_path: Path, recorder: type[Recorder]) -> None:
    (tmp_path / ".trackers.json.tmp").mkdir()  # where the draft would go
    sinks, said = reporting(tmp_path)
    sinks.start({}, "name")
    sinks.log({"step": 0, "x": 1.0})
    assert len(said) == 1
    assert "trackers.json can not be written (Is a directory)" in said[0]
    assert recorder.calls[-1] == ("log", 0, {"x": 1.0})


def test_no_names_write_nothing(tmp_path: Path) -> None:
    sinks, _ = reporting(tmp_path, "")
    sinks.start({}, "name")
    sinks.log({"step": 0, "x": 1.0})
    sinks.finish()
    assert list(tmp_path.iterdir()) == []


class FakeModule(SimpleNamespace):
    """Stands for wandb and trackio: the few calls that the sinks make."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logs: list[tuple] = []
        self.finished = 0
        super().__init__(Table=lambda columns, data: ("table", columns, data))

    def init(self, **settings):
        self.inits.append(settings)
        return self

    def log(self, row, step):
        self.logs.append((step, row))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_rows_tables_and_the_same_id_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake = FakeModule()
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    for part in (range(3), range(2, 4)):
        sinks, said = reporting(tmp_path, name)
        sinks.start({"steps": 3, "algo": {"name": "grpo"}}, "my run")
        for step in part:
            sinks.samples([{"step": step, "prompt": "p", "reward": 0.5}])
            sinks.log({"step": step, "reward/mean": 0.5, "value/mae": None})
        sinks.finish()
        assert said == []
    first, second = fake.inits
    assert first["project"] == "vantage"
    assert first["config"] == {"steps": 3, "algo": {"name": "grpo"}}
    identity = json.loads((tmp_path / "trackers.json").read_text())[name]["id"]
    if name == "wandb":
        assert (first["id"], first["name"], first["resume"], first["dir"]) == (
            identity, "my run", "allow", str(tmp_path),
        )  # fmt: skip
        assert second["id"] == identity
    else:
        assert first["name"] == identity
        assert identity.startswith("my run-")
        assert (first["resume"], second["name"], second["resume"]) == ("never", identity, "allow")
    sample = {"samples": ("table", ["step", "prompt", "reward"], [[0, "p", 0.5]])}
    assert fake.logs[:2] == [(0, sample), (0, {"reward/mean": 0.5})]
    assert [step for step, _ in fake.logs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert fake.finished == 2


def test_the_project_is_the_one_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        fake = FakeModule()
        monkeypatch.setitem(sys.modules, name, fake)
        monkeypatch.setenv(f"{name.upper()}_PROJECT", "thesis")
        reporting(tmp_path, name)[0].start({}, "run")
        assert fake.inits[0]["project"] == "thesis"


def test_tensorboard_gets_scalars_a_table_and_is_told_what_to_purge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeWriter] = []

    class FakeWriter:
        def __init__(self, logdir: str, purge_step: int | None, filename_suffix: str) -> None:
            self.logdir, self.purge_step, self.calls, self.suffix = logdir, purge_step, [], filename_suffix
            made.append(self)

        def __getattr__(self, name: str):
            return lambda *arguments: self.calls.append((name, *arguments))

    module = SimpleNamespace(SummaryWriter=FakeWriter, __spec__=None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails: no package tensorboard
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    for part in (range(2), range(1, 3)):
        sinks, said = reporting(tmp_path, "tensorboard")
        sinks.start({"algo": {"name": "grpo"}, "steps": 2}, "name")
        for step in part:
            sinks.samples([{"step": step, "prompt": "p"}])
            sinks.log({"step": step, "x": 0.5})
        sinks.finish()
        assert said == []
    first, second = made
    assert (first.logdir, first.purge_step) == (str(tmp_path / "tensorboard"), None)
    assert first.calls == [
        ("add_text", "config", "| setting | value |\n| --- | --- |\n| algo.name | grpo |\n| steps | 2 |", 0),
        ("add_text", "samples", "| step | prompt |\n| --- | --- |\n| 0 | p |", 0),
        ("add_scalar", "x", 0.5, 0),
        ("flush",),
        ("add_text", "samples", "| step | prompt |\n| --- | --- |\n| 1 | p |", 1),
        ("add_scalar", "x", 0.5, 1),
        ("flush",),
        ("close",),
    ]
    assert (second.logdir, second.purge_step) == (first.logdir, 2)
    assert first.suffix != second.suffix
    assert [call[0] for call in second.calls] == ["add_text", "add_scalar", "flush", "close"]


@pytest.mark.parametrize("package", ["tensorboard", "tensorboardX"])
def test_real_event_files_hold_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    from tensorboard.backend.event_processing import event_accumulator as accumulator

    if package == "tensorboardX":
        pytest.importorskip(package)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for part in (range(3), range(2, 5)):
        sinks, said = reporting(tmp_path, "tensorboard")
        sinks.start({"steps": 4}, "name")
        for step in part:
            sinks.samples([{"step": step, "prompt": "a|b\nc"}])
            sinks.log({"step": step, "reward/mean": step / 4})
        sinks.finish()
        assert said == []
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(i, i / 4) for i in range(5)]
    texts = events.Tensors("samples/text_summary")
    assert [e.step for e in texts] == list(range(5))
    assert b"a&#124;b<br>c" in texts[0].tensor_proto.string_val[0]


def test_real_wandb_writes_an_offline_run_and_takes_it_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for part in (range(2), range(1, 3)):
        sinks, said = reporting(tmp_path, "wandb")
        sinks.start({"steps": 2, "algo": {"name": "grpo"}}, "name")
        for step in part:
            sinks.samples(SAMPLES)
            sinks.log({"step": step, "reward/mean": 0.5})
        sinks.finish()
        assert said == []
        ids.append(json.loads((tmp_path / "trackers.json").read_text())["wandb"])
    assert ids[0]["id"] == ids[1]["id"]
    assert [entry["step"] for entry in ids] == [1, 2]
    assert list(tmp_path.glob(f"wandb/offline-run-*-{ids[0]['id']}/run-{ids[0]['id']}.wandb"))


def test_real_trackio_keeps_both_parts_of_a_run_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "run"
    run.mkdir()
    for part in (range(3), range(2, 5)):
        sinks, said = reporting(run, "trackio")
        sinks.start({"steps": 4}, "name")
        for step in part:
            sinks.samples([{"step": step, "prompt": "p"}])
            sinks.log({"step": step, "reward/mean": step / 4})
        sinks.finish()
        assert said == []
    identity = json.loads((run / "trackers.json").read_text())["trackio"]["id"]
    rows = SQLiteStorage.get_logs("vantage", identity)
    assert [(row["step"], row["reward/mean"]) for row in rows if "reward/mean" in row] == [(i, i / 4) for i in range(5)]
    assert [row["step"] for row in rows if "samples" in row] == list(range(5))
