"""VIMPO's peak memory and time over GRPO's at a vocabulary of 151,936: what does the exact KL cost?

    python benchmarks/vimpo_memory.py [--quick] [--json PATH]

A small trunk under the full vocabulary, where logits are all that matters. Every side is a process of its own (peak memory has
no other honest measure) and makes the same updates from the same rollouts, in chunks of as many tokens. Memory is counted
from before the model is made, and without the reference's weights, which every exact KL needs. Bar: at most 15 % more.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import write

VOCABULARY, HIDDEN = 151_936, 128
SIDES = ("grpo", "grpo-kl-exact", "vimpo", "vimpo-value-only", "vimpo-k3")


def peak() -> int:
    """Highest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def algorithm(side: str) -> Any:
    from vantage.estimators.grpo import Grpo
    from vantage.estimators.vimpo import Vimpo

    options = {"vimpo": {}, "vimpo-value-only": {"actor_coef": 0.0}, "vimpo-k3": {"kl": "k3"}}
    return Vimpo(**options[side]) if side in options else Grpo()


def child(side: str, rollouts: int, length: int, chunk: int, repeats: int) -> None:
    """Make the updates of one side and print what they took."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from vantage.batch import Batch
    from vantage.config import TrainConfig, resolve
    from vantage.estimators.base import Setup
    from vantage.models.reference import make_reference
    from vantage.policy import Policy
    from vantage.update import PolicyUpdate

    torch.manual_seed(0)
    torch.log_softmax(torch.randn(64, 64), -1).sum()  # libraries are loaded before memory is counted
    before = peak()
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=2, head_dim=32,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=4096,
        )
    )  # fmt: skip
    policy = Policy(network, None, chunk_tokens=chunk)
    algo = algorithm(side)
    kl = {"kl_coef": 1e-3, "kl_estimator": "exact"} if side == "grpo-kl-exact" else {}
    config = TrainConfig(
        algo=algo, rollouts_per_step=rollouts, rollouts_per_prompt=8, tokens_per_microbatch=4 * (length + 16), **kl
    )
    config = resolve(config, max_new_tokens=length, stop=(), reward_range=(0.0, 1.0))
    reference = make_reference(policy, None) if algo.compares or kl else None
    weights = 0 if reference is None else sum(p.numel() * p.element_size() for p in reference.model.parameters())
    estimator = algo.build(Setup(2, HIDDEN, 8, (0.0, 1.0), max_new_tokens=length))
    update = PolicyUpdate(policy, estimator, config, reference)
    draw = random.Random(0)
    seconds = []
    for step in range(1, repeats + 1):
        reward_B = torch.tensor([float(draw.random() < 0.5) for _ in range(rollouts)], dtype=torch.float64)
        batch = Batch(
            step=step,
            prompt_ids=[[i // 8 + 1] * 16 for i in range(rollouts)],
            response_ids=[[draw.randrange(VOCABULARY) for _ in range(length)] for _ in range(rollouts)],
            group_B=torch.arange(rollouts) // 8,
            outcome_B=reward_B,
            reward_B=reward_B,
            scorable_B=torch.ones(rollouts, dtype=torch.bool),
            domains=["default"] * rollouts,
        )
        start = time.perf_counter()
        update.run(batch)
        seconds.append(time.perf_counter() - start)
    print(f"SIDE {peak() - before} {weights} {statistics.median(seconds)}")


def measure(side: str, rollouts: int, length: int, chunk: int, repeats: int) -> dict[str, float]:
    sizes = [str(n) for n in (rollouts, length, chunk, repeats)]
    done = subprocess.run(
        [sys.executable, __file__, "--child", side, *sizes], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    used, weights, seconds = map(float, next(x for x in done.stdout.splitlines() if x.startswith("SIDE")).split()[1:])
    return {"peak_bytes": used, "reference_bytes": weights, "net_bytes": used - weights, "seconds": seconds}


def main() -> None:
    if "--child" in sys.argv:
        side, *sizes = sys.argv[sys.argv.index("--child") + 1 :]
        child(side, *map(int, sizes))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sides, short rollouts")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    shape = (
        {"rollouts": 8, "length": 32, "chunk": 64, "repeats": 1}
        if arguments.quick
        else {"rollouts": 16, "length": 128, "chunk": 256, "repeats": 3}
    )
    sides = {side: measure(side, *shape.values()) for side in (SIDES[::2][:2] if arguments.quick else SIDES)}
    ratios = {
        side: {
            "memory": found["net_bytes"] / sides["grpo"]["net_bytes"],
            "time": found["seconds"] / sides["grpo"]["seconds"],
        }
        for side, found in sides.items()
    }
    for side, ratio in ratios.items():
        print(f"{side}: {ratio['memory']:.3f} of GRPO's peak memory, {ratio['time']:.2f} of its time")
    found = {"vocabulary": VOCABULARY, "shape": shape, "sides": sides, "over_grpo": ratios, "bar": 1.15}
    if not arguments.quick or arguments.json:
        print(write("vimpo_memory", found, arguments.json))


if __name__ == "__main__":
    main()
