"""What does the token probe of `poise_token` see? Its skill with parts of the features left out, and with other layers.

    python benchmarks/token_features.py [--task sums] [--model tiny] [--steps 16] [--quick] [--json PATH]

A policy that stands still generates steps of rollouts; every probe learns from them in order and is scored on each step before
it sees it (`skill`: 1 − squared error over that of the mean reward, over the chosen tokens; mean over the steps after the
fourth, with the interval of that mean). Writes results/token-features-TASK.json; docs/poise-token.md quotes it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from common import write
from vantage import PoiseToken, TrainConfig, Trainer
from vantage.estimators.poise_token import PoiseTokenEstimator
from vantage.probes.linear import ALPHA_GRID
from vantage.probes.token_features import STATISTICS
from vantage.probes.tokens import TokenDomain

SKIPPED = 4
SURPRISE = 5
"""Statistics from here on are about the probabilities of the drawn tokens."""


def parts(estimator: PoiseTokenEstimator) -> dict[str, list[int]]:
    """Columns of each variant: one layer's state, its mean so far, the statistics; and several layers."""
    size, layers = estimator.setup.hidden_size, estimator.layers
    start = {layer: 2 * size * i for i, layer in enumerate(layers)}
    state = {layer: list(range(s, s + size)) for layer, s in start.items()}
    mean = {layer: list(range(s + size, s + 2 * size)) for layer, s in start.items()}
    last = 2 * size * len(layers)
    every = list(range(last, last + len(STATISTICS)))
    middle = max(1, round(20 / 36 * estimator.setup.num_layers))
    whole = {f"layer {layer}": state[layer] + mean[layer] + every for layer in layers}
    return {
        "default": state[middle] + mean[middle] + every,
        "state and position alone": state[middle] + every[:2],
        "without surprise": state[middle] + mean[middle] + every[:SURPRISE],
        "without statistics but position": state[middle] + mean[middle] + every[:2],
        "without mean of states": state[middle] + every,
        "without state": mean[middle] + every,
        "statistics alone": every,
        **whole,
        "all layers": list(range(last + len(STATISTICS))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sums")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="few small steps")
    arguments = parser.parse_args()
    steps, rollouts = (6, 32) if arguments.quick else (arguments.steps, 256)
    settings = {"task": arguments.task, "model": arguments.model, "rollouts_per_step": rollouts, "eval_problems": 0}
    layers = tuple(range(Trainer(TrainConfig(algo=PoiseToken(), out="unused", **settings)).policy.num_layers + 1))
    trainer = Trainer(TrainConfig(algo=PoiseToken(layers=layers), out="unused", **settings))
    estimator = trainer.estimator
    assert isinstance(estimator, PoiseTokenEstimator)
    columns = parts(estimator)
    probes = {name: TokenDomain(ALPHA_GRID, estimator.options.memory, None, 0.0, 1.0) for name in columns}
    skills: dict[str, list[float]] = {name: [] for name in columns}
    for step in range(1, steps + 1):
        collected = trainer.collector(step, trainer.stream, (step - 1) * rollouts)
        batch = replace(collected.batch, queried=estimator.query(collected).reads)
        with torch.no_grad():
            reads = estimator.read(trainer.policy.forward(batch, layers=layers))
        name = batch.domains[0]
        x_NP, y_N, outcome_N, constant_N = estimator._rows(batch, reads, name, torch.arange(batch.size))
        for variant, kept in columns.items():
            found = probes[variant].learn(step, x_NP[:, kept], y_N, outcome_N, constant_N, trainer.world)
            if step > SKIPPED:
                skills[variant].append(found["skill"])
    rows = []
    for variant, values in skills.items():
        half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
        mean, kept = statistics.fmean(values), len(columns[variant])
        rows.append({"features": variant, "columns": kept, "skill": mean, "low": mean - half, "high": mean + half})
        print(f"{variant:34s} {kept:5d} columns  skill {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]")
    if arguments.quick and arguments.json is None:
        return
    result = {"quick": arguments.quick, **settings, "steps": steps, "rows": rows, "raw": skills}
    print(write(f"token-features-{arguments.task}", result, arguments.json))


if __name__ == "__main__":
    main()
