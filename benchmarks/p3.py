"""Experiment P3: is a linear probe on the policy's states as good a value estimate as a critic of the policy's size?

    python benchmarks/p3.py [--worlds sums,programs,tools,instructions] [--trained 30] [--cache DIR] [--quick] [--json DIR]

POISE, arXiv 2605.07579 Tables 2 and 7, in miniature: on each embedded world the probe (read from another rollout of the prompt)
and the sequence critic (a copy of the policy that reads the prompt) learn from the same rollouts; truth is Avg@64 on held-out
prompts, its noise taken out of squared errors and correlations. The critic's learning rate and epochs are chosen on held-back
prompts out of a grid. With `--trained N` the policy is trained by POISE for N steps before. Writes p3-WORLD[-trained].json, one
file a policy; what is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import RESULTS, write
from vantage import Poise, TrainConfig, Trainer
from vantage.lab.command import run_lab
from vantage.lab.metrics import METRICS, Target, paired, resampled_rows
from vantage.lab.settings import LabConfig

WORLDS = ("sums", "programs", "tools", "instructions")
ESTIMATORS = ("constant", "leave_one_out", "poise", "poise_prompt", "sequence")
PAIRS = (("poise", "sequence"), ("poise_prompt", "sequence"), ("poise", "leave_one_out"))
COMPARED = ("mae", "mse_corrected", "pearson", "pearson_corrected")
FULL = {"prompts": 120, "continuations": 64, "train_rollouts": 1024, "resamples": 1000}
QUICK = {"prompts": 8, "continuations": 4, "train_rollouts": 64, "resamples": 50}


def trained(world: str, steps: int, folder: Path) -> str:
    """A policy that POISE has trained on the world for some steps."""
    out = folder / f"policy-{world}"
    Trainer(
        TrainConfig(task=world, algo=Poise(), steps=steps, seed=1, out=str(out), eval_problems=0, samples_every=0)
    ).train()  # fmt: skip
    return str(out)


def measured(world: str, model: str, quick: bool, cache: str | None, seed: int) -> dict[str, Any]:
    """One lab on the prompts of a world, with paired differences between estimators."""
    with tempfile.TemporaryDirectory() as folder:
        config = LabConfig(
            model=model, task=world, estimators=",".join(ESTIMATORS), states=1, pools=0, shifts="none", quick=quick,
            seed=seed, cache=cache, out=f"{folder}/lab", **(QUICK if quick else FULL),
        )  # fmt: skip
        found = run_lab(config)
        rows = [json.loads(line) for line in (Path(folder) / "lab" / "states.jsonl").read_text().splitlines()]
    return {
        "world": world, "settings": {k: found["configuration"][k] for k in (*FULL, "rollouts", "seed")},
        "accuracy": found["sets"][0]["accuracy"], "set": found["sets"][0], "train_mean": found["train_mean"],
        "estimators": {
            name: row["sets"]["held-out"]["prompt"]["metrics"] for name, row in found["estimators"].items()
        },
        "seconds": {name: row["cost"] for name, row in found["estimators"].items()},
        "differences": differences(rows, found),
        "raw": [
            {"prompt": r["prompt_number"], "truth": r["truth"], "variance": r["truth_variance"], **r["predictions"]}
            for r in rows
        ],
    }  # fmt: skip


def differences(rows: list[Mapping[str, Any]], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """First − second on the same prompts, for every metric that is compared."""
    mean_N = np.array([row["truth"] for row in rows])
    target = Target(
        mean_N, np.array([row["truth_variance"] for row in rows]), mean_N * (1 - mean_N),
        np.array([row["prompt_number"] for row in rows]), found["train_mean"],
    )  # fmt: skip
    samples = resampled_rows(target.prompt_N, found["configuration"]["resamples"])
    made = []
    for one, other in PAIRS:
        a, b = (np.array([row["predictions"][name] for row in rows], dtype=float) for name in (one, other))
        for metric in COMPARED:
            change = paired(METRICS[metric], a, b, target, samples)
            made.append({"one": one, "other": other, "metric": metric, **vars(change)})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--trained", type=int, default=0, help="steps of POISE before the policy is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", default=None, help="folder for Monte-Carlo truth")
    parser.add_argument("--json", type=Path, default=None, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="few prompts and continuations")
    arguments = parser.parse_args()
    for world in arguments.worlds.split(","):
        name = f"p3-{world}" + ("-trained" if arguments.trained else "")
        path = (arguments.json or RESULTS) / f"{name}.json"
        if path.exists():
            print(f"{path} is there")
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = trained(world, arguments.trained, Path(folder)) if arguments.trained else "tiny"
            found = measured(world, model, arguments.quick, arguments.cache, arguments.seed)
        if arguments.quick and arguments.json is None:
            continue
        print(write(name, {"quick": arguments.quick, "trained_steps": arguments.trained, **found}, path))


if __name__ == "__main__":
    main()
