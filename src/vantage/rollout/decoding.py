"""The model's side of decoding: a batch of branches with their keys and values, one more token at a time.

`GrowingCache` lets transformers' cache grow with every token, which any model can do. `vantage.rollout.slots` has the other
kind, whose memory is taken once. N branches, P prompts, S positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from vantage.policy import Policy
from vantage.rollout.prefill import prefill


class Decoding(Protocol):
    """Branches behind their prompts."""

    def select(self, parent_M: Tensor) -> None:
        """Branch i becomes a copy of what branch `parent_M[i]` is; from then on there are M branches."""
        ...

    def step(self, token_N: Tensor) -> Tensor:
        """Put a token behind each branch; logits [N, V] of the token after it, which hold until the next call."""
        ...


class CastCache(DynamicCache):  # type: ignore[misc]
    """Keeps keys and values in the type of the arithmetic.

    Autocast leaves some of them in float32 (keys behind a norm) and casts all of them again at each token's attention: the
    same numbers, at twice the memory.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(config=policy.text_config)
        self.kind = None if policy.compute == torch.float32 else policy.compute

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the states of some tokens to a layer; returns all of them."""
        if self.kind is not None:
            key_states, value_states = key_states.to(self.kind), value_states.to(self.kind)
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found


class GrowingCache:
    """A cache that is as long as what has been decoded."""

    def __init__(self, policy: Policy, cache: Any, mask_NS: Tensor, position_N: Tensor, padded: bool) -> None:
        """`mask_NS` is the attention over the cache, 0 at padding and at what a context does not share; `position_N` is that
        of the last token."""
        self.policy, self.cache, self.padded = policy, cache, padded
        self.mask_NS, self.position_N = mask_NS, position_N

    def select(self, parent_M: Tensor) -> None:
        """See `Decoding`."""
        self.position_N, self.mask_NS = self.position_N[parent_M], self.mask_NS[parent_M]
        self.cache.batch_select_indices(parent_M)

    def step(self, token_N: Tensor) -> Tensor:
        """See `Decoding`."""
        self.position_N = self.position_N + 1
        self.mask_NS = torch.nn.functional.pad(self.mask_NS, (0, 1), value=1)
        mask = self.mask_NS if self.padded else None
        return self.policy.next_logits(token_N[:, None], mask, self.position_N[:, None], self.cache)


def begin(policy: Policy, contexts: list[list[int]]) -> tuple[GrowingCache, Tensor]:
    """Run P contexts; the cache, and the logits [P, V] behind them."""
    cache = CastCache(policy)
    mask_PS, padded, logits_PV = prefill(policy, contexts, cache)
    position_P = torch.tensor([len(c) - 1 for c in contexts], device=policy.device)
    return GrowingCache(policy, cache, mask_PS, position_P, padded), logits_PV
