"""Which engine does a configuration mean? The one place that knows them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.policy import Policy
from vantage.rollout.engine import Engine
from vantage.rollout.options import VllmOptions
from vantage.rollout.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from vantage.config import TrainConfig


def make_engine(
    policy: Policy,
    end_ids: Sequence[int],
    config: TrainConfig,
    world: World | None = None,
    role: Literal["policy", "critic"] = "policy",
) -> Engine:
    """The engine that generates from a policy, or from GenAC's critic; raises `UserError` where it can not be had."""
    if config.engine == "transformers":
        return TransformersEngine(policy, end_ids, config.generation_batch, config.generation_cache)
    from vantage.rollout.vllm_engine import VllmEngine
    from vantage.rollout.vllm_local import LocalVllm
    from vantage.rollout.vllm_server import RemoteVllm

    options, world = VllmOptions.of(config), world or World()
    dtype = policy.compute if options.dtype == "auto" else getattr(torch, options.dtype)
    url = options.url if role == "policy" else options.critic_url
    if url is not None:
        remote = RemoteVllm(url, options.server_timeout, "--vllm.url" if role == "policy" else "--vllm.critic-url")
        return VllmEngine(policy, end_ids, remote, options, dtype, world, shared=world.size > 1)
    if options.tensor_parallel_size > 1 and world.size > 1:
        raise UserError(
            f"--vllm.tensor-parallel-size is {options.tensor_parallel_size}: with several processes each has a vLLM of its "
            "own on its own device; give 1, or --vllm.url"
        )
    local = LocalVllm(policy, options, dtype, config.generation_batch)
    return VllmEngine(policy, end_ids, local, options, dtype, world)
