"""What is a critic worth that has been to school and has seen no outcome, on each embedded world?

    python benchmarks/genac_school.py [--worlds sums,programs,...] [--courses own,shipped,again] [--out FOLDER] [--threads N]

The course `own`, from a copy of the world's policy by one command, is what `vantage train --algo genac` does by itself for a
policy that has no critic. The `shipped` ones took the same course for longer; `again` is what the command of that on `sums`
makes on this machine: the same lessons in the same order, rounded otherwise.

Each is then asked about states of held-out problems by `vantage critic score`, beside Monte-Carlo truth. FOLDER keeps critics
and scores; what is there is not made again. Writes results/genac-school.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from common import write
from vantage.cli import main as vantage
from vantage.genac.scoring import score
from vantage.genac.settings import ScoreConfig

WORLDS = ("sums", "programs", "tools", "instructions")
OWN, SHIPPED, AGAIN = "own", "shipped", "again"
FULL = {"problems": 100, "rollouts": 4, "continuations": 32}
QUICK = {"problems": 3, "rollouts": 2, "continuations": 2}
LONG = ["--genac.sft-steps", "4000"]
SHORT = ["--genac.sft-steps", "2", "--genac.sft-examples", "32"]


def taught(world: str, course: str, folder: Path, quick: bool) -> dict[str, Any]:
    """Teach a critic of the world, in FOLDER/critic; the seconds that its school took."""
    times = folder / "school.json"
    if not times.exists():
        began, used = time.monotonic(), time.process_time()
        length = SHORT if quick else LONG if course == AGAIN else []
        words = ["critic", "sft", "--task", world, "--genac.critic", "copy", *length]
        if vantage([*words, "--out", str(folder / "critic")]):
            raise SystemExit(f"the school of {world} ended with an error")
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - used
        threads = torch.get_num_threads()
        times.write_text(
            json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "threads": threads, "words": words})
        )
    found: dict[str, Any] = json.loads(times.read_text())
    return found


def measured(world: str, course: str, folder: Path, quick: bool) -> dict[str, Any]:
    """A critic's school and score."""
    path = folder / "score" / "score.json"
    school = {} if course == SHIPPED else taught(world, course, folder, quick)
    critic = "embedded" if course == SHIPPED else str(folder / "critic")
    if not path.exists():
        score(ScoreConfig(critic=critic, task=world, out=str(path.parent), seed=5, **(QUICK if quick else FULL)))
    found: dict[str, Any] = json.loads(path.read_text())
    del found["critic"], found["versions"]
    return {"school": school, **found}


def main() -> None:
    """Make what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--courses", default=f"{OWN},{SHIPPED},{AGAIN}")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two lessons, a few states")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, found = arguments.out or Path("runs/genac-school"), dict[str, Any]()
    for world in arguments.worlds.split(","):
        for course in arguments.courses.split(","):
            if course == AGAIN and world != "sums":
                continue
            folder = out / world / course
            folder.mkdir(parents=True, exist_ok=True)
            found.setdefault(world, {})[course] = measured(world, course, folder, arguments.quick)
    if arguments.quick and arguments.json is None:
        return
    print(write("genac-school", {"quick": arguments.quick, "worlds": found}, arguments.json))


if __name__ == "__main__":
    main()
