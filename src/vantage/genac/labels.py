"""How likely is each label behind the same reasoning? Every context is run once; labels are a tree of tokens behind it.

P contexts, E endings (labels with their closing tag), N branches of the tree at a depth, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vantage.policy import Policy, log_softmax
from vantage.rollout.decoding import begin
from vantage.rollout.weights import cast_once

CACHED = 2**16
"""Tokens whose keys and values are held at once, those of a context counted once for each ending."""

Ids = Sequence[int]


@torch.no_grad()
def ending_logp(policy: Policy, contexts: Sequence[Ids], endings: Sequence[Ids], cached: int = CACHED) -> Tensor:
    """Log-probs [P, E], float64 on the CPU, of whole endings behind whole contexts, at the policy's temperature."""
    total_PE = torch.zeros((len(contexts), len(endings)), dtype=torch.float64)
    with cast_once(policy):
        for some in _parts([len(c) for c in contexts], cached // len(endings)):
            total_PE[some] = _walk(policy, [list(contexts[i]) for i in some], [tuple(e) for e in endings]).cpu()
    return total_PE


def _parts(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Contexts of similar length, of at most so many tokens with their padding; at least one of them."""
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if parts and (len(parts[-1]) + 1) * lengths[i] <= most:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def _walk(policy: Policy, contexts: list[list[int]], endings: Sequence[tuple[int, ...]]) -> Tensor:
    """Down the tree of the endings' tokens, a level a step, for all contexts at once."""
    count, device = len(contexts), policy.device
    decoding, logits_NV = begin(policy, contexts)
    total_PE = torch.zeros((count, len(endings)), dtype=torch.float64, device=device)
    nodes: list[tuple[int, ...]] = [()]
    for depth in range(max(map(len, endings))):
        logp_PNV = log_softmax(logits_NV, policy.temperature).view(count, len(nodes), -1)
        place = {node: i for i, node in enumerate(nodes)}
        for e, ending in enumerate(endings):
            if len(ending) > depth:
                total_PE[:, e] += logp_PNV[:, place[ending[:depth]], ending[depth]]
        nodes = list(dict.fromkeys(ending[: depth + 1] for ending in endings if len(ending) > depth + 1))
        if nodes:
            parents = torch.tensor([place[node[:-1]] for node in nodes], device=device)
            first_P1 = torch.arange(count, device=device)[:, None] * len(place)
            decoding.select((first_P1 + parents).reshape(-1))
            logits_NV = decoding.step(torch.tensor([node[-1] for node in nodes], device=device).repeat(count))
    return total_PE
