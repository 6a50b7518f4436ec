"""What a step leaves behind: its row in metrics.jsonl and its samples in samples.jsonl."""

from __future__ import annotations

import hashlib
import resource
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vantage.collect import Collected
from vantage.diagnostics import first_value, largest_advantage, value_metrics, zero_advantage_groups
from vantage.distributed.world import World
from vantage.update import UpdateResult

if TYPE_CHECKING:
    from vantage.tasks.base import Problem


def estimate_metrics(collected: Collected, update: UpdateResult, world: World) -> dict[str, float]:
    """`groups/zero_advantage` and `value/*` over the rollouts of all processes."""
    batch, estimate = collected.batch, update.estimate
    values_B = first_value(estimate, batch.response_mask_BT)
    own = (batch.group_B, batch.outcome_B, values_B.double(), largest_advantage(estimate).double())
    group_B, outcome_B, value_B, largest_B = (torch.cat(part) for part in zip(*world.exchange(own)))
    order = torch.argsort(group_B, stable=True)
    row = {"groups/zero_advantage": zero_advantage_groups(largest_B, group_B)}
    return row | value_metrics(value_B[order], outcome_B[order])


def sample_rows(collected: Collected, update: UpdateResult, count: int, world: World) -> list[dict[str, Any]]:
    """Rows for samples.jsonl: `count` rollouts of the step's first prompts, of all processes."""
    batch, estimate = collected.batch, update.estimate
    values_B = first_value(estimate, batch.response_mask_BT)
    advantages_B = estimate.advantage_BT[:, 0] if estimate.advantage_BT.shape[1] else estimate.advantage_BT.sum(1)
    rows = []
    for i in range(min(count, batch.size)):
        problem: Problem = collected.problems[i]
        row: dict[str, Any] = {
            "step": batch.step,
            "prompt": problem.prompt,
            "response": collected.texts[i],
            "outcome": float(batch.outcome_B[i]),
            "reward": float(batch.reward_B[i]),
            "value": float(values_B[i]),
            "advantage": float(advantages_B[i]),
            "length": len(batch.response_ids[i]),
            "finish_reason": collected.rollouts[i].finish_reason,
        }
        if collected.extras[i]:
            row["extra"] = collected.extras[i]
        rows.append((int(batch.group_B[i]), row))
    together = [pair for part in world.exchange(rows) for pair in part]
    return [row for _, row in sorted(together, key=lambda pair: pair[0])][:count]


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory so far: allocated on a CUDA device, else the process's resident set; in GB (10⁹ bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def weights_digest(model: nn.Module, entries: int = 4096, frozen_only: bool = False) -> str:
    """A short name for a model's weights, from up to so many entries of each tensor: equal weights, equal name.

    `frozen_only` leaves out what is trained: the base of a model with adapters.
    """
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if frozen_only and parameter.requires_grad:
            continue
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // entries)].float().cpu()
        found.update(f"{name}{tuple(parameter.shape)}".encode())
        found.update(some.numpy().tobytes())
    return found.hexdigest()[:16]
