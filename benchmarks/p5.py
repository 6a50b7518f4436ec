"""Experiment P5 on an embedded world: do more prompts beat more rollouts of each, at a fixed number of rollouts?

    python benchmarks/p5.py [--task sums] [--model tiny] [--prompts 96] [--quick] [--json PATH]

POISE's Proposition 1 says that with B rollouts, m of each prompt, the gradient's covariance is Σ_w/B + (m/B)·Σ_b, so m = 1 is
best. It holds for baselines that are functions of the prompt or prefix: of those the trace is predicted for every m from Σ_w
and Σ_b, and measured. Baselines that need siblings (RLOO, POISE, POISE with shrink) are measured for m ≥ 2; their probes are
filled with groups of the same m. Everything at one policy: 16 rollouts of each prompt, cut into groups of m; the gradient of
every group is taken through the trainer's own code, and the trace of the covariance of a step's gradient is
(m/B)·(mean ‖group gradient‖² − ‖mean gradient‖²). Intervals are from a jackknife over blocks of prompts; `ratio` is paired, to
POISE at m = 2. `bias` is the distance of the mean gradient from that of the same probe at λ = 1, as a share of the gradient's
norm. Writes results/p5-TASK.json.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import write
from vantage import Poise, PoiseToken, Rloo, TrainConfig, Trainer
from vantage.batch import Batch
from vantage.collect import Collected
from vantage.estimators.base import Algorithm
from vantage.update import PolicyUpdate

MEMBERS = 16
GROUPS = (1, 2, 4, 8, 16)
BLOCKS = 12
"""Blocks of prompts for the jackknife."""
NEVER = 10**9
FIXED: dict[str, Algorithm] = {
    "constant": PoiseToken(bootstrap=NEVER),
    "poise_token": PoiseToken(),
}
"""Baselines of prompt or prefix; filled with one rollout a prompt and the same for every m."""
VARIANTS: dict[str, Algorithm] = {
    "poise_token, λ = 0.99": PoiseToken(gae_lambda=0.99),
    "poise_token, λ = 0.95": PoiseToken(gae_lambda=0.95),
    "poise_token, TD(0.95)": PoiseToken(targets="td"),
    "poise_token, layers 1 and 3": PoiseToken(layers=(1, 3)),
    "poise_token, 32 positions": PoiseToken(positions=32),
}
"""Other forms of it, at one rollout a prompt."""
SIBLINGS: dict[str, Algorithm] = {"rloo": Rloo(), "poise": Poise(), "poise shrink": Poise(shrink=True)}
REFERENCE = ("poise", 2)


@dataclass(frozen=True)
class Measured:
    """Of one estimator at one m: by block of prompts."""

    square_C: Tensor
    """Mean ‖group gradient‖²."""
    mean_CP: Tensor
    """Mean gradient."""

    def left_out(self) -> list[tuple[float, float]]:
        """Mean square and squared norm of the expected gradient, of all blocks, then without each of them."""
        blocks = len(self.square_C)
        inner_CC = (self.mean_CP @ self.mean_CP.T).double()
        kept = [list(range(blocks)), *([i for i in range(blocks) if i != c] for c in range(blocks))]
        return [(float(self.square_C[rows].mean()), across(inner_CC[rows][:, rows])) for rows in kept]

    def trace(self, m: int, rollouts: int) -> list[float]:
        """tr Cov of a step's gradient: the estimate, then the jackknife's."""
        return [m / rollouts * (square - signal) for square, signal in self.left_out()]


def across(inner_CC: Tensor) -> float:
    """Unbiased ‖E g‖² from inner products of independent means: those of a mean with itself are left out."""
    count = len(inner_CC)
    return float(inner_CC.sum() - inner_CC.diagonal().sum()) / (count * (count - 1))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Estimate and its 95 % interval by the jackknife."""
    estimate, rest = values[0], values[1:]
    mean = sum(rest) / len(rest)
    error = math.sqrt((len(rest) - 1) / len(rest) * sum((v - mean) ** 2 for v in rest))
    return {"mean": estimate, "low": estimate - 2.2 * error, "high": estimate + 2.2 * error}


