"""What does a run directory hold? Readers for the plain files that every run leaves behind.

They work on finished, interrupted and still growing runs: a last line that was cut off while it was being written is
skipped, and files that a young run has not written yet read as empty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vantage.errors import UserError

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl` in file order, one per step; empty if the run has not logged anything yet.

    Raises:
        UserError: `run` is no run directory, or a line other than a torn last one is not a JSON object.
    """
    return _read_lines(_run_directory(run) / METRICS_FILE)


def read_samples(run: Path) -> list[dict[str, Any]]:
    """Rows of `samples.jsonl` in file order, one per sampled completion; empty if there are none.

    Raises:
        UserError: as for `read_metrics`.
    """
    return _read_lines(_run_directory(run) / SAMPLES_FILE)


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of the run, with the `versions` it was made with.

    Raises:
        UserError: `run` is no run directory, or its configuration is not a YAML mapping.
    """
    import yaml

    path = _run_directory(run) / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable as YAML ({reason}); restore the file that the run wrote") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(config).__name__}")
    return config


def first_model(model: str) -> str:
    """The model that a run, or a chain of runs that continue each other, began with; any other `model` is its own.

    A run is named by its folder or by the `model` folder in it.
    """
    seen: set[Path] = set()
    while (run := _run_of(model)) is not None and run not in seen:
        seen.add(run)
        try:
            found = read_config(run).get("model")
        except UserError:
            break
        if not isinstance(found, str):
            break
        model = found
    return model


def _run_of(model: str) -> Path | None:
    path = Path(model)
    places = (path, path.parent) if path.name == "model" else (path,)
    return next((p for p in places if (p / CONFIG_FILE).is_file() and (p / METRICS_FILE).is_file()), None)


def _run_directory(run: Path) -> Path:
    if not run.is_dir():
        found = "is a file" if run.exists() else "does not exist"
        raise UserError(f"run: {run} {found}; give the folder that `vantage train` wrote (its --out)")
    if not (run / CONFIG_FILE).is_file():
        raise UserError(
            f"run: {run} is no run, it holds no {CONFIG_FILE}; give the folder that `vantage train` wrote (its --out)"
        )
    return run


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Split at "\n" only: str.splitlines would also cut at U+2028 and the like inside a completion.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}: line {number} is not a JSON object; remove the line or restore the file")
    return rows
