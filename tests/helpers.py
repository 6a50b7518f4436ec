"""Small models and batches that several tests share."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from vantage import tiny
from vantage.batch import Batch
from vantage.distributed.world import World
from vantage.models.loading import load_policy
from vantage.policy import Policy

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 16}


def small_policy(seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> Policy:
    """A random Qwen3 policy of a few thousand parameters."""
    model, tokenizer = tiny.fresh(seed, **SMALL)
    return Policy(model.to(dtype), tokenizer, **options)


def random_batch(groups: int = 6, group: int = 2, seed: int = 0, step: int = 1) -> Batch:
    """Rollouts of different lengths with 0/1 rewards; the last one of the first group has an end token only."""
    draw = random.Random(seed)
    prompts, responses = [], []
    for _ in range(groups):
        prompt = [draw.randrange(3, 40) for _ in range(draw.randint(2, 9))]
        for _ in range(group):
            prompts.append(prompt)
            responses.append([*(draw.randrange(3, 40) for _ in range(draw.randint(0, 12))), 1])
    responses[group - 1] = [1]
    count = groups * group
    outcome = torch.tensor([float(draw.random() < 0.5) for _ in range(count)], dtype=torch.float64)
    return Batch(
        step=step,
        prompt_ids=prompts,
        response_ids=responses,
        group_B=torch.arange(groups).repeat_interleave(group),
        outcome_B=outcome,
        reward_B=outcome,
        scorable_B=torch.ones(count, dtype=torch.bool),
        domains=["default"] * count,
    )


class ThreadWorld(World):
    """One of several threads of this process that stand for processes."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def exchange(self, value):
        self._board[self.rank] = value
        self._barrier.wait(60)
        found = copy.deepcopy(list(self._board))
        self._barrier.wait(60)
        return found

    def sum(self, value):
        return torch.stack(self.exchange(value.detach().cpu())).sum(0)

    def add_up(self, tensors):
        for tensor in tensors:
            tensor.copy_(self.sum(tensor))


def load_in_turns(monkeypatch: Any) -> None:
    """Let threads load models one after the other: transformers' loading is not made for several at once."""
    lock = threading.Lock()

    def load(*arguments: Any, **keywords: Any) -> Policy:
        with lock:
            return load_policy(*arguments, **keywords)

    for module in ("vantage.trainer", "vantage.models.loading"):
        monkeypatch.setattr(f"{module}.load_policy", load)


def together(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What `work` returns in each world of `size` threads, by rank; raises what any of them raised."""
    barrier, board = threading.Barrier(size), [None] * size

    def run(rank: int) -> Any:
        try:
            return work(ThreadWorld(rank, size, barrier, board))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [f.exception() for f in futures if f.exception() is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [f.result() for f in futures]