class Laboratory:
    """One policy, its rollouts in groups of any size, and estimators that have learnt from some of them."""

    def __init__(self, task: str, model: str, rollouts: int, fills: int, seed: int) -> None:
        self.settings = {"task": task, "model": model, "rollouts_per_step": rollouts, "seed": seed, "eval_problems": 0}
        self.rollouts, self.fills = rollouts, fills
        self.policy = self.trainer(PoiseToken(), 1).policy
        self.stored: dict[int, list[Collected]] = {}

    def trainer(self, algo: Algorithm, m: int, **changes: Any) -> Trainer:
        """A trainer that writes nothing."""
        return Trainer(TrainConfig(algo=algo, rollouts_per_prompt=m, out="unused", **(self.settings | changes)))

    def past(self, m: int) -> list[Collected]:
        """Steps for a probe to learn from."""
        if m not in self.stored:
            source = self.trainer(PoiseToken(), m)
            prompts = self.rollouts // m
            self.stored[m] = [source.collector(s, source.stream, (s - 1) * prompts) for s in range(1, self.fills + 1)]
        return self.stored[m]

    def update(self, algo: Algorithm, m: int) -> PolicyUpdate:
        """Forward and backward with an estimator that has learnt from the past in groups of m."""
        made = self.trainer(algo, m)
        update = PolicyUpdate(self.policy, made.estimator, made.config)
        if not update.estimator.needs.reads_policy:
            return update
        update.estimator.update_policy = False
        for collected in self.past(m):
            batch = replace(collected.batch, queried=update.estimator.query(collected).reads)
            result = update.run(batch)
            update.estimator.learn(batch, result.reads, result.estimate)
        update.estimator.update_policy = True
        return update

    def present(self, prompts: int) -> Batch:
        """16 rollouts of each of some prompts that no probe has seen."""
        source = self.trainer(PoiseToken(), MEMBERS, rollouts_per_step=prompts * MEMBERS)
        return source.collector(self.fills + 1, source.stream, self.fills * self.rollouts).batch

    def measure(self, update: PolicyUpdate, batch: Batch, m: int) -> Measured:
        """Gradients of all groups of m."""
        groups = batch.groups()
        count = min(BLOCKS, len(groups))
        blocks = [groups[i::count] for i in range(count)]
        squares, means = [], []
        for prompts in blocks:
            total, square, count = torch.zeros(()), 0.0, 0
            for rows in prompts:
                for start in range(0, MEMBERS, m):
                    gradient = self.gradient(update, batch.select(rows[start : start + m]))
                    total, square, count = (
                        total + gradient,
                        square + float(gradient.double() @ gradient.double()),
                        count + 1,
                    )
            squares.append(square / count)
            means.append(total / count)
        return Measured(torch.tensor(squares, dtype=torch.float64), torch.stack(means))

    def gradient(self, update: PolicyUpdate, group: Batch) -> Tensor:
        """Mean gradient of a group's rollouts, all parameters in one vector."""
        update.policy.model.zero_grad(set_to_none=True)
        update.gradient(group)
        parameters = [p for p in update.policy.model.parameters() if p.requires_grad]
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def measured(lab: Laboratory, prompts: int, say: Callable[[str], None]) -> dict[tuple[str, int], Measured]:
    """Every estimator at every m that it can have."""
    batch, found = lab.present(prompts), {}
    for name, algo in (FIXED | VARIANTS).items():
        update = lab.update(algo, 1)
        for m in GROUPS if name in FIXED else GROUPS[:1]:
            found[name, m] = lab.measure(update, batch, m)
            say(f"{name} m={m}")
    for name, algo in SIBLINGS.items():
        for m in GROUPS[1:]:
            found[name, m] = lab.measure(lab.update(algo, m), batch, m)
            say(f"{name} m={m}")
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
        if "λ" in name:  # every other form has the same expected gradient
            row["bias"] = relative_bias(it, found["poise_token", 1])
        rows.append(row)
    return rows


def predicted(single: Measured, whole: Measured, m: int, rollouts: int) -> float:
    """Proposition 1 with Σ_w and Σ_b from groups of 1 and of 16."""
    one, many = single.trace(1, rollouts)[0] * rollouts, whole.trace(MEMBERS, rollouts)[0] * rollouts / MEMBERS
    between = (MEMBERS * many - one) / (MEMBERS - 1)
    return (one - between + m * between) / rollouts


def relative_bias(biased: Measured, unbiased: Measured) -> float | None:
    """‖E g_λ − E g_1‖ / ‖E g_1‖, unbiased under the roots; 0 where the upper estimate is negative, None where the lower is."""
    off_CP = (biased.mean_CP - unbiased.mean_CP).double()
    signal = across((unbiased.mean_CP @ unbiased.mean_CP.T).double())
    return math.sqrt(max(0.0, across(off_CP @ off_CP.T)) / signal) if signal > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sums")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="few prompts, small steps")
    arguments = parser.parse_args()
    rollouts, fills, prompts = (64, 3, 4) if arguments.quick else (256, 10, arguments.prompts)
    start = time.perf_counter()
    lab = Laboratory(arguments.task, arguments.model, rollouts, fills, arguments.seed)
    found = measured(lab, prompts, lambda text: print(f"{time.perf_counter() - start:6.0f} s  {text}", flush=True))
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
    print(write(f"p5-{arguments.task}", result, arguments.json))


if __name__ == "__main__":
    main()
