"""What fits on one GPU of 24 GB? The table of docs/models.md: Qwen3-0.6B and 1.7B, responses of up to 1,024 tokens.

    python benchmarks/memory_24gb.py [--out PATH]

Nothing is loaded or measured: these are the doctor's estimates (`vantage.memory`) for the shapes of the two models, in bfloat16
arithmetic, on a device without their weights. A setting fits if 1.1 times its peak is within 24 GB, as the doctor has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import write

MEMORY = 24e9
PROMPT = 256
SHAPES = {
    "0.6 B": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7 B": {"hidden_size": 2048, "intermediate_size": 6144},
}
"""Of Qwen3-0.6B and Qwen3-1.7B; what they share is below."""
SHARED = {
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    "tie_word_embeddings": True, "max_position_embeddings": 40_960,
}  # fmt: skip
LEAN = {"gradient_checkpointing": True, "tokens_per_microbatch": 4096}
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("0.6 B", "all, the defaults", {}),
    ("0.6 B", "all", {**LEAN, "generation_batch": 64}),
    ("0.6 B", "all, KL to a reference", {**LEAN, "generation_batch": 32, "algo": "grpo", "kl_coef": 0.01}),
    ("0.6 B", "all, as `examples/gsm8k.yaml`", {**LEAN, "tokens_per_microbatch": 8192, "generation_batch": 56}),
    ("0.6 B", "all, a critic (`ppo`)", {**LEAN, "generation_batch": 32, "algo": "ppo", "optimizer": "adamw-8bit"}),
    ("0.6 B", "adapters of rank 32", {**LEAN, "generation_batch": 128, "lora_rank": 32}),
    ("1.7 B", "all", {**LEAN, "generation_batch": 64}),
    ("1.7 B", "all, 8-bit moments", {**LEAN, "generation_batch": 32, "optimizer": "adamw-8bit"}),
    ("1.7 B", "adapters of rank 32", {**LEAN, "generation_batch": 64, "lora_rank": 32}),
]


def shape(name: str) -> Any:
    """The transformers configuration of a model."""
    from transformers import Qwen3Config

    return Qwen3Config(**SHARED, **SHAPES[name])


def needs(name: str, settings: dict[str, Any], estimators: dict[str, Any]) -> dict[str, Any]:
    """The doctor's estimate for a model and settings of a run."""
    from vantage.config import TrainConfig, resolve
    from vantage.estimators import get_algorithm
    from vantage.memory import Estimator, Settings
    from vantage.memory.report import SPARE

    changes = {**settings, "algo": get_algorithm(settings.get("algo", "poise"))()}
    config = resolve(
        TrainConfig(model=name, max_new_tokens=1024, **changes), max_new_tokens=None, stop=(), reward_range=(0.0, 1.0)
    )
    estimator = estimators.setdefault(name, Estimator(shape(name)))
    of_run = Settings.of(config, PROMPT, precision="bfloat16", on_cpu=False)
    need = estimator(of_run)
    return {
        "parameters": need.parameters, "weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer,
        "reference": need.reference, "critic": need.critic, "activations": need.activations, "generation": need.rollout,
        "cache": need.cache, "phases": need.phases, "peak": need.peak, "fits": need.peak * SPARE["cuda"] <= MEMORY,
    }  # fmt: skip


def flags_of(settings: dict[str, Any]) -> str:
    """The settings as they are typed."""
    names = {"lora_rank": "--lora.rank", "gradient_checkpointing": "--gradient-checkpointing"}
    words = [
        names.get(key, "--" + key.replace("_", "-")) + ("" if value is True else f" {value}")
        for key, value in settings.items()
    ]
    return f"`{' '.join(words)}`" if words else "none"


def line(row: dict[str, Any]) -> str:
    """A row as the document has it."""
    held = row["weights"] + row["gradients"] + row["optimizer"] + row["reference"] + row["critic"]
    cells = [f"{size / 1e9:.1f} GB" for size in (held, row["activations"], row["generation"], row["peak"])]
    return (
        "| "
        + " | ".join([row["model"], row["trained"], flags_of(row["settings"]), *cells, "yes" if row["fits"] else "no"])
        + " |"
    )


def main() -> None:
    """Estimate every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the result goes; default: benchmarks/results/memory_24gb.json")
    arguments = parser.parse_args()
    estimators: dict[str, Any] = {}
    rows = []
    print("| model | trained | flags | held | activations | generation | peak | fits |")
    print("|---|---|---|---|---|---|---|---|")
    for name, trained, settings in ROWS:
        need = needs(name, settings, estimators)
        rows.append({"model": name, "trained": trained, "settings": settings, **need})
        print(line(rows[-1]), flush=True)
    write(
        "memory_24gb", {"memory": MEMORY, "prompt_tokens": PROMPT, "max_new_tokens": 1024, "rows": rows}, arguments.out
    )


if __name__ == "__main__":
    main()
