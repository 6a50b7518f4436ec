"""Experiments P1 and P2 on an embedded world: every algorithm under one budget of tokens, tuned alike, at three seeds.

    python benchmarks/algorithms.py [--task sums|programs] [--set first|later|forms] [--only NAME ...] [--out FOLDER]
        [--quick] [--json PATH]

P1: accuracy against tokens and seconds, and time to DAPO's final accuracy. P2: size and steadiness of the gradient norm, and
how much of the reward's variance the value takes away. FOLDER has the runs; a stopped comparison goes on there. Writes
results/algorithms-TASK.json, from which results_page.py makes docs/results.md. The set `later` (values by tokens or steps) has
runs of its own under the same budget, seeds and prompts, so that its differences to the first set are paired; it writes
results/later-TASK.json.
The set `forms` has POISE at every token with other λ, in the same way but for the learning rate, which is the one that POISE
was tuned to; results/forms-TASK.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import run_here, write
from vantage import PoiseToken
from vantage.compare import compare
from vantage.estimators.base import Algorithm

SETS: dict[str, tuple[str, ...] | dict[str, Algorithm]] = {
    "first": ("poise", "grpo", "dapo", "rloo", "dr_grpo", "reinforce"),
    "later": ("poise_token", "ppo", "vineppo"),
    "forms": {
        "token-lambda-0.95": PoiseToken(gae_lambda=0.95),
        "token-lambda-0.8": PoiseToken(gae_lambda=0.8),
    },
}
FILES = {"first": "algorithms", "later": "later", "forms": "forms"}
FULL = {
    "sums": {"seeds": 3, "budget_tokens": 400_000},
    "programs": {"seeds": 3, "budget_tokens": 250_000, "eval_every": 6},
}
RATES = {"sums": 1.5e-4, "programs": 4.5e-4}
"""What POISE was tuned to, for `forms`."""
QUICK: dict[str, Any] = {
    "runner": run_here,
    "seeds": 2, "budget_tokens": 1500, "rollouts_per_step": 32, "eval_problems": 20, "eval_every": 2,
    "samples_every": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(FULL), default="sums")
    parser.add_argument("--set", choices=sorted(SETS), default="first")
    parser.add_argument(
        "--only", nargs="+", default=None, help="of the set these alone; the folder can be completed later"
    )
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="two algorithms, two seeds, a few steps")
    arguments = parser.parse_args()
    name, algorithms = f"{FILES[arguments.set]}-{arguments.task}", SETS[arguments.set]
    if arguments.only:
        named = algorithms if isinstance(algorithms, dict) else dict(zip(algorithms, algorithms))
        algorithms = {only: named[only] for only in arguments.only}
    if arguments.quick:
        algorithms = dict(list(algorithms.items())[:2]) if isinstance(algorithms, dict) else algorithms[:2]
    out = arguments.out or Path("runs") / name
    settings = QUICK if arguments.quick else FULL[arguments.task]
    rates = (
        {"learning_rate": RATES[arguments.task]}
        if arguments.set == "forms" and not arguments.quick
        else {"tune": not arguments.quick}
    )
    outcome = compare(algorithms, task=arguments.task, out=str(out), **settings, **rates)
    found = {"quick": arguments.quick, **outcome.results}
    if arguments.quick and arguments.json is None:
        return
    print(write(name, found, arguments.json))


if __name__ == "__main__":
    main()
