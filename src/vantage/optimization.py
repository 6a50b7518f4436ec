"""Optimizer and learning-rate schedule. The schedule is a function of the step number, so it has no state to save."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from vantage.distributed.dealt import is_dealt, scale_down, total_norm
from vantage.distributed.world import World

Schedule = Literal["constant", "linear", "cosine"]


def make_optimizer(
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    kind: Literal["adamw", "adamw-8bit"] = "adamw",
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms, biases) do not decay.

    What is dealt out over processes and what is not never share a group, since torch steps a group at once. On a CUDA
    device one kernel does the whole step, without the copy of the second moments that lists of tensors need.
    Raises `UserError` where the package of `adamw-8bit` is missing.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if (p.ndim >= 2) == decays and is_dealt(p) == dealt],
         "weight_decay": weight_decay if decays else 0.0}
        for decays in (True, False)
        for dealt in (False, True)
    ]  # fmt: skip
    groups = [g for g in groups if g["params"]]
    if kind == "adamw-8bit":
        from vantage.lowbit import adamw_8bit

        return adamw_8bit(groups, betas)
    fused = all(p.device.type == "cuda" and p.dtype == torch.float32 for p in trainable)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, foreach=not fused, fused=fused)


def scheduled(peak: float, schedule: Schedule, warmup: int, done: int, total: int, spent: float = 0.0) -> float:
    """Learning rate for the optimizer step after `done` finished ones, of `total`.

    Rises linearly over `warmup` steps, then stays, or falls to 0 along a line or half a cosine. `spent` is the share of
    another budget (tokens, seconds) that is used up, if that is the larger one.
    """
    if done < warmup:
        return peak * (done + 1) / warmup
    progress = min(1.0, max(spent, (done - warmup) / max(1, total - warmup)))
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` for every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def add_up_gradients(model: nn.Module, world: World) -> None:
    """Sum the gradients of all processes in place; one that has none for a parameter adds zeros.

    FSDP2 has summed those of what is dealt out.
    """
    if world.size == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad and not is_dealt(p)]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    world.add_up([p.grad for p in parameters if p.grad is not None])


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale the gradient down to `max_norm` (0: leave it) and return its norm before that."""
    found = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in found if p.grad is not None]
    norm = total_norm(gradients)
    if max_norm > 0 and any(map(is_dealt, gradients)):
        scale_down(gradients, norm, max_norm)
    elif max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(found, max_norm, norm)
    return float(norm)
