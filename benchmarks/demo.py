"""`vantage train` with no arguments, at several seeds: seconds, accuracy before and after, and the README's picture.

    python benchmarks/demo.py [--seeds 3] [--algos poise] [--quick]

Each run is the real command in a process of its own. Writes benchmarks/results/demo.json (every evaluation of every run)
and docs/assets/learning_curve.png. The bar (docs/papers.md): at most 5 minutes, accuracy up by at least 0.25, the lower
end of its 95 % interval at least 0.2, from a start between 0.35 and 0.5.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vantage.plots import learning_curve_figure, save_png
from vantage.runfiles import read_metrics
from vantage.tracking import git_commit, versions

ROOT = Path(__file__).parents[1]
KEPT = ("step", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high", "tokens/generated", "time/step")


def one_run(algo: str, seed: int, folder: Path, extra: list[str]) -> dict[str, Any]:
    """Run the command; returns its summary, wall-clock seconds, and its evaluations."""
    out = folder / f"{algo}-{seed}"
    command = [sys.executable, "-m", "vantage", "train", "--algo", algo, "--seed", str(seed), "--out", str(out), *extra]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT)
    seconds = time.perf_counter() - start
    summary = json.loads((out / "summary.json").read_text())
    rows = read_metrics(out)
    return {
        "algo": algo,
        "seed": seed,
        "wall_seconds": seconds,
        "before": summary["before"],
        "after": summary["after"],
        "gain": summary["gain"],
        "evaluations": [{k: r[k] for k in KEPT if k in r} for r in rows if "eval/accuracy" in r],
        "rows": rows,
    }


def main() -> None:
    """Run all cells and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algos", default="poise")
    parser.add_argument("--quick", action="store_true", help="one short run, nothing kept")
    arguments = parser.parse_args()
    extra = ["--steps", "4", "--eval-problems", "50", "--rollouts-per-step", "32"] if arguments.quick else []
    seeds = 1 if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as folder:
        runs = [one_run(a, s, Path(folder), extra) for a in arguments.algos.split(",") for s in range(seeds)]
    for run in runs:
        gain = run["gain"]
        print(
            f"{run['algo']} seed {run['seed']}: {run['wall_seconds']:.0f} s, {run['before']['mean']:.3f} → "
            f"{run['after']['mean']:.3f}, gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        )
    if arguments.quick:
        return
    curves = [(run["algo"], run.pop("rows")) for run in runs]
    figure = learning_curve_figure(curves, title="sums, embedded policy, 2 CPU cores")
    (ROOT / "docs" / "assets").mkdir(parents=True, exist_ok=True)
    save_png(figure, ROOT / "docs" / "assets" / "learning_curve.png")
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    result = {"benchmark": "demo", "versions": versions(), "git_commit": git_commit(), "machine": machine, "runs": runs}
    (ROOT / "benchmarks" / "results" / "demo.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
