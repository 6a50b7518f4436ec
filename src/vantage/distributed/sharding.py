"""Who holds which part of a model? With FSDP2 every process holds 1/N of parameters, gradients and optimizer state.

`torch.distributed.fsdp.fully_shard` deals out each decoder block, and with the whole model what is outside of the blocks. A
block is put together while it runs and dealt out again behind it; the root (embeddings, norm, head) stays together from the
forward pass to the end of the backward pass, because the head works in chunks behind the trunk.

Putting together is a collective operation. So passes with a gradient must be equally many on all processes (`Shards.in_step`
fills up with empty ones), and what has no gradient (rollouts, pre-passes, values) runs inside of `Shards.gathered`, where the
model is whole and any number of passes may be made. Gradients are added up, not averaged: losses are local sums over the
denominators of the whole step already.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vantage.batch import idle_batch
from vantage.distributed.dealt import is_dealt
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.logbook import weights_digest
from vantage.models.heads import find_blocks
from vantage.models.reference import AdapterOff
from vantage.plugins import one_line

if TYPE_CHECKING:
    from vantage.config import TrainConfig
    from vantage.critics.model import ValueModel
    from vantage.policy import Policy


def check_optimizer(config: TrainConfig) -> None:
    """Raise `UserError` for an optimizer whose moments can not be dealt out."""
    if config.optimizer != "adamw":
        raise UserError(f"--optimizer {config.optimizer}: its moments can not be dealt out; give adamw")


class Sharding:
    """How the models of a run are dealt out. Every process deals out the same models in the same order."""

    def __init__(self, world: World, device: torch.device, reshard: bool = True) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.world, self.device, self.reshard = world, device, reshard
        self.mesh = init_device_mesh(device.type, (world.size,))

    @staticmethod
    def of(config: TrainConfig, world: World, device: torch.device) -> Sharding | None:
        """What --sharding or `accelerate launch --use_fsdp` says; None where every process holds whole models.

        Raises `UserError` for what can not be done.
        """
        launcher = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
        if config.sharding == "none" or (config.sharding == "auto" and not launcher):
            return None
        asked = "--sharding fsdp2" if config.sharding == "fsdp2" else "accelerate launch --use_fsdp"
        if world.size == 1:
            raise UserError(
                f"{asked}: there is one process, which must hold everything; start several (accelerate launch "
                "--num_processes N, torchrun --nproc-per-node N), or give --sharding none"
            )
        check_optimizer(config)
        return Sharding(world, device, _reshard(config.sharding, launcher))

    def policy(self, policy: Policy, what: str, trained: bool) -> None:
        """Deal out a policy or a reference in place."""
        root = policy.head.model
        digests = weights_digest(policy.model), weights_digest(policy.model, frozen_only=True)
        if len(set(self.world.exchange(digests[0]))) > 1:
            raise UserError(f"{what}: the processes have read different weights; give all of them the same files")
        empty = hollow(policy.model) if trained and self.world.main else None
        self._deal_out(root, policy.head.blocks, policy.compute, {p for p in root.parameters() if p.ndim == 0})
        policy.shards = Shards(policy.model, root, self, empty, digests)
        if (trunk := policy.head.trunk) is not None:
            policy.head = replace(policy.head, enter=through_root(root, trunk))
        self._first_pass(policy.shards, what, lambda: policy.head.run(torch.zeros((1, 1), dtype=torch.long)))

    def reference(self, reference: Policy, policy: Policy, what: str) -> None:
        """Deal out a reference; one that is the policy without its adapters is so already."""
        if isinstance(reference, AdapterOff):
            reference.shards, reference.head = policy.shards, policy.head
        else:
            self.policy(reference, what, trained=False)

    def critic(self, model: ValueModel, what: str) -> Shards:
        """Deal out the trunk of a value model; its head, a vector, is on every process."""
        try:
            blocks = find_blocks(model.trunk)
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{what}: the blocks of this critic are not found, so --sharding fsdp2 can not deal it out; give "
                "--ppo.critic copy or head, or --sharding none"
            ) from error
        digest = weights_digest(model)
        if len(set(self.world.exchange(digest))) > 1:
            raise UserError(f"{what}: the processes have read different weights; give all of them the same files")
        empty = hollow(model) if self.world.main else None
        model.head.to(self.device)
        scalars = {p for p in model.trunk.parameters() if p.ndim == 0}
        self._deal_out(model, blocks, model.compute, {*model.head.parameters(), *scalars})
        shards = Shards(model, model, self, empty, (digest, ""))
        self._first_pass(shards, what, lambda: model(idle_batch(model.pad_id)))
        return shards

    def _deal_out(self, root: nn.Module, blocks: nn.ModuleList, compute: torch.dtype, kept: set[nn.Parameter]) -> None:
        """`kept` stays on every process. Blocks are gathered in the type of the arithmetic, as autocast would have them.

        Inputs are not cast and the root keeps its type, so the residual stream has the precision that it has elsewhere.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        for parameter in kept:
            parameter.data = parameter.data.to(self.device)
        sums = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        half = None if compute == torch.float32 else compute
        rules: dict[str, Any] = {"mesh": self.mesh, "ignored_params": kept}
        for block in blocks:
            fully_shard(block, reshard_after_forward=self.reshard, mp_policy=replace(sums, param_dtype=half), **rules)
        fully_shard(root, reshard_after_forward=False, mp_policy=sums, **rules)
        for module in sharded_modules(root):
            module.set_force_sum_reduction_for_comms(True)  # gloo can neither average nor multiply
            module.set_gradient_divide_factor(1.0)
            if hasattr(module, "set_reduce_scatter_unused_params"):  # an expert that no token of this process has met
                module.set_reduce_scatter_unused_params(True, recurse=False)

    def _first_pass(self, shards: Shards, what: str, run: Callable[[], Any]) -> None:
        """The first pass tells torch which module is the root, and finds out what it can not deal out."""
        try:
            with torch.no_grad():
                run()
        except ValueError as error:
            raise UserError(f"{what}: --sharding fsdp2 can not deal out this model ({one_line(error)})") from error
        shards.root.reshard()


