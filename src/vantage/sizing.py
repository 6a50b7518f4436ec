"""How many tokens does a forward pass take at once? From the memory that is free, and less where that was too many.

A micro-batch of fewer tokens gives the same gradient to rounding, so its size is a matter of memory alone.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from vantage.batch import Batch, plan_microbatches
from vantage.config import TrainConfig, default_microbatch
from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.memory import Estimator, Settings
    from vantage.policy import Policy

MOST_TOKENS = 65_536
"""Larger micro-batches are no faster."""
MARGIN = {"cuda": 0.9, "cpu": 0.7}
"""Share of the free memory that is reckoned with: allocators keep more than what lives."""


def less_room(batch: Batch, budget: int, config: TrainConfig, together: bool) -> int:
    """Half the tokens of the largest micro-batch that there was; raises `UserError` where it had one rollout.

    `together`: other processes are in the middle of the same pass, which this one can not begin anew without them.
    """
    torch.cuda.empty_cache()
    tokens = batch.tokens()
    plan = plan_microbatches(tokens, batch.groups(), budget)
    padded, rows = max((len(rows) * max(tokens[i] for i in rows), len(rows)) for rows in plan.micro)
    if rows == 1:
        raise UserError(
            f"there is not enough memory for a pass over one rollout of {padded} tokens; {remedies(config)}"
        )
    if together:
        raise UserError(
            f"there is not enough memory for a pass over {padded} tokens; --tokens-per-microbatch {padded // 2} would take half"
        )
    warnings.warn(
        f"not enough memory for a pass over {padded} tokens; --tokens-per-microbatch {padded // 2} from here on",
        stacklevel=2,
    )
    return padded // 2


@contextlib.contextmanager
def no_room_for_moments(config: TrainConfig) -> Iterator[None]:
    """Inside an optimizer's step memory that runs out is a mistake of the settings."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"there is not enough memory for the optimizer's step; {remedies(config)}") from error


def remedies(config: TrainConfig, sharded: bool = False) -> str:
    """What makes room where smaller micro-batches do not; `sharded`: models are dealt out."""
    found = [
        "--gradient-checkpointing" if not config.gradient_checkpointing else "",
        "more processes" if sharded else "--optimizer adamw-8bit" if config.optimizer == "adamw" else "",
        "--lora.rank 32" if config.lora_rank == 0 else "",
        "a shorter --max-new-tokens",
        "a smaller --logit-chunk-tokens",
    ]
    return f"try {', '.join(filter(None, found))}, or see `vantage doctor --model {config.model}`"


@dataclass(frozen=True)
class Size:
    """Tokens of a micro-batch, and whether they hold all rollouts of a prompt at their longest."""

    tokens: int
    whole_groups: bool


def microbatch_size(estimator: Estimator, settings: Settings, free: float, most: int = MOST_TOKENS) -> Size | None:
    """The largest micro-batch for which `free` bytes suffice; None where one rollout of the longest kind is too much.

    `free` is what gradients, moments, a critic and activations may take; weights and reference are there already, but where
    models are dealt out, which comes later.
    """
    one = estimator(replace(settings, microbatch_tokens=settings.rollout_tokens))
    two = estimator(replace(settings, microbatch_tokens=2 * settings.rollout_tokens))
    there = 0 if settings.dealt else one.weights + one.reference
    room, each = free - (one.phases["update"] - there), two.activations - one.activations
    critic = one.phases.get("critic", 0) - there
    if room < 0 or critic > free or one.phases.get("scoring", 0) > free:
        return None
    rows = 1 + int(room / max(each, 1))
    if critic > 0:
        rows = min(rows, 1 + int((free - critic) / max(two.critic_work - one.critic_work, 1)))
    if one.scoring:
        rows = min(rows, 1 + int((free - one.phases["scoring"]) / max(two.scoring - one.scoring, 1)))
    tokens = min(rows * settings.rollout_tokens, max(most, settings.rollout_tokens))
    return Size(tokens, tokens >= settings.rollouts_per_prompt * settings.rollout_tokens)


def size_for(
    policy: Policy, config: TrainConfig, longest_prompt: int, processes: int = 1, sharded: bool = False
) -> tuple[int, str]:
    """Tokens of a micro-batch on the policy's device as it is now, and what there is to say about it (or nothing).

    `sharded`: models will be dealt out over the `processes`. On a CPU these share the free memory. Raises `UserError` where
    one rollout of the longest kind does not fit.
    """
    from vantage.memory.report import estimator_of, free_bytes, settings_of

    device = policy.device.type
    free = free_bytes(device)
    if free is not None and device == "cpu":
        free //= processes
    settings = settings_of(config, longest_prompt, policy.device, processes, sharded)
    try:
        if free is None:
            raise ValueError("the system does not tell how much memory is free")
        size = microbatch_size(estimator_of(config), settings, MARGIN[device] * free)
    except ValueError as error:
        tokens = default_microbatch(config.max_new_tokens or 512)
        return tokens, f"{error}: --tokens-per-microbatch is {tokens}"
    if size is None:
        raise UserError(
            f"a rollout of {settings.rollout_tokens} tokens (prompt {longest_prompt}, response {settings.new_tokens}) does not "
            f"fit into the {free / 1e9:.1f} GB that are free on {device}; {remedies(config, sharded)}"
        )
    if size.whole_groups:
        return size.tokens, ""
    group = config.group_size
    return size.tokens, (
        f"the {group} rollouts of a prompt of {settings.rollout_tokens} tokens each do not fit into one pass of {size.tokens}: "
        "where values are read from hidden states, that takes a pass of its own; --gradient-checkpointing makes room"
    )
