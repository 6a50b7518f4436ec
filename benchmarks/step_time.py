"""A GRPO step of Vantage over one of TRL's `GRPOTrainer`, on the CPU: time and peak memory.

    python benchmarks/step_time.py [--steps 20] [--model tiny] [--quick] [--out FILE]

Each side is a process of its own (peak memory has no other honest measure), and the two take steps in turn, one waiting
while the other works, so that a slow minute of the machine hits both. Same model, prompts in the same order, 32 prompts × 8
rollouts at their natural lengths up to 64 tokens, learning rate 0 (ours 1e-30), one forward batch of 256 rows, no KL term,
the same verifier, no logging, evaluation or checkpoint, no skipping of groups without advantage on either side. The bars:
at most 0.67 of TRL's time (goal 0.5) and 0.8 of its peak memory. Our default micro-batches are measured as a third side.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import median_interval, write

GROUP, NEW_TOKENS, WARM_UP = 8, 64, 3
SIDES = ("vantage", "vantage-default", "trl")


def wait_for_go() -> None:
    """A side steps only when the parent says so."""
    if not sys.stdin.readline():
        sys.exit(0)


def report(seconds: float, tokens: float) -> None:
    """One line for the parent: seconds, peak resident memory in bytes, mean response length."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"STEP {seconds} {peak} {tokens}", flush=True)


def vantage_side(model: str, prompts: int, steps: int, default: bool) -> None:
    """Our steps, on demand."""
    from vantage import Grpo, TrainConfig, Trainer

    config = TrainConfig(
        model=model, algo=Grpo(), steps=steps, rollouts_per_step=prompts * GROUP, max_new_tokens=NEW_TOKENS,
        learning_rate=1e-30, eval_problems=0, device="cpu", out="unused",
        tokens_per_microbatch=None if default else 10**9,
    )  # fmt: skip
    trainer = Trainer(config)
    report(0.0, 0.0)
    for step in range(1, steps + 1):
        wait_for_go()
        start = time.perf_counter()
        done = trainer.train_step(step)
        report(time.perf_counter() - start, done.row["completion/length_mean"])


def trl_side(model: str, prompts: int, steps: int) -> None:
    """TRL's steps, on demand: a callback waits at the beginning of each and reports at its end."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from vantage.models.loading import model_path
    from vantage.tasks.sums import Sums, sums_reward
    from vantage.workload import PromptStream

    class Turns(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait_for_go()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            lengths = trainer._metrics["train"].get("completions/mean_length") or [0.0]
            report(time.perf_counter() - self.start, lengths[-1])

    problems = PromptStream(Sums().train, seed=0).take(0, prompts * steps)
    rows = [{"prompt": p.prompt, "answer": p.columns["answer"]} for p in problems]
    path = model_path(model)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=prompts * GROUP, num_generations=GROUP,
            max_completion_length=NEW_TOKENS, max_steps=steps, learning_rate=0.0, beta=0.0, temperature=1.0, loss_type="grpo",
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, shuffle_dataset=False, seed=0,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(path), reward_funcs=sums_reward, args=settings,
            train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
            callbacks=[Turns()],
        )  # fmt: skip
        report(0.0, 0.0)
        trainer.train()


class Side:
    """One of the processes, seen from the parent."""

    def __init__(self, name: str, model: str, prompts: int, steps: int) -> None:
        command = [
            sys.executable,
            __file__,
            "--side",
            name,
            "--model",
            model,
            "--prompts",
            str(prompts),
            "--steps",
            str(steps),
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_DISABLE_TELEMETRY": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.loaded = self.read()[1]
        self.seconds: list[float] = []
        self.tokens: list[float] = []
        self.peak = 0.0

    def read(self) -> tuple[float, float, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("STEP "):
                seconds, peak, tokens = map(float, line.split()[1:])
                return seconds, peak, tokens
        raise RuntimeError(f"a side ended early: {self.process.args}")

    def step(self, keep: bool) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, self.peak, tokens = self.read()
        if keep:
            self.seconds.append(seconds)
            self.tokens.append(tokens)

    def summary(self) -> dict[str, Any]:
        return {
            "median_seconds": statistics.median(self.seconds),
            "peak_bytes": self.peak,
            "loaded_bytes": self.loaded,
            "mean_length": statistics.mean(self.tokens),
            "seconds": self.seconds,
        }


def main() -> None:
    """Run the sides in turn and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--quick", action="store_true", help="few small steps")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "trl":
        return trl_side(arguments.model, arguments.prompts, arguments.steps)
    if arguments.side:
        default = arguments.side == "vantage-default"
        return vantage_side(arguments.model, arguments.prompts, arguments.steps, default)
    prompts, steps, warm_up = (4, 3, 1) if arguments.quick else (arguments.prompts, arguments.steps, WARM_UP)
    sides = {name: Side(name, arguments.model, prompts, steps + warm_up) for name in SIDES}
    for turn in range(steps + warm_up):
        order = SIDES if turn % 2 else SIDES[::-1]
        for name in order:
            sides[name].step(keep=turn >= warm_up)
    found = {name: side.summary() for name, side in sides.items()}
    theirs = found["trl"]
    ratios = {
        name: {
            "time": median_interval([a / b for a, b in zip(found[name]["seconds"], theirs["seconds"])]),
            "peak_memory": found[name]["peak_bytes"] / theirs["peak_bytes"],
        }
        for name in SIDES[:2]
    }
    bars = {"time": 0.67, "goal": 0.5, "peak_memory": 0.8}
    path = write(
        "step_time",
        {
            "model": arguments.model,
            "prompts": prompts,
            "group": GROUP,
            "steps": steps,
            "bars": bars,
            "ratios": ratios,
            "sides": found,
        },
        arguments.out,
    )
    for name, ratio in ratios.items():
        time_ratio = ratio["time"]
        print(
            f"{name} / trl: time {time_ratio['median']:.3f} [{time_ratio['low']:.3f}, {time_ratio['high']:.3f}], "  # type: ignore[index]
            f"peak memory {ratio['peak_memory']:.3f}"
        )
    for name, side in found.items():
        print(
            f"{name}: {side['median_seconds']:.3f} s, peak {side['peak_bytes'] / 1e9:.2f} GB, length {side['mean_length']:.1f}"
        )
    print(path)
    return None


if __name__ == "__main__":
    main()
