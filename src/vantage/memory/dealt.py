"""What does a model take that is dealt out over N processes (FSDP2)? Its share, and what is put together while it runs.

`share_bytes` and `whole_bytes` are sums over parameters. What is put together around a block in a forward and backward pass is
no formula: `PutTogether` makes a trace (`vantage.memory.trace`) hold what torch's `fully_shard` holds then:

    forward   the root (all that is in no block) whole from here to the end of the backward pass; a block whole while it runs,
              beside the buffer that it came through, which is kept until the next block has come
    backward  the block whole again, and the buffer of the one before it; its gradients whole, then once more in float32 for
              the sum over processes, which is kept until the next block's

On a CPU gloo works in a copy of each buffer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vantage.memory.estimates import FLOAT32


def share(parameter: Tensor, processes: int) -> int:
    """Numbers of a parameter that a process holds: rows are dealt out, padded to the same for all; scalars are on each."""
    if parameter.dim() == 0:
        return parameter.numel()
    rows = parameter.shape[0]
    return math.ceil(rows / processes) * (parameter.numel() // max(rows, 1))


def whole_bytes(parameters: Iterable[Tensor], processes: int) -> int:
    """Parameters put together in the type that they have here, padding included."""
    return sum(processes * share(p, processes) * p.element_size() for p in parameters if p.dim())


class PutTogether:
    """Hooks on a model of shapes: its root and blocks are put together, and gradients summed, as `fully_shard` does it.

    Blocks must have the type that they are put together in. Gradients must not be there before.
    """

    def __init__(self, root: nn.Module, blocks: nn.ModuleList, processes: int, on_cpu: bool) -> None:
        self.processes, self.copies = processes, on_cpu
        inside = {id(p) for block in blocks for p in block.parameters()}
        self.root = [p for p in root.parameters() if id(p) not in inside]
        self.blocks = list(blocks)
        self.held: dict[Any, Tensor | None] = {}
        """What lives, by what it is for."""

    @contextlib.contextmanager
    def active(self, beside: bool = False) -> Iterator[None]:
        """One forward pass and one backward pass may be run inside; `beside`: a reference runs too, whose root stays whole."""
        handles: list[Any] = []
        for i, block in enumerate(self.blocks):
            handles += [
                block.register_forward_pre_hook(partial(self._enter, i)),
                block.register_forward_hook(partial(self._leave, i)),
            ]
            waiting: set[int] = set()
            for p in block.parameters():
                if p.requires_grad:
                    handles.append(p.register_post_accumulate_grad_hook(partial(self._arrived, i, waiting)))  # type: ignore[no-untyped-call]
        if beside:
            self.held["beside"] = _empty(whole_bytes(self.root, self.processes))
        self._gather("root", self.root)
        try:
            yield
            self.held.pop("root", None)
            self._sum(self.root)
        finally:
            for handle in handles:
                handle.remove()
            self.held.clear()

    def _gather(self, unit: Any, parameters: Iterable[Tensor], keep: bool = True) -> None:
        size = whole_bytes(parameters, self.processes)
        coming = self.held.pop("coming", None)
        buffer = coming if coming is not None and coming.numel() == size else self._buffer(size)
        self.held["buffer"] = None
        self.held[unit] = _empty(size)
        self.held["buffer"] = buffer if keep else None

    def _buffer(self, size: int) -> Tensor:
        found = _empty(size)
        if self.copies:
            _empty(size)
        return found

    def _enter(self, i: int, *_: Any) -> None:
        self._gather(i, self.blocks[i].parameters())

    def _leave(self, i: int, block: nn.Module, inputs: Any, output: Any) -> None:
        self.held.pop(i, None)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        if states.requires_grad:
            states.register_hook(partial(self._back, i))  # type: ignore[no-untyped-call]

    def _back(self, i: int, _: Tensor) -> None:
        """The gradient has come to a block."""
        if i + 1 in self.held:  # not all of its parameters were used
            self._done(i + 1)
        self._gather(i, self.blocks[i].parameters(), keep=False)
        if i > 0:
            self.held["coming"] = self._buffer(whole_bytes(self.blocks[i - 1].parameters(), self.processes))

    def _arrived(self, i: int, waiting: set[int], parameter: Tensor) -> None:
        waiting.add(id(parameter))
        if len(waiting) == sum(p.requires_grad for p in self.blocks[i].parameters()):
            waiting.clear()
            self._done(i)

    def _done(self, i: int) -> None:
        self.held.pop(i, None)
        self._sum(list(self.blocks[i].parameters()))

    def _sum(self, parameters: Iterable[Tensor]) -> None:
        """Gradients go into a buffer, and from there summed into each process's part (which is counted elsewhere)."""
        self.held["sum"] = None
        gone = [p for p in parameters if p.grad is not None]
        size = sum(self.processes * share(p, self.processes) * FLOAT32 for p in gone if p.dim())
        self.held["sum"] = _empty(size)
        for p in gone:
            p.grad = None
        if self.copies:
            _empty(size)


def _empty(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")
