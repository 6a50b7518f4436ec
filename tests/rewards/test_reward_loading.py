"""`--reward FILE.py:FUNCTION`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vantage.errors import UserError
from vantage.rewards import RewardSet, from_spec


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.py"
    path.write_text(
        "def correct(completions, answer, **kwargs):\n"
        "    return [float(c.strip().endswith(a)) for c, a in zip(completions, answer)]\n"
        "class Judge: ...\nnumber = 3\n"
    )
    return path


def test_a_function_from_a_file_scores(file: Path) -> None:
    rewards = RewardSet([from_spec(f"{file}:correct")])(
        prompts=["q", "q"], completions=["= 4 ", "5"], completion_ids=[[], []], columns={"answer": ["4", "4"]}
    )
    assert rewards.components == {"correct": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corect", "did you mean 'correct'"),
        ("Judge", "this is a class; name a function"),
        ("number", "this is a int, it must be a function"),
    ],
)
def test_what_is_no_function_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_spec(f"{file}:{name}")


def test_another_form_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^--reward: 'accuracy' is not of the form FILE.py:FUNCTION, and no verifier: math"
    ):
        from_spec("accuracy")
