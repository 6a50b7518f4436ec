"""`--task SPEC`: what each form resolves to."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vantage import plugins
from vantage.errors import UserError
from vantage.tasks import Problem, Task, get_task, task_names

PLUGIN = """
from vantage.tasks import Problem, Task

class Capitals(Task):
    name = "capitals"
    version = "1"

    def __init__(self):
        self.train = [Problem("Capital of France?", {"answer": "Paris"})]

class Nameless(Task):
    train = [Problem("q")]

class Empty(Task):
    name, version, train = "e", "1", []

class Broken(Task):
    def __init__(self):
        raise RuntimeError("no\\nluck")

class Other: ...
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path / "mine.py"


def test_built_in_names_resolve_to_tasks_of_that_name() -> None:
    assert task_names()[:3] == ["sums", "sums:more-terms", "sums:three-digits"]
    for name in task_names()[:3]:
        task = get_task(name)
        assert task.name == name
        assert len(task.train) == 100_000
        assert task.reward_range == (0.0, 1.0)
    assert (get_task("sums").max_new_tokens, get_task("sums").min_segment_tokens) == (80, 1)
    assert get_task("sums").step_separator == "\n"


def test_a_class_in_a_file_is_instantiated(file: Path) -> None:
    task = get_task(f"{file}:Capitals")
    assert task.train[0] == Problem("Capital of France?", {"answer": "Paris"})
    with pytest.raises(UserError, match="capitals: it has no held-out problems"):
        task.evaluation(3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Capital", "has no 'Capital', did you mean 'Capitals'"),
        ("Nameless", "Nameless does not set name, version"),
        ("Empty", "Empty.train must be a sequence of vantage.tasks.Problem, not empty"),
        ("Broken", "Broken fails: RuntimeError: no luck"),
        ("Other", "is not a subclass of vantage.tasks.Task"),
    ],
)
def test_what_is_no_task_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_task(f"{file}:{name}")


def test_installed_packages_can_register_tasks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    entries = [EntryPoint("capitals", "mine:Capitals", "vantage.tasks"), EntryPoint("gone", "gone:T", "vantage.tasks")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "vantage.tasks" else [])
    assert "capitals" in task_names()
    assert isinstance(get_task("capitals"), Task)
    with pytest.raises(UserError, match=r"the plugin 'gone' \(gone:T\) does not load: ModuleNotFoundError"):
        get_task("gone")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sumz", "^--task: there is no task 'sumz', did you mean 'sums'"),
        ("sums:three-digit", "did you mean 'three-digits'"),
        ("qqqqq", "no task 'qqqqq'; known: sums, .*, jsonl:PATH, parquet:PATH, hub:NAME, gym:NAME, FILE.py:CLASS$"),
        ("data.csv", "no task 'data.csv'; known: "),
        ("mine.py:T", "there is no file 'mine.py'"),
    ],
)
def test_unknown_tasks_come_with_a_hint(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_task(spec)


def test_a_file_of_another_kind_is_told_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("prompt,answer\n")
    with pytest.raises(UserError, match=r"data.csv' is a file, .*\.jsonl, \.json or \.parquet, or say which it is"):
        get_task(str(tmp_path / "data.csv"))


def test_options_for_data_are_refused_elsewhere() -> None:
    with pytest.raises(UserError, match=r"^--prompt-column: only data files .* not the task 'sums'; leave it out$"):
        get_task("sums", prompt_column="question")


def test_importing_tasks_and_rewards_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'asyncio'}"
    code = (
        f"import sys, vantage.tasks, vantage.rewards; vantage.tasks.get_task('sums'); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
