"""Experiment P5 on an embedded world: do more prompts beat more rollouts of each, at a fixed number of rollouts?

    python benchmarks/p5.py [--task sums] [--model tiny] [--prompts 96] [--seed 0] [--forms all|lambda|none] [--quick]
        [--json PATH]

POISE's Proposition 1 says that with B rollouts, m of each prompt, the gradient's covariance is Σ_w/B + (m/B)·Σ_b, so m = 1 is
best. It holds for baselines that are functions of the prompt or prefix: of those the trace is predicted for every m from Σ_w
and Σ_b, and measured. Baselines that need siblings (RLOO, POISE, POISE with shrink) are measured for m ≥ 2; their probes are
filled with groups of the same m. Everything at one policy: 16 rollouts of each prompt, cut into groups of m; the trace of the
covariance of a step's gradient is (m/B)·(mean ‖group gradient‖² − ‖mean gradient‖²), from the trainer's own gradients
(gradients.py). Intervals are from a jackknife over blocks of prompts; `ratio` is paired, to POISE at m = 2. `bias` is the
distance of the mean gradient from that of the same probe at λ = 1, as a share of the gradient's norm. Writes
results/p5-TASK.json, or p5-TASK-seedN.json for other seeds than 0.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import write
from gradients import MEMBERS, Laboratory, Measured, interval, relative_bias
from vantage import Poise, PoiseToken, Rloo
from vantage.estimators.base import Algorithm

GROUPS = (1, 2, 4, 8, 16)
CONSTANT = PoiseToken(bootstrap=10**9)
TOKENS: dict[str, Algorithm] = {"poise_token": PoiseToken()}
FIXED = ("constant", *TOKENS)
"""Baselines of prompt or prefix; filled with one rollout a prompt and the same for every m."""
VARIANTS: dict[str, Algorithm] = {
    "poise_token, λ = 0.99": PoiseToken(gae_lambda=0.99),
    "poise_token, λ = 0.95": PoiseToken(gae_lambda=0.95),
    "poise_token, λ = 0.8": PoiseToken(gae_lambda=0.8),
    "poise_token, TD(0.95)": PoiseToken(targets="td"),
    "poise_token, layers 1 and 3": PoiseToken(layers=(1, 3)),
    "poise_token, 32 positions": PoiseToken(positions=32),
}
"""Other forms of it, at one rollout a prompt."""
SIBLINGS: dict[str, Algorithm] = {"rloo": Rloo(), "poise": Poise(), "poise shrink": Poise(shrink=True)}
REFERENCE = ("poise", 2)
LAMBDA = "λ"


def measured(
    lab: Laboratory, prompts: int, variants: Mapping[str, Algorithm], say: Callable[[str], None]
) -> dict[tuple[str, int], Measured]:
    """Every estimator at every m that it can have."""
    batch, found = lab.present(prompts), {}
    updates = dict.fromkeys([("constant", m) for m in GROUPS], lab.update(CONSTANT, 1))
    updates |= {(name, m): lab.update(algo, m) for name, algo in SIBLINGS.items() for m in GROUPS[1:]}
    say("baselines of responses have learnt")
    found |= zip(updates, lab.of_response([(update, m) for (_, m), update in updates.items()], batch))
    say(", ".join(dict.fromkeys(name for name, _ in updates)))
    for name, algo in (TOKENS | variants).items():
        sizes = GROUPS if name in TOKENS else GROUPS[:1]
        found |= {(name, m): it for m, it in zip(sizes, lab.of_prefix(lab.update(algo, 1), batch, sizes))}
        say(name)
    return found


def table(found: Mapping[tuple[str, int], Measured], rollouts: int) -> list[dict[str, Any]]:
    """A row for each estimator and m: trace measured and predicted, ratio to the reference, bias."""
    reference = found[REFERENCE].trace(REFERENCE[1], rollouts)
    rows: list[dict[str, Any]] = []
    for (name, m), it in found.items():
        trace = it.trace(m, rollouts)
        row = {
            "estimator": name, "m": m, "trace": interval(trace),
            "ratio": interval([a / b for a, b in zip(trace, reference)]),
            "signal": interval([signal for _, signal in it.left_out()]),
        }  # fmt: skip
        if name in FIXED:
            row["predicted"] = predicted(found[name, 1], found[name, MEMBERS], m, rollouts)
        if LAMBDA in name:  # every other form has the same expected gradient
            row["bias"] = relative_bias(it, found["poise_token", 1])
        rows.append(row)
    return rows


def predicted(single: Measured, whole: Measured, m: int, rollouts: int) -> float:
    """Proposition 1 with Σ_w and Σ_b from groups of 1 and of 16."""
    one, many = single.trace(1, rollouts)[0] * rollouts, whole.trace(MEMBERS, rollouts)[0] * rollouts / MEMBERS
    between = (MEMBERS * many - one) / (MEMBERS - 1)
    return (one - between + m * between) / rollouts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sums")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forms", choices=("all", "lambda", "none"), default="all", help="other forms of poise_token")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="few prompts, small steps")
    arguments = parser.parse_args()
    rollouts, fills, prompts = (64, 2, 4) if arguments.quick else (256, 10, arguments.prompts)
    start = time.perf_counter()
    lab = Laboratory(arguments.task, arguments.model, rollouts, fills, arguments.seed)
    forms = {name: algo for name, algo in VARIANTS.items() if arguments.forms == "all" or LAMBDA in name}
    forms = {} if arguments.forms == "none" else forms
    found = measured(
        lab, prompts, forms, lambda text: print(f"{time.perf_counter() - start:6.0f} s  {text}", flush=True)
    )
    rows = table(found, rollouts)
    for row in rows:
        trace, ratio = row["trace"], row["ratio"]
        print(
            f"{row['estimator']:28s} m={row['m']:2d}  trace {trace['mean']:.3e} [{trace['low']:.3e}, {trace['high']:.3e}]"
            f"  predicted {row.get('predicted') or math.nan:.3e}  of POISE m=2 {ratio['mean']:.3f}"
            f" [{ratio['low']:.3f}, {ratio['high']:.3f}]  bias {row.get('bias') or math.nan:.3f}"
        )
    if arguments.quick and arguments.json is None:
        return
    result = {
        "quick": arguments.quick, "task": arguments.task, "model": arguments.model, "rollouts_per_step": rollouts,
        "filled_steps": fills, "prompts": prompts, "seed": arguments.seed, "rows": rows,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    name = f"p5-{arguments.task}" + (f"-seed{arguments.seed}" if arguments.seed else "")
    print(write(name, result, arguments.json))


if __name__ == "__main__":
    main()
