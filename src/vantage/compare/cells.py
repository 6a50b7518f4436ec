"""How far is one run of a comparison, is it the run that is asked for, and which numbers did it give?"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vantage.compare.plan import Cell
from vantage.config import TrainConfig
from vantage.errors import UserError
from vantage.plots import number
from vantage.runfiles import read_config, read_metrics
from vantage.settings import configfile

State = Literal["new", "begun", "finished"]
Rows = Sequence[Mapping[str, Any]]

MAY_DIFFER = {
    "out", "resume", "checkpoint_every", "keep_checkpoints", "samples_every", "samples_count", "reward_timeout",
}  # fmt: skip
"""Settings that have no influence on the numbers of a comparison."""
CURVES = (
    "policy/grad_norm", "value/variance_reduction", "value/mae", "value/pearson", "reward/mean", "policy/entropy",
    "completion/length_mean", "groups/zero_advantage",
)  # fmt: skip
"""Metrics whose course over training is kept."""
PHASES = ("rollout", "reward", "value", "forward_backward", "value_update")
"""Phases of a step; seconds of each are kept under `time/PHASE`."""


def state_of(cell: Cell) -> State:
    """Whether the run is still to begin, has begun, or is finished."""
    if not cell.path.is_dir() or not any(cell.path.iterdir()):
        return "new"
    return "finished" if _summary(cell) is not None else "begun"


def _summary(cell: Cell) -> dict[str, Any] | None:
    try:
        found = json.loads((cell.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def refuse_other(cell: Cell, asked: TrainConfig) -> None:
    """Raise `UserError` if the folder holds anything but a run of the configuration `asked` (a resolved one)."""
    if state_of(cell) == "new":
        if cell.path.exists() and not cell.path.is_dir():
            raise UserError(f"--out: {cell.path} is a file, it should become the folder of a run; remove it")
        return
    if not (cell.path / "config.yaml").is_file():
        raise UserError(f"--out: {cell.path} holds other files and no run; remove them, or choose another --out")
    configfile.refuse_other(cell.path, asked, MAY_DIFFER, "give the same value, or choose another --out")


def last_row(cell: Cell) -> tuple[Mapping[str, Any], float | None]:
    """The newest row of a run and its newest accuracy; an empty row before the first one."""
    try:
        rows = read_metrics(cell.path)
    except (UserError, OSError):
        return {}, None
    accuracies = [value for row in rows if (value := number(row.get("eval/accuracy"))) is not None]
    return (rows[-1] if rows else {}), (accuracies[-1] if accuracies else None)


def share_done(row: Mapping[str, Any], config: TrainConfig) -> float:
    """How much of the run's budget the row has used, in [0, 1]."""
    shares = [(number(row.get("step")) or 0.0) / config.steps]
    if config.budget_tokens is not None:
        shares.append((number(row.get("tokens/total")) or 0.0) / config.budget_tokens)
    if config.budget_seconds is not None:
        shares.append((number(row.get("time/total")) or 0.0) / config.budget_seconds)
    return min(1.0, max(shares))


def measure(cell: Cell, note: str = "") -> dict[str, Any]:
    """Every number of a run that the comparison uses; only the header and `note` while the run is not finished."""
    header = {
        "algorithm": cell.algorithm,
        "seed": cell.seed,
        "learning_rate": cell.config.learning_rate,
        "run": str(cell.path.relative_to(cell.path.parents[1])),
    }
    if state_of(cell) != "finished":
        return header | {"status": "failed" if note else "missing", "note": note}
    rows = read_metrics(cell.path)
    recorded = read_config(cell.path)
    measured = numbers_of(rows)
    if measured["final_accuracy"] is None:
        return header | {"status": "failed", "note": "the run has no evaluation at its end"}
    header["learning_rate"] = number(recorded.get("learning_rate"))
    return header | {"status": "finished", "note": "", "versions": recorded.get("versions")} | measured


def numbers_of(rows: Rows) -> dict[str, Any]:
    """Results, cost and curves from the rows of metrics.jsonl; docs/compare.md has the meaning of each key."""
    trained = [row for row in rows if (number(row.get("step")) or 0.0) > 0]
    spent = [(row, number(row.get("tokens/total")) or 0.0, number(row.get("time/total")) or 0.0) for row in rows]
    evaluations: list[dict[str, Any]] = [
        {
            "step": int(row["step"]),
            "tokens": tokens,
            "seconds": seconds,
            "accuracy": accuracy,
            "low": number(row.get("eval/accuracy_low")),
            "high": number(row.get("eval/accuracy_high")),
        }
        for row, tokens, seconds in spent
        if (accuracy := number(row.get("eval/accuracy"))) is not None
    ]
    first = evaluations[0] if evaluations else {}
    last = evaluations[-1] if len(evaluations) > 1 or first.get("step") else {}
    final, start = last.get("accuracy"), first.get("accuracy")
    return {
        "start_accuracy": start,
        "final_accuracy": final,
        "final_accuracy_low": last.get("low"),
        "final_accuracy_high": last.get("high"),
        "gain": final - start if final is not None and start is not None else None,
        "steps": int(trained[-1]["step"]) if trained else 0,
        **_cost(rows, trained, spent),
        **_means(trained),
        "evaluations": evaluations,
        "curves": {
            "step": [int(row["step"]) for row in trained],
            **{key: [number(row.get(key)) for row in trained] for key in CURVES if _has(trained, key)},
        },
    }


def _cost(rows: Rows, trained: Rows, spent: Sequence[tuple[Any, float, float]]) -> dict[str, Any]:
    seconds = spent[-1][2] if spent else 0.0
    phases = {f"time/{phase}": _sum(trained, f"time/{phase}") for phase in PHASES}
    value = phases["time/value"] + phases["time/value_update"]
    peaks = _values(trained, "mem/peak_gb")
    return {
        "seconds": seconds,
        "seconds_per_step": seconds / len(trained) if trained else None,
        **phases,
        "time/other": max(0.0, seconds - sum(phases.values())),
        "time/eval": _sum(rows, "time/eval"),
        "time/checkpoint": _sum(trained, "time/checkpoint"),
        "value_share_of_time": value / seconds if seconds else None,
        "tokens": spent[-1][1] if spent else 0.0,
        "tokens_generated": _sum(trained, "tokens/generated"),
        "tokens_value_extra": _sum(trained, "tokens/value_extra"),
        "tokens_filtered": _sum(trained, "tokens/filtered"),
        "tokens_trained": _sum(trained, "tokens/trained"),
        "peak_memory_gb": max(peaks) if peaks else None,
    }


def _means(trained: Rows) -> dict[str, Any]:
    """Means over steps of everything under value/, and mean and spread of the gradient's norm."""
    keys = dict.fromkeys(key for row in trained for key in row if key.startswith("value/"))
    found = {key: statistics.fmean(values) for key in sorted(keys) if (values := _values(trained, key))}
    norms = _values(trained, "policy/grad_norm")
    mean = statistics.fmean(norms) if norms else None
    std = statistics.stdev(norms) if len(norms) > 1 else None
    relative = std / mean if std is not None and mean else None
    rewards = _values(trained, "reward/mean")
    return {
        **found,
        "grad_norm_mean": mean,
        "grad_norm_std": std,
        "grad_norm_relative_std": relative,
        "reward_mean": statistics.fmean(rewards) if rewards else None,
    }


def _values(rows: Rows, key: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(key))) is not None]


def _has(rows: Rows, key: str) -> bool:
    return bool(_values(rows, key))


def _sum(rows: Rows, key: str) -> float:
    return math.fsum(_values(rows, key))
