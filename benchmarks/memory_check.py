"""Is the doctor's estimate of memory right? Estimate and measurement of whole training steps, phase by phase.

    python benchmarks/memory_check.py [--cases "wide;deep, LoRA"] [--quick] [--device cuda] [--json PATH]

Each case is a model with random weights and a run's settings. A real Trainer makes a step twice (the first one makes the
optimizer's moments), and the highest memory of each phase is read: on a CPU the growth of the process's resident set, with
large blocks going straight back to the system so that what is resident is what lives; on a GPU torch's count. The bar: the
peak of a step within 15 % of what `vantage.memory` says. Of a phase that takes little, Python's own objects are a larger share.
Cases with `processes` are measured in one of so many, over which the models are dealt out (FSDP2; on CPUs over gloo).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import write

BAR = 0.15
WIDE = {
    "kind": "Qwen3Config", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16000, "tie_word_embeddings": True,
}  # fmt: skip
DEEP = {
    "kind": "LlamaConfig", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
LONG = {**WIDE, "num_hidden_layers": 4, "vocab_size": 24000}
SHORT = {"prompt": 16, "new": 48, "rows": 12, "budget": 384}
MANY = {"prompt": 48, "new": 16, "rows": 16, "budget": 1024}
CASES: dict[str, dict[str, Any]] = {
    "wide": {"model": WIDE, **SHORT},
    "deep": {"model": DEEP, **MANY},
    "long": {"model": LONG, "prompt": 32, "new": 128, "rows": 16, "budget": 1280},
    "wide, bf16 arithmetic": {"model": WIDE, **SHORT, "precision": "bf16"},
    "deep, checkpointing": {"model": DEEP, **MANY, "gradient_checkpointing": True},
    "deep, bf16 and checkpointing": {"model": DEEP, **MANY, "precision": "bf16", "gradient_checkpointing": True},
    "deep, LoRA": {"model": DEEP, **MANY, "lora_rank": 8},
    "wide, LoRA in bf16": {"model": WIDE, **SHORT, "lora_rank": 8, "precision": "bf16"},
    "wide, grpo with KL": {"model": WIDE, **SHORT, "algo": "grpo", "kl_coef": 0.01},
    "wide, vimpo": {"model": WIDE, **SHORT, "algo": "vimpo"},
    "wide, ppo": {"model": WIDE, **SHORT, "algo": "ppo"},
    "wide, dealt out": {"model": WIDE, **SHORT, "processes": 2},
    "deep, dealt out": {"model": DEEP, **MANY, "processes": 2},
    "wide, ppo, dealt out": {"model": WIDE, **SHORT, "algo": "ppo", "processes": 2},
}
QUICK = ("deep", "wide, bf16 arithmetic", "wide, ppo")


class Meter:
    """Highest memory since the last reset, beyond that before the model."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.before = self._now()

    def _status(self, field: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    def _now(self) -> int:
        import torch

        return torch.cuda.memory_allocated() if self.cuda else self._status("VmRSS")

    def reset(self) -> None:
        import torch

        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        import torch

        return (torch.cuda.max_memory_allocated() if self.cuda else self._status("VmHWM")) - self.before


def configuration(case: dict[str, Any], folder: Path, device: str) -> Any:
    """The run of a case, its model in a folder with random weights."""
    from vantage.config import TrainConfig
    from vantage.estimators import get_algorithm

    names = ("precision", "gradient_checkpointing", "lora_rank", "kl_coef")
    options = {"precision": "fp32", **{name: case[name] for name in names if name in case}}
    if case.get("processes", 1) > 1:
        options["sharding"] = "fsdp2"
    return TrainConfig(
        model=str(folder), algo=get_algorithm(case.get("algo", "rloo"))(), rollouts_per_prompt=2,
        rollouts_per_step=case["rows"] * case.get("processes", 1), max_new_tokens=case["new"],
        tokens_per_microbatch=case["budget"], learning_rate=1e-6, eval_problems=0, generation_cache="dynamic",
        device=device, out=str(folder / "run"), **options,
    )  # fmt: skip


def make_model(settings: dict[str, Any], folder: Path) -> None:
    """Random weights and the embedded tokenizer."""
    import torch
    import transformers

    from vantage import tiny

    torch.manual_seed(0)
    options = {k: v for k, v in settings.items() if k != "kind"}
    made = getattr(transformers, settings["kind"])(**options, eos_token_id=1, bos_token_id=None, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def odd(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs within groups."""
    return [float(i % 2) for i in range(len(completions))]


def measured(case: dict[str, Any], folder: Path, device: str) -> dict[str, int]:
    """Bytes at the peak of each phase of a step."""
    import torch

    from vantage.trainer import Trainer

    gc.collect()  # the case before is gone
    meter = Meter(device)
    data = [{"prompt": f"{i:>{case['prompt']}}"} for i in range(4 * case["rows"])]
    trainer = Trainer(configuration(case, folder, device), train_data=data, reward_funcs=odd)
    found: dict[str, int] = {}

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            meter.reset()
            made = work(*args, **kwargs)
            found[name] = meter.peak()
            return made

        return run

    trainer.train_step(1)
    trainer.engine.generate = watched("rollout", trainer.engine.generate)  # type: ignore[method-assign]
    trainer.update.run = watched("update", trainer.update.run)  # type: ignore[method-assign]
    trainer.estimator.learn = watched("critic", trainer.estimator.learn)  # type: ignore[method-assign]
    lengths = trainer.train_step(2).row["completion/length_mean"]
    if lengths < 0.98 * case["new"] and case["model"]["vocab_size"] >= 1000:
        raise RuntimeError(f"responses of {lengths} tokens on average: too short for the estimate")
    if trainer.config.algo.trained_beside()[0] == "none":
        del found["critic"]
    del trainer
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def estimated(case: dict[str, Any], folder: Path, device: str) -> dict[str, int]:
    """What the doctor reckons with, by the same phases."""
    import torch

    from vantage.config import resolve
    from vantage.memory.report import estimator_of, settings_of

    config = resolve(configuration(case, folder, device), max_new_tokens=case["new"], stop=(), reward_range=(0.0, 1.0))
    settings = settings_of(config, case["prompt"], torch.device(device))
    count = case.get("processes", 1)
    settings = dataclasses.replace(settings, on_cpu=device == "cpu", processes=count, sharded=count > 1)
    phases = estimator_of(config)(settings).phases
    updating = max(phases["update"], phases["optimizer step"], phases.get("scoring", 0))
    found = {"rollout": phases["rollout"], "update": updating}
    return found | ({"critic": phases["critic"]} if "critic" in phases else {})


def with_a_small_one(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases, and before them a small one, so that kernels, threads and libraries (peft too) are there."""
    small = {"num_hidden_layers": 1, "vocab_size": 120, "intermediate_size": 64}
    adapters = max(case.get("lora_rank", 0) for case in cases)
    return [{**cases[0], "model": {**cases[0]["model"], **small}, "lora_rank": adapters}, *cases]


def child(cases: list[dict[str, Any]], device: str, models: Path) -> None:
    """Measure and estimate in a process of its own; `models` has the model of each case."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for number, case in enumerate(cases):
        took = measured(case, models / str(number), device)
        if number and os.environ.get("RANK", "0") == "0":
            row = {"measured": took, "estimated": estimated(case, models / str(number), device)}
            print("ROW " + json.dumps(row), flush=True)


def check(names: list[str], device: str = "cpu", tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Both numbers and their ratio for each phase of each case; `tell` gets a line as each is done."""
    found: dict[str, Any] = {}
    for count in sorted({CASES[name].get("processes", 1) for name in names}):
        alike = [name for name in names if CASES[name].get("processes", 1) == count]
        found |= check_in(count, alike, device, tell)
    return {name: found[name] for name in names}


def check_in(count: int, names: list[str], device: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """`check` for cases of so many processes; the first one tells."""
    cases = with_a_small_one([CASES[name] for name in names])
    blocks = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as models:
        for number, case in enumerate(cases):
            make_model(case["model"], Path(models) / str(number))
        command = [sys.executable, __file__, "--child", json.dumps(cases), "--device", device, "--models", models]
        first, *others = (
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL if i else subprocess.PIPE, text=True, env=os.environ | blocks | place
            )
            for i, place in enumerate(places(count))
        )
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("ROW "):
                name, row = names[len(found)], json.loads(line.removeprefix("ROW "))
                row["ratio"] = {phase: row["estimated"][phase] / taken for phase, taken in row["measured"].items()}
                row["peak_ratio"] = max(row["estimated"].values()) / max(row["measured"].values())
                found[name] = row
                tell(f"{name}: " + ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in row["ratio"].items()))
        status = [process.wait() for process in (first, *others)]
    if any(status) or len(found) < len(names):
        raise SystemExit(f"the measuring processes ended with {status} after {len(found)} cases")
    return found


def places(count: int) -> list[dict[str, str]]:
    """What a launcher tells each of so many processes; nothing for one."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="names with semicolons between them; default: all")
    parser.add_argument("--quick", action="store_true", help="three cases")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child), arguments.device, arguments.models)
        return
    names = list(QUICK) if arguments.quick else [n for n in arguments.cases.split(";") if n] or list(CASES)
    found = check(names, arguments.device, lambda line: print(line, flush=True))
    worst = max(abs(row["peak_ratio"] - 1) for row in found.values())
    whole = {
        "device": arguments.device,
        "bar": BAR,
        "worst": worst,
        "cases": {n: {**CASES[n], **found[n]} for n in names},
    }
    print(f"peak, worst: {worst:.3f}, bar {BAR}")
    if names == list(CASES) or arguments.json:
        print(write("memory_check", whole, arguments.json))


if __name__ == "__main__":
    main()
