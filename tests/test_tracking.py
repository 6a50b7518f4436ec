"""What a run writes: rows survive torn lines and resumes, numbers that JSON can not say become null."""

from __future__ import annotations

import json

from vantage.summary import Accuracy, difference
from vantage.tracking import JsonLines, describe, finite


def test_rows_after_the_restored_step_and_torn_lines_are_dropped(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.append([{"step": i, "x": i / 2} for i in range(5)])
    with lines.path.open("a") as file:
        file.write('{"step": 5, "x": 2.')
    lines.drop_after(3)
    assert [json.loads(row)["step"] for row in lines.path.read_text().splitlines()] == [0, 1, 2, 3]
    lines.append([{"step": 4}])
    assert json.loads(lines.path.read_text().splitlines()[-1]) == {"step": 4}
    lines.drop_after(-1)
    assert lines.path.read_text() == ""
    assert not list(tmp_path.glob("*.tmp"))


def test_numbers_that_are_not_finite_become_null():
    assert finite({"a": float("nan"), "b": [1.0, float("inf")], "c": "x", "d": 3}) == {
        "a": None, "b": [1.0, None], "c": "x", "d": 3,
    }  # fmt: skip


def test_the_progress_line_leaves_out_what_is_unknown():
    row = {"reward/mean": 0.5, "value/mae": float("nan"), "throughput/tokens_per_second": 1234.5}
    assert describe(row) == "reward 0.500  1,234 tokens/s"
    assert describe(row | {"value/mae": 0.25, "eval/accuracy": 0.4}).endswith("accuracy 0.400")


def test_the_gain_has_both_half_widths_in_quadrature():
    gain = difference(Accuracy(0.4, 0.37, 0.43), Accuracy(0.7, 0.66, 0.74))
    assert (round(gain.mean, 6), round(gain.low, 6), round(gain.high, 6)) == (0.3, 0.25, 0.35)
