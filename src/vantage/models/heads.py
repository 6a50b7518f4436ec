"""How a model turns hidden states into logits: recognised once, checked once, then applied to chunks of tokens.

Most causal language models are `logits = lm_head(last hidden state)`; some scale (Cohere, Granite) or soft-cap (Gemma)
what the head gives. What is recognised is compared with the model's own logits on a few tokens; where that fails, the
model's whole forward is used and the logits of all positions exist.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """A trunk and the map from its last states to logits."""

    model: nn.Module
    trunk: nn.Module | None
    """None: the trunk can not be separated from the head."""
    transform: Callable[[Tensor], Tensor]
    vocabulary: int
    blocks: nn.ModuleList
    enter: Callable[..., Any] | None = None
    """What runs the trunk, where that is not the trunk itself; see `vantage.distributed.sharding`."""

    @functools.cached_property
    def cache_argument(self) -> str:
        """What the model calls the cache that it is given; newer releases of transformers have another name."""
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    def run(self, ids_MS: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Last hidden states [M, S, D] (after the final norm), or, for an inseparable head, the logits [M, S, V]."""
        if self.trunk is None:
            return None, self.model(input_ids=ids_MS, use_cache=False).logits
        return (self.enter or self.trunk)(input_ids=ids_MS, use_cache=False).last_hidden_state, None

    def logits(self, states_ND: Tensor) -> Tensor:
        """Logits [N, V] of last hidden states, every scaling of the model applied."""
        projection: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        return self.transform(projection(states_ND))


def find_head(model: nn.Module) -> Head:
    """Recognise a model's head, under a wrapper of peft's too; raises `ValueError` for a model without decoder blocks."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    blocks = find_blocks(model)
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(config.vocab_size)
    trunk = getattr(model, getattr(model, "base_model_prefix", ""), None)
    projection = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if isinstance(trunk, nn.Module) and trunk is not model and projection is not None:
        for transform in _transforms(config):
            head = Head(model, trunk, transform, vocabulary, blocks)
            if _agrees(head):
                return head
    return Head(model, None, _same, vocabulary, blocks)


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of decoder blocks: the first list of modules as long as the configuration says there are layers."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    wanted = int(config.num_hidden_layers)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise ValueError(f"{type(model).__name__}: no list of {wanted} decoder blocks found")


def _same(logits: Tensor) -> Tensor:
    return logits


def _transforms(config: Any) -> list[Callable[[Tensor], Tensor]]:
    """What might follow the projection, the plain case first; whichever matches the model is taken."""
    found: list[Callable[[Tensor], Tensor]] = [_same]
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        found.append(lambda z: torch.tanh(z / cap) * cap)
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        found.append(lambda z: z / divisor)
    for name in ("logit_scale", "lm_head_multiplier"):
        factor = getattr(config, name, None)
        if factor:
            found.append(functools.partial(torch.mul, factor))
    return found


@torch.no_grad()
def _agrees(head: Head) -> bool:
    """Whether trunk, projection and transform give the model's own logits on a few tokens."""
    was_training = head.model.training
    head.model.eval()
    try:
        device = next(head.model.parameters()).device
        ids = torch.arange(1, 9, device=device).remainder(head.vocabulary)[None]
        states, _ = head.run(ids)
        if states is None:
            return False
        ours, theirs = head.logits(states[0]).float(), head.model(input_ids=ids, use_cache=False).logits[0].float()
        return bool(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())))
    finally:
        head.model.train(was_training)
