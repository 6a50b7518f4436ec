"""A training step at real sizes, with random weights: seconds by phase, MFU and peak memory of each algorithm.

    python benchmarks/gpu_step.py [--shapes 0.6b,4b] [--algos rloo,poise] [--minutes 7.5] [--json PATH]
    python benchmarks/gpu_step.py --shapes tiny            # anywhere, in less than a minute

Models have Qwen3's shapes and a tokenizer of as many made-up words, so nothing is downloaded. Rollouts are generated once for
a shape, two for each prompt; then each algorithm makes whole updates from them (what it asks of a critic or the engine,
forward, backward, optimizer, learning) with its learning rate near 0. RLOO and POISE take turns on one optimizer, POISE with
a full buffer: the ratio of their steps is what value estimates cost (goal at 4 B: 1.005). What does not fit, or comes
after the time is up, is said in the result, which is written after every part.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common import median_interval, write

QWEN = {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "head_dim": 128, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": {
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
        },
        "prompt": 12, "new": 16, "rollouts": 16,
    },
    "0.6b": {
        "model": {
            "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
            "num_attention_heads": 16, **QWEN,
        },
        "prompt": 256, "new": 768, "rollouts": 128,
    },
    "4b": {
        "model": {
            "vocab_size": 151_936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, **QWEN,
        },
        "prompt": 256, "new": 512, "rollouts": 96, "gradient_checkpointing": True,
    },
}  # fmt: skip
ALGOS = ("rloo", "poise", "grpo", "poise_token", "vimpo", "ppo")
FILL = 8
"""Steps until POISE's buffer is full."""
GOAL = 1.005


def tokenizer(vocabulary: int) -> Any:
    """`w7` is token 7."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, vocabulary)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def alternating(completions: list[str], **columns: Any) -> list[float]:
    """One rollout of each pair is right."""
    return [float((i + i // 2) % 2) for i in range(len(completions))]


class Bench:
    """A model of one shape, and trainers that share it."""

    def __init__(self, name: str, device: str, folder: Path) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        self.name, self.shape, self.folder = name, SHAPES[name], folder
        self.device = torch.device(device)
        settings = Qwen3Config(**self.shape["model"], eos_token_id=1, pad_token_id=0, bos_token_id=None)
        self.tokenizer = tokenizer(settings.vocab_size)
        torch.manual_seed(0)
        with self.device:
            self.network = Qwen3ForCausalLM(settings)
        settings.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(3, settings.vocab_size, (self.shape["rollouts"], self.shape["prompt"]), generator=draw)
        self.data = [{"prompt": " ".join(f"w{i}" for i in row)} for row in ids.tolist()]

    def trainer(self, algo: str) -> Any:
        """A trainer of the shared model that writes nothing."""
        from vantage.config import TrainConfig
        from vantage.estimators import get_algorithm
        from vantage.trainer import Trainer

        kind: Any = get_algorithm(algo)
        made = kind(bootstrap=0) if algo in ("poise", "poise_token") else kind()
        config = TrainConfig(
            model=str(self.folder), algo=made, rollouts_per_prompt=2, rollouts_per_step=self.shape["rollouts"],
            max_new_tokens=self.shape["new"], learning_rate=1e-12, eval_problems=0, steps=1000, device=self.device.type,
            gradient_checkpointing=self.shape.get("gradient_checkpointing", False), out=str(self.folder / algo),
        )  # fmt: skip
        with patch("vantage.trainer.load_policy", lambda *args, **options: self._policy(config, options)):
            return Trainer(config, train_data=self.data, reward_funcs=alternating)

    def _policy(self, config: Any, options: dict[str, Any]) -> Any:
        from vantage.policy import Policy

        held = options["options"]
        return Policy(
            self.network, self.tokenizer, temperature=config.temperature, chunk_tokens=config.logit_chunk_tokens,
            compute=held.compute_type(self.device), recompute=held.gradient_checkpointing,
        )  # fmt: skip

    def sync(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, reset: bool = False) -> float:
        """Peak memory in GB since the last reset (on a CPU: of the process so far)."""
        import torch

        from vantage.logbook import peak_memory_gb

        found = peak_memory_gb(self.device)
        if reset and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return found

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of some work, and what it made."""
        self.sync()
        start = time.perf_counter()
        made = work()
        self.sync()
        return time.perf_counter() - start, made


