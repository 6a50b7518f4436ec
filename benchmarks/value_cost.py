"""POISE's whole cost: a replayed step with `poise` over the same step with `rloo`, at two rollouts a prompt.

    python benchmarks/value_cost.py [--algo poise|poise_token] [--pairs 40] [--model tiny] [--clock wall|cpu] [--quick]
        [--out FILE]

The same stored rollouts are trained on again and again (learning rate 0), POISE and RLOO in turn, the order swapped from
pair to pair. A replayed step is everything but generation and verification: forward, backward, optimizer, reading of features,
advantages, and the probe's refit on a full buffer. The bar is a median ratio of at most 1.02. `--clock cpu` counts this
process's processor seconds, for a machine that does other work too. Writes results/value_cost.json, or
value_cost_poise_token.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import median_interval, write
from vantage import Poise, PoiseToken, Rloo, TrainConfig, Trainer
from vantage.estimators.base import Algorithm

WARM_UP = 3
STORED = 4
FILL = 8
"""Steps until the default buffer is full."""
ALGORITHMS: dict[str, Algorithm] = {"poise": Poise(bootstrap=0), "poise_token": PoiseToken(bootstrap=0)}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def trainer(model: str, algo: Algorithm, rollouts: int) -> Trainer:
    """A trainer that writes nothing."""
    return Trainer(
        TrainConfig(
            model=model, algo=algo, rollouts_per_step=rollouts, rollouts_per_prompt=2, learning_rate=1e-12,
            eval_problems=0, out="unused",
        )
    )  # fmt: skip


def replay(trainer: Trainer, batch: Any, clock: Callable[[], float]) -> dict[str, float]:
    """One step without generation; seconds in all and by phase (`value` is always by the wall's clock)."""
    start = clock()
    update = trainer.update.run(batch)
    learning = clock()
    trainer.estimator.learn(batch, update.reads, update.estimate)
    end = clock()
    return {"step": end - start, "learn": end - learning, "value": update.seconds.get("value", 0.0)}


def rows(trainer: Trainer) -> float:
    """Rows that the probe is fitted on."""
    domain: Any = trainer.estimator.domains["sums"]  # type: ignore[attr-defined]
    return len(domain.buffer) if hasattr(domain, "buffer") else float(domain.sums.weight)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", choices=sorted(ALGORITHMS), default="poise")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="few small steps")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    pairs, rollouts = (3, 16) if arguments.quick else (arguments.pairs, arguments.rollouts)
    name = arguments.algo
    runs = {
        name: trainer(arguments.model, ALGORITHMS[name], rollouts),
        "rloo": trainer(arguments.model, Rloo(), rollouts),
    }
    first = runs[name]
    generation = []
    batches = []
    for step in range(1, STORED + 1):
        collected = first.collector(step, first.stream, (step - 1) * first.config.prompts)
        batches.append(collected.batch)
        generation.append(collected.metrics["time/rollout"] + collected.metrics["time/reward"])
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    step = 0
    while step < WARM_UP + pairs + FILL:
        step += 1
        batch = batches[step % STORED]
        batch = type(batch)(**{f: getattr(batch, f) for f in batch.__dataclass_fields__} | {"step": step})
        for one in (name, "rloo") if step % 2 else ("rloo", name):
            seconds[one].append(replay(runs[one], batch, CLOCKS[arguments.clock]))
    kept = {one: found[-pairs:] for one, found in seconds.items()}
    ratios = [a["step"] / b["step"] for a, b in zip(kept[name], kept["rloo"])]
    medians = {f"{n}_{k}": statistics.median(s[k] for s in kept[n]) for n in kept for k in ("step", "learn", "value")}
    whole = statistics.median(generation)
    extra = medians[f"{name}_learn"] + medians[f"{name}_value"] - medians["rloo_learn"] - medians["rloo_value"]
    result = {
        "algorithm": name,
        "clock": arguments.clock,
        "model": arguments.model,
        "rollouts": rollouts,
        "pairs": pairs,
        "buffer_rows": rows(first),
        "learn_share": median_interval([a["learn"] / a["step"] for a in kept[name]]),
        "ratio": median_interval(ratios),
        "ratio_by_phases": 1 + extra / medians["rloo_step"],
        "ratio_with_generation": 1 + extra / (medians["rloo_step"] + whole),
        "bar": 1.02,
        "median_seconds": medians | {"generation": whole},
        "raw": {"ratios": ratios, "steps": kept},
    }
    path = write("value_cost" if name == "poise" else f"value_cost_{name}", result, arguments.out)
    ratio = result["ratio"]
    print(f"{name} / rloo, replayed step: {ratio['median']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]; bar 1.02")  # type: ignore[index]
    print(
        f"by the estimator's own phases: {result['ratio_by_phases']:.4f}, with generation {result['ratio_with_generation']:.4f}"
    )
    print(f"medians in ms: { ({k: round(1000 * v, 2) for k, v in medians.items()}) }; {path}")


if __name__ == "__main__":
    main()
