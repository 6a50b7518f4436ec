"""Experiment G4: GenAC against PPO, VinePPO and every algorithm without a critic, in training, at equal steps on equal prompts.

    python benchmarks/genac_rl.py [--out FOLDER] [--quick] [--json PATH]

All take the same rollouts a step and the same learning rate (that of the warm-started policy; nobody is tuned); GenAC begins
with the embedded critic, so joint training begins at once. The page sets accuracy against steps, generated tokens (those for
values included) and seconds. FOLDER has the runs; a stopped comparison goes on there. Writes results/genac-rl.json. What a step
costs in tokens, FLOPs and seconds is measured by genac_cost.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import run_here, write
from vantage.compare import compare
from vantage.estimators import REGISTRY

CRITICS = ("genac", "ppo", "vineppo")
ALGORITHMS = (*CRITICS, *(name for name in REGISTRY if name not in CRITICS))
FULL: dict[str, Any] = {
    "seeds": 3, "steps": 30, "rollouts_per_step": 128, "learning_rate": 1.5e-4, "eval_every": 6, "eval_problems": 500,
    "checkpoint_every": 3, "samples_every": 0,
}  # fmt: skip
QUICK: dict[str, Any] = {
    "runner": run_here,
    "seeds": 2, "steps": 2, "rollouts_per_step": 16, "eval_every": 2, "eval_problems": 20, "samples_every": 0,
}  # fmt: skip


def main() -> None:
    """Run the comparison and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="those with critics alone, two seeds, two steps")
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    names = CRITICS if arguments.quick else ALGORITHMS
    outcome = compare(names, task="sums", out=str(arguments.out or Path("runs") / "genac-rl"), **settings)
    if arguments.quick and arguments.json is None:
        return
    print(write("genac-rl", {"quick": arguments.quick, **outcome.results}, arguments.json))


if __name__ == "__main__":
    main()
