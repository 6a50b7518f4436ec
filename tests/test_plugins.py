"""`FILE.py:NAME`: what is found, and that every mistake is one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vantage.errors import UserError
from vantage.plugins import did_you_mean, load_object, one_line


@pytest.fixture(autouse=True)
def _restored_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def failure(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        load_object(spec, "--reward")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("--reward: ")
    return message


def test_returns_the_object_of_that_name(tmp_path: Path) -> None:
    assert load_object(write(tmp_path, "def f():\n    return 7\n") + ":f", "--reward")() == 7


def test_a_file_runs_once_however_many_names_are_taken_from_it(tmp_path: Path) -> None:
    file = write(tmp_path, "class A: ...\nb = A()\n")
    assert isinstance(load_object(f"{file}:b", "--reward"), load_object(f"{file}:A", "--task"))


def test_an_edited_file_is_loaded_anew(tmp_path: Path) -> None:
    file = write(tmp_path, "value = 1\n")
    assert load_object(f"{file}:value", "--reward") == 1
    write(tmp_path, "value = 2\n")
    assert load_object(f"{file}:value", "--reward") == 2


def test_a_relative_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "value = 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_object("mine.py:value", "--reward") == 1


def test_a_file_can_import_its_neighbours_and_hold_dataclasses(tmp_path: Path) -> None:
    write(tmp_path, "value = 3\n", "vantage_test_neighbour.py")
    file = write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from vantage_test_neighbour import value\n@dataclass\nclass Point:\n    x: int = value\n",
    )
    assert load_object(f"{file}:Point", "--task")().x == 3


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", "mine:f", "mine.py:a.b", ""])
def test_another_form_is_refused(spec: str) -> None:
    assert failure(spec) == f"--reward: {spec!r} is not of the form FILE.py:NAME"


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "", "rewards.py")
    assert failure(f"{tmp_path}/reward.py:f") == (
        f"--reward: there is no file '{tmp_path}/reward.py', did you mean 'rewards.py'?"
    )
    assert failure("no/such/folder/x.py:f") == "--reward: there is no file 'no/such/folder/x.py'"


def test_a_missing_name_is_given_with_the_nearest_one(tmp_path: Path) -> None:
    file = write(tmp_path, "def correct(): ...\n")
    assert failure(f"{file}:corect") == f"--reward: {file} has no 'corect', did you mean 'correct'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nraise ValueError('two\\nlines')\n", "mine.py line 2 fails on import: ValueError: two lines"),
        ("import sys\n\nsys.exit(3)\n", "mine.py line 3 fails on import: SystemExit: 3"),
        ("import no_such_module_at_all\n", "line 1 fails on import: ModuleNotFoundError: No module named"),
        ("def f(:\n", "mine.py line 1 fails on import: SyntaxError"),
    ],
)
def test_an_error_inside_the_file_comes_with_its_line_and_message(tmp_path: Path, text: str, expected: str) -> None:
    spec = write(tmp_path, text) + ":f"
    assert expected in failure(spec)
    assert expected in failure(spec)  # a failed module is not kept


def test_one_line_shortens_and_survives_exceptions_that_can_not_print_themselves() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert one_line(MuteError()) == "MuteError"
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(ValueError("x" * 500), limit=20) == "ValueError: xxxxxxx…"


def test_did_you_mean_is_empty_without_a_near_name() -> None:
    assert did_you_mean("suns", ["sums", "tools"]) == ", did you mean 'sums'?"
    assert did_you_mean("zzz", ["sums"]) == ""
