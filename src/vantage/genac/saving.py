"""What of a critic must survive a restart? Its weights and its optimizer, as one set of named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vantage.distributed.dealt import load_weights
from vantage.errors import UserError
from vantage.estimators.base import State

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHT, MOMENT = "critic.", "optimizer."


def packed(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, each once where several names share one, and the optimizer's moments and step counts."""
    from vantage.checkpoint import optimizer_state

    tied = _tied(model)
    weights = {WEIGHT + name: value for name, value in model.state_dict().items() if name not in tied}
    return weights | {MOMENT + name: value for name, value in optimizer_state(optimizer, model).tensors.items()}


def unpack(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `packed` gave; raises `UserError` where it does not fit."""
    from vantage.checkpoint import load_optimizer

    weights, moments = dict(_below(tensors, WEIGHT)), dict(_below(tensors, MOMENT))
    own = model.state_dict()
    wanted = own.keys() - _tied(model)
    if wanted != weights.keys() or any(own[name].shape != weights[name].shape for name in wanted):
        raise UserError(
            "--genac.critic: the checkpoint's critic has other weights; resume with the critic it began with"
        )
    load_weights(model, weights, strict=False)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    load_optimizer(optimizer, model, State(moments))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix))


def _tied(model: nn.Module) -> set[str]:
    network: Any = model
    return set(getattr(network, "all_tied_weights_keys", None) or {})
