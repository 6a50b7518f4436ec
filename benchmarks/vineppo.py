"""VinePPO on an embedded world: how many continuations, which steps, and against what, under one budget.

    python benchmarks/vineppo.py PART [--task sums|programs] [--out FOLDER] [--quick] [--json PATH]

tokens: VinePPO against POISE and RLOO where the tokens of continuations count against the budget, as generation does.
steps: where they do not: equal rollouts and equal updates, what the finer credit is worth by itself; at one learning rate, that
of genac_rl.py, whose runs of VinePPO, GenAC and PPO have the same steps, rollouts and seeds, so that differences are paired.
k: 1, 3 and 9 continuations, and 3 with reuse, under one budget of tokens. cap: the prompt's value alone, the first two steps,
all of them, at equal updates. split: the task's steps against fixed lengths and unlikely tokens, at equal updates.
Elsewhere every variant chooses its learning rate from the same grid on another seed. Writes results/vineppo-PART-TASK.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import genac_rl
from common import run_here, write
from vantage.compare import compare
from vantage.estimators.base import Algorithm
from vantage.estimators.poise import Poise
from vantage.estimators.poise_token import PoiseToken
from vantage.estimators.rloo import Rloo
from vantage.estimators.vineppo import Vineppo

TOKENS = {"budget_tokens": 400_000, "eval_every": 2}
STEPS = {"steps": 20, "eval_every": 5}
METHODS: dict[str, Algorithm] = {
    "vineppo": Vineppo(),
    "vineppo-reuse": Vineppo(reuse=True),
    "poise": Poise(),
    "rloo": Rloo(),
}
PARTS: dict[str, tuple[dict[str, Algorithm], dict[str, Any]]] = {
    "tokens": ({**METHODS, "vineppo-k1-reuse": Vineppo(continuations=1, reuse=True)}, TOKENS),
    "steps": (
        {
            "vineppo-k3-reuse": Vineppo(continuations=3, reuse=True),
            "poise_token": PoiseToken(),
            "poise": Poise(),
            "rloo": Rloo(),
        },
        genac_rl.FULL,
    ),
    "k": (
        {
            **{f"k{k}": Vineppo(continuations=k) for k in (1, 3, 9)},
            "k3-reuse": Vineppo(continuations=3, reuse=True),
        },
        TOKENS,
    ),
    "cap": ({"m0": Vineppo(cap=0), "m2": Vineppo(cap=2), "all": Vineppo(cap=None)}, STEPS),
    "split": (
        {
            "separator": Vineppo(),
            "fixed-4": Vineppo(kind="fixed", tokens=4),
            "fixed-12": Vineppo(kind="fixed", tokens=12),
            "lowprob": Vineppo(kind="lowprob"),
        },
        STEPS,
    ),
}
QUICK: dict[str, Any] = {
    "seeds": 2, "rollouts_per_step": 8, "eval_problems": 20, "eval_every": 2, "samples_every": 0,
}  # fmt: skip


def main() -> None:
    """Run a comparison and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--task", choices=("sums", "programs"), default="sums")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="two variants, two seeds, a few steps")
    arguments = parser.parse_args()
    algorithms, settings = PARTS[arguments.part]
    settings = {"seeds": 3, **settings}
    if arguments.quick:
        budget = {"budget_tokens": 1500} if "budget_tokens" in settings else {"steps": 2}
        algorithms, settings = dict(list(algorithms.items())[:2]), QUICK | budget
    name = f"vineppo-{arguments.part}-{arguments.task}"
    out = arguments.out or Path("runs") / name
    tune = "learning_rate" not in settings and not arguments.quick
    outcome = compare(algorithms, task=arguments.task, tune=tune, out=str(out), runner=run_here, **settings)
    found = {"quick": arguments.quick, "part": arguments.part, **outcome.results}
    if arguments.quick and arguments.json is None:
        return
    print(write(name, found, arguments.json))


if __name__ == "__main__":
    main()