def step(bench: Bench, trainer: Any, collected: Any, number: int) -> dict[str, float]:
    """One update from stored rollouts; seconds in all and by phase."""
    collected = replace(collected, batch=replace(collected.batch, step=number))
    row: dict[str, float] = dict(collected.metrics)
    seconds, _ = bench.timed(lambda: trainer._learn_from(collected, row))
    phases = {k.removeprefix("time/"): v for k, v in row.items() if k.startswith("time/")}
    return {"step": seconds, **{k: v for k, v in phases.items() if k not in ("rollout", "reward")}}


def fill(trainer: Any, collected: Any, number: int) -> int:
    """Let POISE learn from the same rollouts until its buffer is full, without the policy."""
    batch = replace(collected.batch, step=number)
    update = trainer.update.run(batch)
    last = number + FILL
    for later in range(number + 1, last + 1):
        trainer.estimator.learn(replace(batch, step=later), update.reads, update.estimate)
    return last


def summary(bench: Bench, trainer: Any, collected: Any, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians by phase, MFU, memory."""
    from vantage.flops import peak_flops, update_flops

    seconds = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
    weights = sum(p.numel() for p in bench.network.parameters())
    batch, able = collected.batch, peak_flops(bench.device)
    flops = update_flops(bench.network.config, weights, [len(p) for p in batch.prompt_ids], batch.length_B.tolist())
    return {
        "median_seconds": seconds,
        "flops": flops,
        "mfu": None if able is None else flops / able / seconds["step"],
        "peak_gb": bench.peak(reset=True),
        "tokens_per_microbatch": trainer.update.budget,
        "steps": rows,
    }


def pair(bench: Bench, collected: Any, repeats: int) -> dict[str, Any]:
    """RLOO and POISE in turn."""
    runs = {name: bench.trainer(name) for name in ("rloo", "poise")}
    runs["poise"].update.optimizer = runs["rloo"].update.optimizer
    number = fill(runs["poise"], collected, 1)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first one warms up
        number += 1
        for name in ("poise", "rloo") if turn % 2 else ("rloo", "poise"):
            rows[name].append(step(bench, runs[name], collected, number))
    rows = {name: found[1:] for name, found in rows.items()}
    ratios = [a["step"] / b["step"] for a, b in zip(rows["poise"], rows["rloo"])]
    own = [a["value"] + a["value_update"] - b["value"] - b["value_update"] for a, b in zip(rows["poise"], rows["rloo"])]
    least = statistics.median(row["step"] for row in rows["rloo"])
    found = {name: summary(bench, runs[name], collected, rows[name]) for name in runs}
    found["rloo"]["peak_gb"] = found["poise"]["peak_gb"] = max(f["peak_gb"] for f in found.values())
    return {
        "algorithms": found,
        "poise_over_rloo": {
            **median_interval(ratios), "by_phases": 1 + statistics.median(own) / least, "goal": GOAL, "ratios": ratios,
        },
    }  # fmt: skip


def single(bench: Bench, algo: str, collected: Any, repeats: int) -> dict[str, Any]:
    """One algorithm alone."""
    trainer = bench.trainer(algo)
    rows = [step(bench, trainer, collected, number) for number in range(1, repeats + 2)]
    return summary(bench, trainer, collected, rows[1:])


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What came out, or why nothing did."""
    import gc

    import torch

    from vantage.errors import UserError

    try:
        return work()
    except (UserError, torch.OutOfMemoryError) as error:
        return {"failed": " ".join(str(error).split())[:300]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def generated(bench: Bench) -> tuple[Any, dict[str, Any]]:
    """Rollouts of a step, and what they took; the second time, when all kernels are there."""
    trainer = bench.trainer("rloo")
    trainer.collector(1, trainer.stream, 0)
    bench.peak(reset=True)
    seconds, collected = bench.timed(lambda: trainer.collector(2, trainer.stream, trainer.config.prompts))
    tokens = collected.metrics["tokens/generated"]
    return collected, {
        "seconds": seconds, "tokens_per_second": tokens / seconds, "peak_gb": bench.peak(reset=True),
        "mean_length": collected.metrics["completion/length_mean"], "batch": trainer.engine.generation_batch,
        "static_cache": trainer.engine._static_agrees,
    }  # fmt: skip


def measure(name: str, device: str, algos: list[str], repeats: int, late: Callable[[], bool], save: Any) -> None:
    """Everything of one shape; `save` gets the result so far."""
    found: dict[str, Any] = {"shape": SHAPES[name], "algorithms": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, device, Path(folder))
        found["parameters"] = sum(p.numel() for p in bench.network.parameters())
        collected, found["generation"] = generated(bench)
        save(found)
        if {"rloo", "poise"} <= set(algos):
            both = attempt(lambda: pair(bench, collected, repeats))
            found["algorithms"] |= both.pop("algorithms", dict.fromkeys(("rloo", "poise"), both))
            found |= {k: v for k, v in both.items() if k == "poise_over_rloo"}
            save(found)
        for algo in [a for a in algos if a not in found["algorithms"]]:
            done = (
                {"failed": "no time left"} if late() else attempt(lambda a=algo: single(bench, a, collected, repeats))
            )
            found["algorithms"][algo] = done
            save(found)


def tell(name: str, found: dict[str, Any]) -> None:
    """A line for each algorithm."""
    made = found["generation"]
    print(f"{name}: generation {made['tokens_per_second']:,.0f} tokens/s, {made['peak_gb']:.1f} GB")
    for algo, row in found["algorithms"].items():
        if "failed" in row:
            print(f"{name} {algo}: {row['failed']}")
            continue
        phases = ", ".join(f"{k} {v:.3f}" for k, v in row["median_seconds"].items() if k != "step")
        mfu = "" if row["mfu"] is None else f", MFU {row['mfu']:.3f}"
        print(f"{name} {algo}: {row['median_seconds']['step']:.3f} s ({phases}){mfu}, {row['peak_gb']:.1f} GB")
    if ratio := found.get("poise_over_rloo"):
        print(f"{name} poise / rloo: {ratio['median']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}], "
              f"by phases {ratio['by_phases']:.4f}; goal {GOAL}")  # fmt: skip


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.6b,4b")
    parser.add_argument("--algos", default=",".join(ALGOS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=7.5, help="nothing new is begun after this")
    parser.add_argument("--quick", action="store_true", help="the tiny shape, two repeats")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    shapes = ["tiny"] if arguments.quick else arguments.shapes.split(",")
    repeats, started = 2 if arguments.quick else arguments.repeats, time.perf_counter()
    result: dict[str, Any] = {"device": arguments.device, "shapes": {}}
    if arguments.device == "cuda":
        result["device"] = torch.cuda.get_device_name()

    def save(name: str, found: dict[str, Any]) -> None:
        result["shapes"][name] = found
        result["minutes"] = (time.perf_counter() - started) / 60
        if arguments.json or shapes != ["tiny"]:
            write("gpu_step", result, arguments.json)

    for number, name in enumerate(shapes):
        share = arguments.minutes * 60 * (number + 1) / len(shapes)
        measure(
            name, arguments.device, arguments.algos.split(","), repeats,
            lambda share=share: time.perf_counter() - started > share, lambda found, name=name: save(name, found),
        )  # fmt: skip
        tell(name, result["shapes"][name])


if __name__ == "__main__":
    main()