class Shards:
    """A model that is dealt out: this process's handle to it."""

    def __init__(
        self, module: nn.Module, root: Any, sharding: Sharding, empty: nn.Module | None, digests: tuple[str, str]
    ) -> None:
        self.module, self.root, self.sharding, self.world = module, root, sharding, sharding.world
        self.modules = sharded_modules(root)
        self.empty = empty
        """On the main process: the model without its numbers, as it was before."""
        self.digest, self.frozen_digest = digests
        """Names of the weights before training: of all, and of those that are not trained."""
        self.depth = 0

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, this process has the whole model. Every process must enter and leave; no gradient may be taken."""
        if self.depth == 0:
            for module in self.modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                for module in self.modules:
                    module.reshard()
                    module.set_reshard_after_forward(self.sharding.reshard and module is not self.root, recurse=False)

    def in_step(self, parts: Sequence[list[int]]) -> list[list[int]]:
        """Micro-batches, with empty ones behind them to make them as many as on the process that has most."""
        most = int(self.world.largest(len(parts)))
        return [*parts, *([] for _ in range(most - len(parts)))]

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module | None]:
        """The main process gets a copy of the whole model on the CPU, for as long as it is inside; the others get None.

        Every process must enter. The copy is for saving: buffers that are not saved are not filled.
        """
        found: dict[str, Tensor] = {}
        for name, value in self.module.state_dict().items():
            full = value.full_tensor() if is_dealt(value) else value
            if self.world.main:
                found[name] = full.detach().cpu()
        yield None if self.empty is None else _filled(self.empty, found)


def _reshard(chosen: str, launcher: bool) -> bool:
    """What accelerate's launcher says about blocks behind their forward pass; `UserError` for what Vantage does not do."""
    if not launcher:
        return True
    if chosen == "auto" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate launch --use_fsdp: this is FSDP 1; add --fsdp_version 2")
    for name, instead in (
        ("OFFLOAD_PARAMS", "more processes"),
        ("ACTIVATION_CHECKPOINTING", "--gradient-checkpointing"),
    ):
        if os.environ.get(f"FSDP_{name}", "").lower() == "true":
            raise UserError(f"accelerate launch --fsdp_{name.lower()} true: not supported; use {instead} instead")
    return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


def sharded_modules(root: nn.Module) -> list[Any]:
    """The modules whose parameters are put together at once: the root, then the blocks."""
    from torch.distributed.fsdp import FSDPModule

    return [m for m in root.modules() if isinstance(m, FSDPModule)]


def through_root(root: nn.Module, trunk: nn.Module) -> Callable[..., Any]:
    """Runs the trunk as if it were the root's forward pass, so that the root's parameters are put together for it."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    def run_trunk(*arguments: Any, **keywords: Any) -> Any:
        return trunk(*arguments, **keywords)

    owner: Any = root
    owner.run_trunk = run_trunk
    register_fsdp_forward_method(root, "run_trunk")
    found: Callable[..., Any] = owner.run_trunk
    return found


def hollow(model: nn.Module) -> nn.Module:
    """A copy of a model without its numbers (on torch's meta device), parameters that are shared still shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _filled(empty: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(empty)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            module.tie_weights()  # type: ignore[operator]
    return model
