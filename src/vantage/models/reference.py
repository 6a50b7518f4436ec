"""The reference: the frozen model that a KL divergence or VIMPO's implied value compares the policy with.

By default a copy of the policy as it was before training. A policy with adapters (LoRA) needs no copy: the reference is the
same model with its adapters switched off. `--reference-refresh N` makes the reference the current policy every N steps.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vantage.errors import UserError
from vantage.models.holding import ModelOptions, Precision
from vantage.models.loading import load_policy
from vantage.policy import Policy


class AdapterOff(Policy):
    """A policy's own model, run with its adapters switched off."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Adapters are off inside, and as they were afterwards."""
        switched = [layer for layer in _adapted(self.model) if not layer.disable_adapters]
        for layer in switched:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in switched:
                layer.enable_adapters(True)


def _adapted(model: nn.Module) -> list[Any]:
    """The layers of a model that carry an adapter of peft's."""
    return [m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "enable_adapters")]


def has_adapters(policy: Policy) -> bool:
    """Whether only adapters of the policy are trained."""
    return bool(_adapted(policy.model))


def make_reference(policy: Policy, name: str | None) -> Policy:
    """The frozen reference: model `name`, or the policy as it is now; raises `UserError` where vocabularies differ."""
    if name is None and has_adapters(policy):
        return AdapterOff(
            policy.model, policy.tokenizer, temperature=policy.temperature, chunk_tokens=policy.chunk_tokens,
            compute=policy.compute,
        )  # fmt: skip
    settings: dict[str, Any] = {"temperature": policy.temperature, "chunk_tokens": policy.chunk_tokens}
    if name is None:
        found = Policy(copy.deepcopy(policy.model), policy.tokenizer, compute=policy.compute, **settings)
    else:
        precision: Precision = "fp32" if policy.compute == torch.float32 else "bf16"
        waiting = policy.goes_to is not None
        found = load_policy(name, policy.device, options=ModelOptions(precision), dealt_out=waiting, **settings)
    if found.head.vocabulary != policy.head.vocabulary:
        raise UserError(
            f"--reference {name}: its vocabulary has {found.head.vocabulary} tokens, the policy's {policy.head.vocabulary}"
        )
    found.model.requires_grad_(False)
    found.goes_to = policy.goes_to
    return found


def reference_digest(reference: Policy) -> str:
    """A short name for the reference's weights."""
    return policy_digest(reference, frozen_only=isinstance(reference, AdapterOff))


def policy_digest(policy: Policy, frozen_only: bool = False) -> str:
    """A short name for the weights of a model that does not change, or for those of its weights that do not."""
    from vantage.logbook import weights_digest

    if policy.shards is not None:
        return policy.shards.frozen_digest if frozen_only else policy.shards.digest
    return weights_digest(policy.model, frozen_only=frozen_only)


def refresh(reference: Policy, policy: Policy) -> None:
    """Make the reference equal to the policy as it is now."""
    reference.model.load_state_dict(policy.model.state_dict())
