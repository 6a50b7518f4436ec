"""What does a schooled critic gain from outcomes, on each embedded world, and is it better than a discriminative one?

    python benchmarks/genac_pretrain.py [--worlds sums,...] [--school FOLDER] [--out FOLDER] [--json PATH] [--quick]

The critic of each world's own school (FOLDER/WORLD/own/critic, as genac_school.py leaves it; made where it is not there) learns
from the outcomes of a policy that rests, by `vantage critic pretrain`; a discriminative critic of the policy's size learns
beside it from the same states. Both errors, and the best constant's, are those on each step's states before they are learned
from. `vantage critic score` then says where the generative one ends against Monte-Carlo truth. Pieces that are there are not
made again. Writes results/genac-pretrain.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from common import write
from genac_school import FULL, OWN, QUICK, WORLDS, taught
from vantage.cli import main as vantage
from vantage.genac.scoring import score
from vantage.genac.settings import ScoreConfig

STEPS, ROLLOUTS = 40, 128
KEPT = (
    "genac/brier", "genac/brier_penalised", "genac/brier_constant", "genac/brier_rival", "genac/parse_rate",
    "genac/critic_reward", "reward/mean",
)  # fmt: skip


def pretrained(world: str, school: Path, folder: Path, quick: bool) -> list[dict[str, float]]:
    """Reinforce a world's critic; what was measured in each step."""
    critic = folder / "critic"
    if not (critic / "metrics.jsonl").exists():
        taught(world, OWN, school, quick)
        steps, rollouts = (3, 16) if quick else (STEPS, ROLLOUTS)
        words = [
            "critic", "pretrain", "--task", world, "--genac.critic", str(school / "critic"), "--steps", str(steps),
            "--rollouts-per-step", str(rollouts), "--genac.rival-steps", "1", "--genac.panel-share", "0",
        ]  # fmt: skip
        if vantage([*words, "--out", str(critic)]):
            raise SystemExit(f"pretraining on {world} ended with an error")
    rows = [json.loads(line) for line in (critic / "metrics.jsonl").read_text().splitlines()]
    return [{"step": row["step"], **{name.removeprefix("genac/"): row[name] for name in KEPT}} for row in rows]


def measured(world: str, school: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """A world's course of pretraining and where it ends."""
    steps, path = pretrained(world, school, folder, quick), folder / "score" / "score.json"
    if not path.exists():
        sizes = QUICK if quick else FULL
        score(ScoreConfig(critic=str(folder / "critic"), task=world, out=str(path.parent), seed=5, **sizes))
    found: dict[str, Any] = json.loads(path.read_text())
    return {"steps": steps, "states": found["states"], "against_truth": found["against_truth"]}


def main() -> None:
    """Make what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--school", type=Path, default=Path("runs/genac-school"))
    parser.add_argument("--out", type=Path, default=Path("runs/genac-pretrain"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="two lessons, three small steps, a few states")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for world in arguments.worlds.split(","):
        school, folder = arguments.school / world / "own", arguments.out / world
        for made in (school, folder):
            made.mkdir(parents=True, exist_ok=True)
        found[world] = measured(world, school, folder, arguments.quick)
    if arguments.quick and arguments.json is None:
        return
    sizes = {"steps": STEPS, "rollouts": ROLLOUTS, "samples": 1}
    print(write("genac-pretrain", {"quick": arguments.quick, **sizes, "worlds": found}, arguments.json))


if __name__ == "__main__":
    main()
