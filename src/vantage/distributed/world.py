"""Several processes: which one am I, and how do they agree on a number, a list, a gradient?

`torchrun` and `accelerate launch` start one process for each device and say so in the environment (RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT). The prompts of a step are dealt out, all rollouts of a prompt to one process; every other
number is the same on all of them. In a world of one process all of this is the identity and nothing is initialised.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from vantage.errors import UserError
from vantage.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
BUCKET_ELEMENTS = 2**25
"""Gradient entries that are summed in one message."""


class ProcessLost(Exception):  # noqa: N818 (named for what happened)
    """Another process of the run is gone or broken; `str()` says which of them noticed."""


class World:
    """One process among `size`; `rank` 0 is the main one, which writes. This class itself is a world of one."""

    rank = 0
    size = 1

    @property
    def main(self) -> bool:
        """Whether this process logs, saves and prints."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks; each gives one and gets all."""
        return [value]

    def sum(self, value: Tensor) -> Tensor:
        """Elementwise sum over processes, as a new tensor on the CPU."""
        return value.detach().cpu().clone()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes."""

    def from_main(self, value: T) -> T:
        """The main process's value."""
        return self.exchange(value)[0]

    def largest(self, value: float) -> float:
        """Maximum over processes."""
        return max(self.exchange(value))

    def wait(self) -> None:
        """Go on once every process has come here."""
        self.exchange(None)

    def share(self, count: int) -> range:
        """Which of `count` items are this process's: every `size`-th, so that all have alike work."""
        return range(self.rank, count, self.size)

    def together(self, mine: Iterable[T]) -> list[T]:
        """Undo `share`: the items of all processes in their order, from each one's own."""
        parts = self.exchange(list(mine))
        whole: list[Any] = [None] * sum(len(part) for part in parts)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole


class ProcessGroup(World):
    """Processes that torch.distributed connects: gloo between CPUs, NCCL between CUDA devices."""

    def __init__(self) -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def exchange(self, value: T) -> list[T]:
        """See `World`."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        self._attempt(lambda: dist.all_gather_object(found, value))
        return found

    def sum(self, value: Tensor) -> Tensor:
        """See `World`."""
        total = super().sum(value)
        self._all_reduce(total)
        return total

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """See `World`; in buckets, so that small tensors share a message."""
        for bucket in buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket])):
                tensor.copy_(part.view_as(tensor))

    def _all_reduce(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        self._attempt(lambda: dist.all_reduce(tensor))

    def _attempt(self, collective: Any) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise ProcessLost(f"process {self.rank} of {self.size} lost the connection to another one") from error


def buckets(tensors: Sequence[Tensor], elements: int = BUCKET_ELEMENTS) -> list[list[Tensor]]:
    """Consecutive tensors of the same type and device, as many as have `elements` entries together."""
    found: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        alike = found and (found[-1][0].dtype, found[-1][0].device) == (tensor.dtype, tensor.device)
        if not alike or size + tensor.numel() > elements:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.numel()
    return found


def lost_in_between(error: RuntimeError) -> bool:
    """Whether a collective operation of torch's own (of a model that is dealt out) has failed."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave(status: int) -> None:
    """End a process that was connected to others, with an exit status; one that never was goes on.

    At once, since threads of gloo that outlive the interpreter abort the process now and then (torch 2.13).
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def launched_rank() -> int:
    """This process's rank as its launcher says; 0 for a process that was started alone. Connects nothing."""
    return int(os.environ.get("RANK", "0"))


def join_world() -> World:
    """The world that the launcher describes in the environment, else a world of one. Raises `UserError`."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, the launcher must set a whole number") from error
    if size <= 1:
        return World()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size}, but {missing[0]} is not set: start with `accelerate launch -m vantage train` or torchrun"
        )
    # Under `accelerate launch --use_fsdp` transformers would read weights on one process of a machine only.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return ProcessGroup()


def local_device(wanted: torch.device) -> torch.device:
    """The CUDA device of this process among those of its machine; any other device as it is."""
    if wanted.type != "cuda":
        return wanted
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
