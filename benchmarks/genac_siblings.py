"""G4 once more, with both critics at the same number of rollouts a prompt: is it the values, or the prompts that a step sees?

    python benchmarks/genac_siblings.py [--out FOLDER] [--quick] [--json PATH]

By their defaults GenAC takes 8 rollouts of each prompt and PPO one, so G4's step holds 16 prompts for the one and 128 for the
other. Here both are run with one and with eight, everything else as in genac_rl.py. FOLDER has the runs; a stopped comparison
goes on there. Writes results/genac-siblings.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import write
from genac_rl import FULL, QUICK
from vantage.compare import compare

CRITICS = ("genac", "ppo")
SEEDS = {1: 5, 8: 3}
"""Rollouts per prompt, and seeds of each algorithm; three left it open whether the critics differ at one."""


def compared(rollouts: int, out: Path, quick: bool) -> dict[str, Any]:
    """Both critics with so many rollouts of each prompt."""
    settings = QUICK | {"seeds": 1} if quick else FULL | {"seeds": SEEDS[rollouts]}
    found = compare(
        CRITICS, task="sums", rollouts_per_prompt=rollouts, out=str(out / f"rollouts-{rollouts}"), **settings
    )
    return dict(found.results)


def main() -> None:
    """Run both comparisons and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="one seed, two steps")
    arguments = parser.parse_args()
    out = arguments.out or Path("runs") / "genac-siblings"
    found = {str(rollouts): compared(rollouts, out, arguments.quick) for rollouts in SEEDS}
    if arguments.quick and arguments.json is None:
        return
    print(write("genac-siblings", {"quick": arguments.quick, "rollouts_per_prompt": found}, arguments.json))


if __name__ == "__main__":
    main()
