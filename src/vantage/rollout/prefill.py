"""How are contexts run before the first token is drawn? What several of them begin with is run once, where that saves enough.

A critic's prompts share their instructions, those of a problem's states the problem too, and a state's prompt begins with the
response so far, which a later state of the same response goes on with; the prefixes of one response that are continued are
nested as a whole. Three passes fill one cache: what all contexts begin with, as one row; the leaders, one for each stretch of
contexts that have much in common; and every context's own rest behind what it shares with its leader, whose keys and values
it gets a copy of, masked from there on. Positions are given, so where in the cache a token lies does not matter.

P contexts, D leaders, S columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vantage.policy import Policy

Ids = Sequence[int]
WORTHWHILE = 0.75
"""Contexts are shared where that takes at most this share of the tokens of running each alone, padding counted in both …"""
LEAST_SAVED = 1024
"""… and saves at least so many tokens: each pass has a price of its own."""
ALIKE = 0.5
"""Neighbours follow one leader where they have at least this share of the shorter one in common, behind what all begin with."""


@dataclass(frozen=True)
class Sharing:
    """What is run once: the first `head` tokens of all; then leaders; of each context `shared` tokens are its leader's."""

    head: int
    leaders: list[int]
    """Contexts that lead."""
    leader_of: list[int]
    """For each context the place of its leader among the leaders."""
    shared: list[int]
    """For each context how many of its tokens its leader has run; at least one token is left."""

    def passes(self, contexts: Sequence[Ids]) -> tuple[int, int, int]:
        """Tokens a row of the three passes, padding included."""
        leading = max(len(contexts[i]) - 1 for i in self.leaders) - self.head
        return self.head, leading, max(len(c) - s for c, s in zip(contexts, self.shared))

    def tokens(self, contexts: Sequence[Ids]) -> int:
        """Tokens of the three passes, padding included."""
        head, leading, rest = self.passes(contexts)
        return head + len(self.leaders) * leading + len(contexts) * rest


def sharing(contexts: Sequence[Ids]) -> Sharing | None:
    """Who may share what; None where it is not worth the passes."""
    width, count = max(map(len, contexts)), len(contexts)
    if count < 2 or width * count <= LEAST_SAVED:
        return None
    order = sorted(range(count), key=lambda i: tuple(contexts[i]))
    # The first and the last of sorted contexts differ as early as any two do.
    head = min(common(contexts[order[0]], contexts[order[-1]]), min(map(len, contexts)) - 1)
    found = Sharing(head, [], [0] * count, [0] * count)
    for cluster in _clusters(contexts, order, head):
        leader = max(cluster, key=lambda i: len(contexts[i]))
        for i in cluster:
            found.leader_of[i] = len(found.leaders)
            most = min(len(contexts[i]), len(contexts[leader])) - 1
            found.shared[i] = min(common(contexts[i], contexts[leader]), most)
        found.leaders.append(leader)
    if head == 0 and min(map(len, contexts)) == 1:
        return None  # a leader without tokens would look at nothing
    saved = width * count - found.tokens(contexts)
    return found if saved >= max(LEAST_SAVED, (1 - WORTHWHILE) * width * count) else None


def _clusters(contexts: Sequence[Ids], order: Sequence[int], head: int) -> list[list[int]]:
    """Stretches of the sorted contexts in which every one has much in common with the one before it, behind the head."""
    found = [[order[0]]]
    for before, here in pairwise(order):
        a, b = contexts[before], contexts[here]
        if common(a, b) - head >= ALIKE * (min(len(a), len(b)) - head):
            found[-1].append(here)
        else:
            found.append([here])
    return found


def common(one: Ids, other: Ids) -> int:
    """Tokens that two contexts have in common from the beginning, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def width_of(contexts: Sequence[Ids]) -> int:
    """Columns of a cache that keeps everything, behind `prefill`: what is shared and what is not lie one behind the other."""
    plan = sharing(contexts)
    return max(map(len, contexts)) if plan is None else sum(plan.passes(contexts))


def prefill(policy: Policy, contexts: Sequence[list[int]], cache: Any) -> tuple[Tensor, bool, Tensor]:
    """Run contexts into an empty cache: attention over it [P, S], whether there are places it must not look at, and the
    logits [P, V] behind each context."""
    plan = sharing(contexts) if _plain(cache) else None
    if plan is None:
        mask_PS = torch.zeros((len(contexts), 0), dtype=torch.long, device=policy.device)
        return _run(policy, contexts, [0] * len(contexts), mask_PS, cache)
    count, device = len(plan.leaders), policy.device
    mask_DS = torch.zeros((1, 0), dtype=torch.long, device=device)
    if plan.head:
        mask_DS, _, _ = _run(policy, [contexts[0][: plan.head]], [0], mask_DS, cache)
        cache.batch_repeat_interleave(count)
    mask_DS = mask_DS.expand(count, -1)
    leading = [contexts[i][plan.head : -1] for i in plan.leaders]
    if any(leading):
        mask_DS, _, _ = _run(policy, leading, [plan.head] * count, mask_DS, cache)
    leader_P = torch.tensor(plan.leader_of, device=device)
    cache.batch_select_indices(leader_P)
    mask_PS = mask_DS[leader_P]
    shared_P = torch.tensor(plan.shared, device=device)
    mask_PS = mask_PS * (mask_PS.cumsum(1) <= shared_P[:, None])  # nothing of the leader's behind what they share
    rest = [c[s:] for c, s in zip(contexts, plan.shared)]
    return _run(policy, rest, plan.shared, mask_PS, cache)


def _run(
    policy: Policy, rows: Sequence[Ids], start: Sequence[int], mask_PS: Tensor, cache: Any
) -> tuple[Tensor, bool, Tensor]:
    """Add rows, padded on the left, behind what the cache has; row i begins at position `start[i]`."""
    device, lengths = policy.device, [len(row) for row in rows]
    width = max(lengths)
    ids_PS = torch.tensor([[policy.pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    length_P, start_P = torch.tensor(lengths, device=device), torch.tensor(list(start), device=device)
    own_PS = (torch.arange(width, device=device)[None] >= width - length_P[:, None]).long()
    position_PS = start_P[:, None] + (own_PS.cumsum(1) - 1).clamp(min=0)
    mask_PS = torch.cat([mask_PS, own_PS], 1)
    padded = not bool(mask_PS.all())
    logits_PV = policy.next_logits(ids_PS, mask_PS if padded else None, position_PS, cache)
    return mask_PS, padded, logits_PV


def _plain(cache: Any) -> bool:
    """Whether every layer keeps all keys and values: a sliding window counts places in the cache, which have gaps here."""
    return all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", ()))
