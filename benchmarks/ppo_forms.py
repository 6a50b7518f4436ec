"""PPO's forms on an embedded world, seen to work: a copied critic, a head on the policy's states, and λ of the policy below 1.

    python benchmarks/ppo_forms.py [--out FOLDER] [--quick] [--json PATH]

Thirty default steps of each, one seed: accuracy before and after, what the critic explains, and what its part of a step costs.
No comparison of algorithms. FOLDER has the runs; a stopped comparison goes on there. Writes results/ppo-forms.json, from which
the table in docs/ppo.md comes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import run_here, write
from vantage import Ppo
from vantage.compare import compare

FORMS = {"copy": Ppo(), "head": Ppo(critic="head"), "lambda-0.95": Ppo(lam_actor=0.95)}
FULL: dict[str, Any] = {"steps": 30, "eval_every": 30, "checkpoint_every": 10, "samples_every": 0}
QUICK: dict[str, Any] = {"steps": 3, "eval_every": 3, "eval_problems": 20, "rollouts_per_step": 16, "samples_every": 0}
LAST = 10
"""Steps at the end over which figures are averaged."""


def course(path: Path) -> dict[str, Any]:
    """Accuracy before and after with its interval; means of the last steps."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    accuracy = [
        {name: row[f"eval/accuracy{end}"] for name, end in (("mean", ""), ("low", "_low"), ("high", "_high"))}
        for row in rows
        if "eval/accuracy" in row
    ]
    last = [row for row in rows if "critic/explained_variance" in row][-LAST:]

    def mean(key: str) -> float:
        return sum(row.get(key, 0.0) for row in last) / len(last)

    value, step = mean("time/value") + mean("time/value_update"), mean("time/step")
    return {
        "before": accuracy[0], "after": accuracy[-1], "explained_variance": mean("critic/explained_variance"),
        "within_response_std": mean("critic/within_response_std"), "share_of_step": value / step,
    }  # fmt: skip


def main() -> None:
    """Make the runs and write what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="a few small steps")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / "ppo-forms"
    settings = QUICK if arguments.quick else FULL
    outcome = compare(FORMS, task="sums", seeds=1, learning_rate=1.5e-4, out=str(out), runner=run_here, **settings)
    found = {"quick": arguments.quick, **outcome.results}
    found["course"] = {name: course(out / "cells" / f"{name}-seed0") for name in FORMS}
    if arguments.quick and arguments.json is None:
        return
    print(write("ppo-forms", found, arguments.json))


if __name__ == "__main__":
    main()
