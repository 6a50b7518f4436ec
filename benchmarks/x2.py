"""Experiment X2: what each value estimate costs: seconds, peak memory, tokens that are generated for it.

    python benchmarks/x2.py [--steps 5] [--model tiny] [--task sums] [--quick] [--out DIR] [--json PATH]

Each algorithm trains a few steps in a process of its own (peak memory is the process's), from the same seed on the same stream
of prompts. Reported are medians over the steps after the first two, in which buffers and critics begin: seconds of the value
estimate and of its learning, as they are and as a share of the step; tokens generated for values over those of rollouts; peak
memory over that of `rloo`. `--model init:FOLDER --device cuda` does the same at larger shapes. What was measured is kept in
--out. Writes results/x2.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import write
from vantage.models.loading import choose_device
from vantage.runfiles import read_metrics

ALGOS = (
    "rloo", "grpo", "dr_grpo", "dapo", "reinforce", "poise", "poise_token", "vimpo", "ppo", "vineppo", "genac",
)  # fmt: skip
BEGINNING = 2
"""First steps, which are left out."""
BASE = "rloo"


def run(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl of a short run; taken as they are where the run is finished."""
    if not (folder / "summary.json").is_file():
        command = [
            sys.executable, "-m", "vantage", "train", "--algo", name, "--model", arguments.model, "--task", arguments.task,
            "--steps", str(arguments.steps + BEGINNING), "--rollouts-per-step", str(arguments.rollouts), "--device",
            arguments.device, "--eval-problems", "0", "--samples-every", "0", "--checkpoint-every", "0", "--out", str(folder),
            "--resume", "auto",
        ]  # fmt: skip
        if arguments.max_new_tokens:
            command += ["--max-new-tokens", str(arguments.max_new_tokens)]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return [row for row in read_metrics(folder) if row["step"] > BEGINNING]


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over steps."""

    def median(key: str) -> float:
        return statistics.median(float(row.get(key) or 0.0) for row in rows)

    value = [float(row["time/value"]) + float(row["time/value_update"]) for row in rows]
    return {
        "seconds_step": median("time/step"),
        "seconds_value": median("time/value"),
        "seconds_value_update": median("time/value_update"),
        "share_of_time": statistics.median(v / float(row["time/step"]) for v, row in zip(value, rows)),
        "tokens_rollouts": median("tokens/generated"),
        "tokens_value": median("tokens/value_extra"),
        "peak_gb": max(float(row["mem/peak_gb"]) for row in rows),
        "raw": [
            {key: row.get(key) for key in ("step", "time/step", "time/value", "time/value_update")} for row in rows
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", default=",".join(ALGOS))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--task", default="sums")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/x2"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="three algorithms, one small step")
    arguments = parser.parse_args()
    names = arguments.algos.split(",")
    if arguments.quick:
        names, arguments.steps, arguments.rollouts = [BASE, "poise", "ppo"], 1, 16
    found: dict[str, Any] = {}
    for name in names:
        found[name] = measured(run(name, arguments, arguments.out / name))
        print(
            f"{name:12s} value {found[name]['seconds_value']:.3f} s of {found[name]['seconds_step']:.2f} s", flush=True
        )
    base = found[BASE]
    for row in found.values():
        row["step_over_base"] = row["seconds_step"] / base["seconds_step"]
        row["peak_over_base"] = row["peak_gb"] / base["peak_gb"]
    if arguments.quick and arguments.json is None:
        return
    result = {
        "quick": arguments.quick, "base": BASE, "rollouts_per_step": arguments.rollouts, "steps": arguments.steps,
        "model": arguments.model, "task": arguments.task, "device": choose_device(arguments.device).type, "algorithms": found,
    }  # fmt: skip
    print(write("x2", json.loads(json.dumps(result)), arguments.json))


if __name__ == "__main__":
    main()
