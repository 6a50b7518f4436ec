"""Experiment P4: what does the probe need? Features, layers, windows and regressors, one grid of probes.

    python benchmarks/p4.py [--world sums] [--cache DIR] [--quick] [--json PATH]

POISE, arXiv 2605.07579 Tables 3 and 8-12, in miniature: every combination is fitted to the same rollouts and compared with
Avg@64 on held-out prompts. The tables of the paper vary one thing at a time; so do ours, out of the whole grid, which is in
p4-WORLD.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common import write
from vantage.lab.command import run_lab
from vantage.lab.settings import LabConfig

FULL = {"prompts": 120, "continuations": 64, "train_rollouts": 1024, "resamples": 500}
QUICK = {"prompts": 8, "continuations": 4, "train_rollouts": 64, "resamples": 50}
REGRESSORS = ("ridge", "ridge-0.01", "ridge-100", "lasso", "mlp-1x64", "mlp-3x64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="sums")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=None, help="folder for Monte-Carlo truth")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="few prompts, a small grid")
    arguments = parser.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as folder:
        config = LabConfig(
            model="tiny", task=arguments.world, estimators="constant,poise", states=1, pools=0, shifts="none", ablate=True,
            windows=(1, 10) if quick else (1, 5, 10, 15), regressors=REGRESSORS[::3] if quick else REGRESSORS,
            layers=(2, 4) if quick else None, quick=quick, seed=arguments.seed, cache=arguments.cache, out=f"{folder}/lab",
            **(QUICK if quick else FULL),
        )  # fmt: skip
        found = run_lab(config)
    if quick and arguments.json is None:
        return
    result = {
        "quick": quick, "world": arguments.world, "set": found["sets"][0], "seconds": found["seconds"],
        "settings": {k: found["configuration"][k] for k in (*FULL, "rollouts", "seed")},
        "estimators": {n: row["sets"]["held-out"]["prompt"]["metrics"] for n, row in found["estimators"].items()},
        "grid": found["ablation"],
    }  # fmt: skip
    print(write(f"p4-{arguments.world}", result, arguments.json))


if __name__ == "__main__":
    main()
