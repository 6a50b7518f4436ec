"""Experiments V1, V2 and V3 on `sums`: VIMPO against GRPO, under flipped rewards, and what its actor branch does.

    python benchmarks/vimpo.py PART [--out FOLDER] [--quick] [--json PATH]

v1: equal budget, clean rewards. v2-group, v2-rollout: a quarter of the rewards flipped, by whole groups or one by one.
v3: the actor branch off, as by default, and at the paper's coefficient; two β; and the controls: an explicit KL bonus of the
size that the actor branch has in expectation, and Dr. GRPO. Every variant chooses its learning rate from the same grid on
another seed. Writes results/vimpo-PART.json, from which results_page.py makes docs/results.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import run_here, write
from vantage.compare import compare
from vantage.estimators.dr_grpo import DrGrpo
from vantage.estimators.grpo import Grpo
from vantage.estimators.vimpo import Vimpo

METHODS = {"vimpo": Vimpo(), "grpo": Grpo(), "dr_grpo": DrGrpo()}
DEFAULT_ACTOR = 5e-3 * 80 / 4096
"""The default coefficient at `sums`' budget of 80 tokens."""
VARIANTS = {
    "vimpo": Vimpo(),
    "value-only": Vimpo(actor_coef=0.0),
    "actor-0.005": Vimpo(actor_coef=5e-3),
    "bonus-small": Vimpo(actor_coef=0.0, kl_bonus=3e-6),
    "bonus-large": Vimpo(actor_coef=0.0, kl_bonus=1.5e-4),
    "beta-0.025": Vimpo(beta=2.5e-2, actor_coef=50 * DEFAULT_ACTOR),
    "beta-0.025-value-only": Vimpo(beta=2.5e-2, actor_coef=0.0),
    "dr_grpo": DrGrpo(),
}
NOISE = {"reward_noise": 0.25, "budget_tokens": 300_000}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "v1": (METHODS, {"budget_tokens": 400_000}),
    "v2-group": (METHODS, {**NOISE, "reward_noise_level": "group"}),
    "v2-rollout": (METHODS, {**NOISE, "reward_noise_level": "rollout"}),
    "v3": (VARIANTS, {"budget_tokens": 200_000}),
}
QUICK: dict[str, Any] = {
    "runner": run_here,
    "seeds": 2, "budget_tokens": 1500, "rollouts_per_step": 32, "eval_problems": 20, "eval_every": 2,
    "samples_every": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="two variants, two seeds, a few steps")
    arguments = parser.parse_args()
    algorithms, settings = PARTS[arguments.part]
    settings = {"seeds": 3, **settings}
    if arguments.quick:
        algorithms, settings = dict(list(algorithms.items())[:2]), settings | QUICK
    out = arguments.out or Path("runs") / f"vimpo-{arguments.part}"
    outcome = compare(algorithms, task="sums", tune=not arguments.quick, out=str(out), **settings)
    found = {"quick": arguments.quick, "part": arguments.part, **outcome.results}
    if arguments.quick and arguments.json is None:
        return
    print(write(f"vimpo-{arguments.part}", found, arguments.json))


if __name__ == "__main__":
    main()
