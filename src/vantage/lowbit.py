"""AdamW with moments of 8 bits (Dettmers et al., arXiv 2110.02861), by torchao: 2 bytes a trained weight instead of 8.

A moment of at least 4,096 numbers is a table of codes with a scale for each 256 of them; smaller ones stay float32. In a
checkpoint codes and scales are tensors of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vantage.errors import UserError

PARTS = ("codes", "scale")


def adamw_8bit(groups: Iterable[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """The optimizer over parameter groups, its learning rate 0; raises `UserError` without torchao."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError("--optimizer adamw-8bit needs the package torchao: pip install 'vantage-rl[lowbit]'") from error
    made: torch.optim.Optimizer = AdamW8bit(list(groups), lr=0.0, betas=betas, weight_decay=0.0)
    return made


def taken_apart(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a parameter's optimizer state; a moment of codes becomes `NAME.codes` and `NAME.scale`."""
    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        if hasattr(value, "codes"):
            found |= {f"{name}.{part}": getattr(value, part) for part in PARTS}
        elif isinstance(value, Tensor):
            found[name] = value
    return found


@torch.no_grad()
def put_together(optimizer: torch.optim.Optimizer, state: dict[str, Any], parameter: Tensor) -> None:
    """Undo `taken_apart` in a parameter's optimizer state, in place; raises `KeyError` where other moments were saved."""
    make: Any = getattr(optimizer, "_new_buffer", None)
    if make is None:
        if any("." in name for name in state):
            raise KeyError("moments of 8 bits")
        return
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        moment = make(parameter, signed)
        if hasattr(moment, "codes"):
            for part in PARTS:
                getattr(moment, part).copy_(state.pop(f"{name}.{part}"))
        else:
            moment.copy_(state[name])
        state[name] = moment
