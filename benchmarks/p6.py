"""Experiment P6 on an embedded world: does it matter whose features POISE's baseline is read from?

    python benchmarks/p6.py [--task sums|programs] [--out FOLDER] [--quick] [--json PATH]

cross: POISE, the sibling's features. prompt-only: the prompt's, which are the rollout's own but say nothing about it.
same-rollout: the rollout's own, and its own reward as the probe's target (p6_variants.py). That is no baseline:
E[g(φ(y)) ∇log π(y)] is the gradient of the predicted reward, so the policy is pushed away from whatever the probe likes (62 %
of the gradient in the enumerable world). All with two rollouts a prompt, equal steps, POISE's tuned learning rate, three seeds;
the paper gives the other two rows one rollout a prompt, which changes two things at once. FOLDER has the runs;
a stopped comparison goes on there. Writes results/p6-TASK.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import run_here, write
from vantage import Poise
from vantage.compare import compare
from vantage.estimators.base import Algorithm

HERE = Path(__file__).parent
VARIANTS: dict[str, str | Algorithm] = {
    "cross": Poise(),
    "prompt-only": Poise(features="prompt"),
    "same-rollout": f"{HERE / 'p6_variants.py'}:SameRollout",
}
RATES = {"sums": 1.5e-4, "programs": 4.5e-4}
"""What POISE was tuned to in algorithms.py."""
FULL: dict[str, Any] = {"seeds": 3, "steps": 24, "rollouts_per_step": 192, "checkpoint_every": 4, "samples_every": 0}
QUICK: dict[str, Any] = {"seeds": 1, "steps": 3, "rollouts_per_step": 16, "eval_problems": 20}
WATCHED = (
    "value/variance_reduction", "value/pearson", "poise/trusted", "policy/entropy", "completion/length_mean",
    "completion/truncated", "policy/grad_norm", "reward/mean",
)  # fmt: skip


def course(out: Path, name: str, seed: int) -> dict[str, dict[str, float]]:
    """What a run looked like in its last quarter of steps, and in its first."""
    rows = [json.loads(line) for line in (out / "cells" / f"{name}-seed{seed}" / "metrics.jsonl").open()]
    rows = [row for row in rows if "reward/mean" in row]
    some = max(1, len(rows) // 4)
    return {
        when: {key: mean(part, key) for key in WATCHED}
        for when, part in (("first", rows[:some]), ("last", rows[-some:]))
    }


def mean(rows: list[dict[str, Any]], key: str) -> float | None:
    known = [row[key] for row in rows if row.get(key) is not None]
    return sum(known) / len(known) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(RATES), default="sums")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="one seed, a few small steps")
    arguments = parser.parse_args()
    name = f"p6-{arguments.task}"
    out = arguments.out or Path("runs") / name
    settings = {**FULL, **(QUICK if arguments.quick else {})}
    rate = RATES[arguments.task]
    outcome = compare(
        VARIANTS,
        task=arguments.task,
        learning_rate=rate,
        out=str(out),
        runner=run_here,
        eval_every=settings["steps"],
        **settings,
    )
    seeds = outcome.results["seeds"]["reporting"]
    found = {
        "quick": arguments.quick,
        **outcome.results,
        "course": {variant: [course(out, variant, seed) for seed in seeds] for variant in VARIANTS},
    }
    if arguments.quick and arguments.json is None:
        return
    path = write(name, found, arguments.json)
    path.write_text(path.read_text().replace(f"{HERE}/", ""))
    print(path)


if __name__ == "__main__":
    main()
