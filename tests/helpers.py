"""Small models and batches that several tests share."""

from __future__ import annotations

import random

import torch

from vantage import tiny
from vantage.batch import Batch
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
