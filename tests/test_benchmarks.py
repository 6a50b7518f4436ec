"""Every benchmark script runs end to end in its quick form and writes what the documents read."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def quick(name: str, *flags: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_value_cost(tmp_path):
    quick("value_cost", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
    assert found["buffer_rows"] == 8 * 16
    assert len(found["raw"]["ratios"]) == found["pairs"] == 3
    assert {"versions", "machine", "git_commit"} <= set(found)


@pytest.mark.slow
def test_vineppo_cost(tmp_path):
    quick("vineppo_cost", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert set(found) == {"K=1", "K=3", "K=3, reuse"}
    assert found["K=1"]["tokens"] < found["K=3"]["tokens"] == found["K=3, reuse"]["tokens"]
    assert found["K=3"]["rows_computed"] <= found["K=3"]["tokens"]
    assert found["K=3"]["samples_per_value"] == 3 <= found["K=3, reuse"]["samples_per_value"]


@pytest.mark.slow
def test_vineppo(tmp_path):
    quick("vineppo", "cap", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == ["m0", "m2"]
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4


@pytest.mark.slow
def test_step_time(tmp_path):
    quick("step_time", "--out", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["ratios"]["vantage"]["time"]["median"] > 0
    assert found["ratios"]["vantage"]["peak_memory"] > 0
    assert [len(side["seconds"]) for side in found["sides"].values()] == [3, 3, 3]
    assert all(4 < side["mean_length"] <= 64 for side in found["sides"].values())


@pytest.mark.slow
def test_demo(tmp_path):
    before = (BENCHMARKS / "results" / "demo.json").read_bytes()
    quick("demo")
    assert (BENCHMARKS / "results" / "demo.json").read_bytes() == before


def test_the_committed_results_are_those_that_the_readme_tells_of():
    runs = json.loads((BENCHMARKS / "results" / "demo.json").read_text())["runs"]
    readme = (BENCHMARKS.parent / "README.md").read_text()
    for run in runs:
        assert f"{run['before']['mean']:.3f} → {run['after']['mean']:.3f}" in readme
        assert 0.35 <= run["before"]["mean"] <= 0.5
        assert run["gain"]["mean"] >= 0.25
        assert run["gain"]["low"] >= 0.2
        assert run["wall_seconds"] <= 300


@pytest.mark.slow
def test_algorithms(tmp_path):
    quick("algorithms", "--out", str(tmp_path / "runs"), "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["algorithms_compared"] == ["poise", "grpo"]
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4
    assert {"versions", "machine", "git_commit"} <= set(found)


def test_the_page_of_results_is_made_from_the_committed_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    page = importlib.import_module("results_page")
    assert page.page() == (BENCHMARKS.parent / "docs" / "results.md").read_text()
    committed = sorted((BENCHMARKS / "results").glob("algorithms-*.json"))
    assert committed
    for path in committed:
        found = json.loads(path.read_text())
        assert not found["quick"]
        assert len(found["seeds"]["reporting"]) >= 3
        assert not set(found["seeds"]["reporting"]) & set(found["seeds"]["tuning"])
        assert all(row["finished"] == row["of"] for row in found["algorithms"].values())
