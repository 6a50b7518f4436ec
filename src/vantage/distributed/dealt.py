"""Tensors of which every process holds some rows (torch's DTensor, as FSDP2 makes them), beside tensors that all have.

A tensor of R rows is cut along its first axis as `torch.chunk` cuts it into N pieces: process r has piece r, or no row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_dealt(tensor: Any) -> bool:
    """Whether this process holds only a part."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds, sharing its memory."""
    held: Any = tensor
    found: Tensor = held.to_local() if is_dealt(tensor) else tensor
    return found


def rows_of(whole: Tensor, rank: int, size: int) -> Tensor:
    """The rows of a whole tensor that process `rank` of `size` holds."""
    pieces = torch.chunk(whole, size)
    return pieces[rank] if rank < len(pieces) else whole[:0]


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor held as `like` is: this process's rows on its device, where `like` is dealt out. No communication."""
    if not is_dealt(like):
        return whole
    from torch.distributed.tensor import DTensor

    held: Any = like
    mesh = held.device_mesh
    rows = rows_of(whole, mesh.get_local_rank(), mesh.size()).to(local(like).device, copy=True)
    found: Tensor = DTensor.from_local(
        rows, mesh, held.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return found


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> tuple[list[str], list[str]]:
    """`load_state_dict` with whole tensors, whether or not the module's are dealt out; names that are missing, unexpected."""
    own = module.state_dict()
    fitting = {n: placed(w, own[n]) if n in own and own[n].shape == w.shape else w for n, w in weights.items()}
    missing, unexpected = module.load_state_dict(fitting, strict=strict)
    return list(missing), list(unexpected)


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of all gradients, parts of other processes included; all must call it where some are dealt out."""
    gradients = list(gradients)
    dealt = [g for g in gradients if is_dealt(g)]
    if not dealt:
        return torch.nn.utils.get_total_norm(gradients)
    import torch.distributed as dist

    held: Any = dealt[0]
    square = torch.nn.utils.get_total_norm([local(g) for g in dealt]).double() ** 2
    dist.all_reduce(square, group=held.device_mesh.get_group())
    plain = [g for g in gradients if not is_dealt(g)]
    if plain:
        square += torch.nn.utils.get_total_norm(plain).double() ** 2
    return square.sqrt().float()


def scale_down(gradients: Iterable[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients of the given total norm to `max_norm`, if they are longer."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor.to(gradient.device))
