"""What does a step of GenAC cost beside one of PPO, and one of VinePPO? Seconds, FLOPs and tokens.

    python benchmarks/genac_cost.py [--steps 2] [--width 128] [--rollouts 2] [--sums-rollouts 64] [--quick] [--out FILE]

shape: the shape that the FLOP model is stated for: responses of L tokens, prompts of P, a template, S states a response,
all of them asked about and learned from, C tokens an answer. Random weights; lengths are forced (no end tokens), the critic's
scores are drawn, so that every part of a step does its work. FLOPs of the matrix products of a first step as torch counts them
(attention is left out, padding is not: short rows are padded to the longest, so at a tenth of the lengths GenAC costs more than
the model says), and CPU seconds of whole steps in turns. Bars: the model's ratio at most 2.1, that of the seconds at most 1.2
times the model's.
sums: a step with the embedded policy and critic, defaults, the same prompts.
Writes results/genac-cost.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from common import write
from vantage import TrainConfig, Trainer, tiny
from vantage.estimators.base import Algorithm
from vantage.estimators.genac import Genac
from vantage.estimators.ppo import Ppo
from vantage.estimators.vineppo import Vineppo
from vantage.genac.critic import Opinion

BAR, OVER_MODEL = 2.1, 1.2
PHASES = (
    "time/rollout", "time/value", "time/forward_backward", "time/value_update", "tokens/generated", "tokens/value_extra",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens."""

    response: int = 2000
    prompt: int = 150
    template: int = 250
    answer: int = 400
    states: int = 4

    def tenth(self) -> Shape:
        """All lengths over ten."""
        return Shape(self.response // 10, self.prompt // 10, self.template // 10, self.answer // 10, self.states)


def flop_model(shape: Shape, continuations: int = 9) -> dict[str, float]:
    """FLOPs of a response over the number of parameters: 2 forward, 6 forward and backward, a token."""
    length, prefix = shape.response, shape.response * (shape.states - 1) / (2 * shape.states)
    context = shape.template + shape.prompt + prefix
    return {
        "ppo": 18.0 * length,
        "genac": 10 * length + shape.states * (2 + 6) * (context + shape.answer),
        "vineppo": 10 * length + shape.states * (2 * (shape.prompt + length / 2) + continuations * length),
    }


class Drawn:
    """Lets a critic answer as it would, and draws what it has scored: random weights say no tag."""

    def __init__(self, estimator: Any) -> None:
        self.ask, self.count = estimator.critic.ask, 0
        estimator.critic.ask = self

    def __call__(self, *arguments: Any, **options: Any) -> list[Opinion]:
        found = []
        for opinion in self.ask(*arguments, **options):
            values: list[float | None] = [((self.count + 7 * j) % 11) / 10 for j in range(len(opinion.rollouts))]
            self.count += 3
            found.append(dataclasses.replace(opinion, values=values))
        return found


def forced(algo: Algorithm, shape: Shape, folder: Path, rollouts: int) -> Trainer:
    """A trainer whose responses and critiques have these lengths."""
    data = [{"prompt": (f"{i:03d}" * shape.prompt)[: shape.prompt]} for i in range(64)]
    run = Trainer(
        TrainConfig(
            model=str(folder / "model"), algo=algo, rollouts_per_step=rollouts, rollouts_per_prompt=1, steps=1000,
            learning_rate=1e-9, max_new_tokens=shape.response, eval_problems=0, out=str(folder / "unused"),
        ),
        train_data=data,
        reward_funcs=lambda completions, **_: [float(len(c) % 2 == 0 or c[:1] < "M") for c in completions],
    )  # fmt: skip
    run.engine._end_ids = ()
    if isinstance(algo, Genac):
        estimator: Any = run.estimator
        estimator.critic.engine._end_ids = ()
        estimator.critic.sampling = dataclasses.replace(estimator.critic.sampling, stop=())
        Drawn(estimator)
    return run


def algorithms(shape: Shape, folder: Path) -> dict[str, Algorithm]:
    """Both algorithms at a shape; the template has that many characters, which are tokens."""
    head = "{rho_pct}%;{remaining};"
    (folder / f"template-{shape.template}.txt").write_text("w" * (shape.template - 8) + head + "{problem}\n{prefix}?")
    return {
        "ppo": Ppo(),
        "genac": Genac(
            critic="copy", template=str(folder / f"template-{shape.template}.txt"), sft_steps=0, pretrain_steps=0,
            gates="off", panel_share=0.0, success_problems=0, segmentation="fixed", min_segment_tokens=1,
            segment_tokens=shape.response // shape.states, critic_tokens=shape.answer, critic_learning_rate=1e-9,
            baseline="none",
        ),
    }  # fmt: skip


def at_shape(shape: Shape, width: int, rollouts: int, steps: int) -> dict[str, Any]:
    """FLOPs of a first step, then CPU seconds of whole steps in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tokenizer = tiny.fresh(
            hidden_size=width, intermediate_size=3 * width, num_attention_heads=width // 32,
            num_key_value_heads=width // 64, max_position_embeddings=4096,
        )  # fmt: skip
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        runs = {n: forced(a, shape, folder, rollouts) for n, a in algorithms(shape, folder).items()}
        count = {n: flops(run) for n, run in runs.items()}
        rows: dict[str, list[dict[str, float]]] = {n: [] for n in runs}
        for step in range(2, steps + 2):
            for n in runs if step % 2 else reversed(list(runs)):
                rows[n].append(timed(runs[n], step))
    model_flops = flop_model(shape)
    pairs = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(rows["ppo"], rows["genac"])]
    return {
        "shape": vars(shape), "width": width, "rollouts": rollouts, "raw": rows,
        "model": {n: f / model_flops["ppo"] for n, f in model_flops.items()},
        "flops_counted": count["genac"] / count["ppo"],
        "seconds": statistics.median(pairs), "pairs": pairs,
        "over_model": statistics.median(pairs) * model_flops["ppo"] / model_flops["genac"],
        "bars": {"model": BAR, "over_model": OVER_MODEL},
    }  # fmt: skip


def timed(run: Trainer, step: int) -> dict[str, float]:
    """One step: CPU seconds, wall-clock seconds of its phases, tokens."""
    start = time.process_time()
    row = run.train_step(step).row
    found = {"cpu_seconds": time.process_time() - start}
    return found | {name: float(row.get(name, 0.0)) for name in PHASES}


def flops(run: Trainer) -> float:
    """FLOPs of the matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        run.train_step(1)
    return float(counter.get_total_flops())


def on_sums(rollouts: int, steps: int) -> dict[str, Any]:
    """What a step of each algorithm costs with the embedded policy: first one that is counted, then those that are timed."""
    found = {}
    for name, algo in {"genac": Genac(), "ppo": Ppo(), "vineppo": Vineppo()}.items():
        run = Trainer(
            TrainConfig(model="tiny", algo=algo, rollouts_per_step=rollouts, steps=1000, eval_problems=0, out="unused")
        )
        if isinstance(algo, Genac):
            run.estimator.first_success_rate()  # type: ignore[attr-defined]
        counted = flops(run)
        rows = [timed(run, step) for step in range(2, steps + 2)]
        found[name] = {"flops": counted, "raw": rows} | {
            key: statistics.median(row[key] for row in rows) for key in rows[0]
        }
    return {"rollouts": rollouts, "steps": found}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--sums-rollouts", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="a tenth of the lengths, a small model")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        shape, sums = at_shape(Shape().tenth(), 64, 2, 1), on_sums(16, 1)
    else:
        shape, sums = (
            at_shape(Shape(), arguments.width, arguments.rollouts, arguments.steps),
            on_sums(arguments.sums_rollouts, arguments.steps),
        )
    result = {"quick": arguments.quick, "shape": shape, "sums": sums}
    if not arguments.quick or arguments.out is not None:
        print(write("genac-cost", result, arguments.out))
    print({k: shape[k] for k in ("model", "flops_counted", "seconds", "over_model")})


if __name__ == "__main__":
    main()
