"""Weights for generation: under bfloat16 arithmetic, float32 weights are cast once a phase, not at every token.

Autocast casts the weight of a linear layer each time that the layer runs. A training pass does so once; decoding, where a
pass is one token, would read every weight in float32, write it in bfloat16 and read it again for each token. A twin of
the model has the linear layers' weights in bfloat16 and shares everything else (embeddings, norms, buffers) with it. It
runs under the same autocast, so tokens and log-probs are bit for bit those of the model itself. It takes 2 bytes a weight of a
linear layer and lives as long as a phase of generation: the update has the memory, and no twin is ever older than the policy.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vantage.models.holding import sharded
from vantage.policy import Policy


@contextlib.contextmanager
def cast_once(policy: Policy) -> Iterator[None]:
    """Inside, `Policy.next_logits` runs on weights that are cast already; nothing changes where there is nothing to cast."""
    if policy.generator is not None or sharded(policy.model) or not cast_weights(policy.model, policy.compute):
        yield
        return
    policy.generator = make_twin(policy.model, policy.compute)
    try:
        yield
    finally:
        policy.generator = None


def cast_weights(model: nn.Module, compute: torch.dtype) -> list[Any]:
    """Weights and biases that autocast to `compute` would cast, each once; none where it is float32."""
    if compute == torch.float32:
        return []
    tensors = [t for layer in _linear_layers(model) for t in (layer.weight, layer.bias) if t is not None]
    return list({id(t): t for t in tensors if t.dtype == torch.float32}.values())


def cast_bytes(model: nn.Module, compute: torch.dtype) -> int:
    """What the twin takes beyond the model."""
    return sum(weight.numel() * compute.itemsize for weight in cast_weights(model, compute))


@torch.no_grad()
def make_twin(model: nn.Module, compute: torch.dtype) -> nn.Module:
    """A model that shares parameters and buffers with `model`, but for the weights of linear layers in `compute`.

    A weight that is a linear layer's and an embedding's too (a tied head) stays the embedding's and is copied for the layer.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, memo)
    copies = {id(w): nn.Parameter(w.detach().to(compute), requires_grad=False) for w in cast_weights(twin, compute)}
    for layer in _linear_layers(twin):
        for name in ("weight", "bias"):
            given = getattr(layer, name)
            if given is not None and id(given) in copies:
                setattr(layer, name, copies[id(given)])
    return twin


def _linear_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
