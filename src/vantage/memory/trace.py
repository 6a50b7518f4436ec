"""How many bytes does a computation hold at its peak? It is run on the meta device, where tensors have shapes but no data.

`peak_of` counts the storages that live at the same time, as an allocator would have to provide them, for a forward and
backward pass of any model: nothing is estimated by a formula that another architecture would not obey. Attention by a
fused kernel (what `scaled_dot_product_attention` is on CPUs and GPUs) has no meta version that keeps what the real one
keeps, so it is replaced by one that does: inputs, output and one float32 log-sum a query.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

QUESTIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
"""What asks for a value, which no meta tensor has. Models do so to find out whether inputs are plain; these are."""


PRODUCTS = frozenset({
    torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.addmm,
    torch.baddbmm, torch.mm, Tensor.matmul, Tensor.__matmul__,
})  # fmt: skip
"""What autocast casts the inputs of, as far as decoders use it."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, counts the bytes of storages that operations make; `peak` is the most that lived at once."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` are tensors that were there before (weights, gradients): they and views of them are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and note what it made."""
        if func in QUESTIONS:
            return True
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        weakref.finalize(storage, self._gone, size)
        self.current += size
        self.peak = max(self.peak, self.current)

    def _gone(self, size: int) -> None:
        self.current -= size


class _Fused(torch.autograd.Function):
    """Attention by a fused kernel, as far as memory goes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        logsum = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, logsum)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Casting:
    """Autocast for the meta device, which torch has none for: inputs of matrix products are cast, weights once a session."""

    def __init__(self, kind: torch.dtype) -> None:
        self.kind, self.depth = kind, 0
        self._weights: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """As `torch.autocast`: active inside, and what was cast is forgotten at the outermost end."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self._weights.clear()

    def __call__(self, value: Any) -> Any:
        """A float32 tensor in the other type; anything else as it is."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.kind)
        if id(value) not in self._weights:
            self._weights[id(value)] = value.to(self.kind)
        return self._weights[id(value)]


class FusedAttention(TorchFunctionMode):
    """Replaces `scaled_dot_product_attention` by what its fused kernels need, and casts as autocast does."""

    def __init__(self, casting: Casting | None = None) -> None:
        super().__init__()
        self.casting = casting

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the call, or its replacement."""
        kwargs = dict(kwargs or {})
        if self.casting is not None and self.casting.depth and func in PRODUCTS:
            args, kwargs = tuple(map(self.casting, args)), {k: self.casting(v) for k, v in kwargs.items()}
        if func is torch.nn.functional.scaled_dot_product_attention:
            names = ("query", "key", "value")
            tensors = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
            return _Fused.apply(*tensors)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


def peak_of(work: Callable[[], Any], known: Iterable[Tensor] = (), casting: Casting | None = None) -> int:
    """Bytes that `work`, a computation on the meta device, holds at its peak beyond the tensors `known`."""
    ledger = Ledger(known)
    with FusedAttention(casting), ledger:
        made = work()
        del made
    return ledger.peak
