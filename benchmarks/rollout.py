"""Tokens a second: Vantage's engine over plain `generate` of transformers, with each kind of cache.

    python benchmarks/rollout.py [--shape tiny] [--turns 7] [--json PATH]
    python benchmarks/rollout.py --shape 0.6b         # where there is a GPU; random weights, no stop before the limit

Same model, prompts and number of rollouts, at their natural lengths up to the limit; `generate` samples all rollouts of a batch
of prompts side by side (`num_return_sequences`) under the same arithmetic, and keeps finished rows until the last one ends.
Sides take turns, so a slow minute hits all. Counted are the tokens of responses, end tokens included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import median_interval, write

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"prompts": 32, "group": 8, "new": 80},
    "0.6b": {"prompts": 32, "group": 8, "new": 512},
    "4b": {"prompts": 16, "group": 8, "new": 256},
}


def policy_of(shape: str, device: str) -> tuple[Any, list[list[int]], tuple[int, ...]]:
    """Policy, prompts of up to 32, and end tokens."""
    import torch

    from vantage.models.holding import ModelOptions
    from vantage.models.loading import end_token_ids, load_policy
    from vantage.policy import Policy
    from vantage.prompting import encode_prompt

    options, where = ModelOptions(trained=True), torch.device(device)
    if shape == "tiny":
        from vantage.tasks.sums import Sums

        policy = load_policy("tiny", where, options=options)
        prompts = [encode_prompt(policy.tokenizer, Sums().train[i].prompt) for i in range(SHAPES[shape]["prompts"])]
        return policy, prompts, end_token_ids(policy)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    import gpu_step

    settings = Qwen3Config(**gpu_step.SHAPES[shape]["model"], eos_token_id=1, pad_token_id=0, bos_token_id=None)
    torch.manual_seed(0)
    with where:
        network = Qwen3ForCausalLM(settings)
    policy = Policy(network, gpu_step.tokenizer(settings.vocab_size), compute=options.compute_type(where))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, settings.vocab_size, (SHAPES[shape]["prompts"], 128), generator=draw).tolist()
    return policy, [row[: 96 + i] for i, row in enumerate(ids)], (1,)


def ours(policy: Any, prompts: list[list[int]], end_ids: tuple[int, ...], group: int, new: int, cache: Any) -> Any:
    """A round of our engine: tokens that it made."""
    from vantage.randomness import Stream, key
    from vantage.rollout.engine import Request, Sampling
    from vantage.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(policy, end_ids, len(prompts) * group, cache=cache)

    def run(turn: int) -> int:
        asked = [
            Request(p, tuple(key(0, Stream.ROLLOUT, turn, i, j) for j in range(group))) for i, p in enumerate(prompts)
        ]
        made = engine.generate(asked, Sampling(new))
        return sum(len(r.response_ids) for rollouts in made for r in rollouts)

    return run


def plain(
    policy: Any, prompts: list[list[int]], end_ids: tuple[int, ...], group: int, new: int
) -> Callable[[int], int]:
    """A round of `generate`."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[policy.pad_id] * (width - len(p)) + p for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)

    def run(turn: int) -> int:
        torch.manual_seed(turn)
        with torch.inference_mode(), policy._arithmetic():
            made = policy.model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=group, eos_token_id=list(end_ids), pad_token_id=policy.pad_id,
            )[:, width:]  # fmt: skip
        over = torch.isin(made, torch.tensor(end_ids, device=made.device)).int().cumsum(1)
        return int((over - torch.isin(made, torch.tensor(end_ids, device=made.device)).int() == 0).sum())

    return run


def timed(work: Callable[[int], int], turn: int, device: str) -> dict[str, float]:
    """Seconds, tokens, and tokens a second of a round."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = work(turn)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="four prompts, two turns")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    sizes, device = dict(SHAPES[arguments.shape]), arguments.device
    policy, prompts, end_ids = policy_of(arguments.shape, device)
    turns, prompts = (2, prompts[:4]) if arguments.quick else (arguments.turns, prompts)
    given = (policy, prompts, end_ids, sizes["group"], sizes["new"])
    sides = {
        "dynamic": ours(*given, cache="dynamic"), "static": ours(*given, cache="static"), "generate": plain(*given),
    }  # fmt: skip
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(turns + 1):  # the first one warms up
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            rows[name].append(timed(sides[name], turn, device))
    rows = {name: found[1:] for name, found in rows.items()}
    ratios = {
        name: median_interval(
            [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(rows[name], rows["generate"])]
        )
        for name in ("dynamic", "static")
    }
    result = {
        "shape": arguments.shape, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "sizes": sizes,
        "prompts": len(prompts), "arithmetic": str(policy.compute), "over_generate": ratios, "sides": rows,
    }  # fmt: skip
    for name, found in rows.items():
        print(f"{name}: {statistics.median(r['tokens_per_second'] for r in found):,.0f} tokens/s")
    for name, ratio in ratios.items():
        print(f"{name} / generate: {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]")
    if not arguments.quick or arguments.json:
        print(write("rollout" if arguments.shape == "tiny" else f"rollout-{arguments.shape}", result, arguments.json))


if __name__ == "__main__":
    main()
