"""POISE's probe input: pooled hidden states of prompt and reasoning, and three entropies (arXiv 2605.07579 §3.2, Table 3).

M rollouts of a micro-batch, S positions (prompt and response, padded on the right), T response tokens, D hidden size.
Spans are found on token ids, never by decoding and tokenising again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


def last_tokens_mean(hidden_MSD: Tensor, end_M: Tensor, count_M: Tensor, window: int) -> Tensor:
    """Mean of the last min(window, count) states before position `end` [M, D], float32; zeros where count is 0.

    `end_M` [M] is the exclusive end of a span in the S axis and `count_M` [M] its length.
    """
    offsets = torch.arange(window, 0, -1, device=hidden_MSD.device)
    index_MW = (end_M[:, None] - offsets[None]).clamp(min=0)
    inside_MW = (offsets[None] <= count_M[:, None]).float()
    rows_M1 = torch.arange(len(end_M), device=hidden_MSD.device)[:, None]
    picked_MWD = hidden_MSD[rows_M1, index_MW].float()
    # masked_fill, not a product: a state outside of the window may be infinite.
    total_MD = picked_MWD.masked_fill(inside_MW[..., None] == 0, 0.0).sum(1)
    return total_MD / inside_MW.sum(1, keepdim=True).clamp(min=1)


def reasoning_length(response_ids: Sequence[int], think_end_ids: Sequence[int]) -> int | None:
    """Tokens up to and including the last closing thinking tag; None where there is no such tag."""
    size = len(think_end_ids)
    tag = list(think_end_ids)
    if size == 0 or tag[0] not in response_ids:
        return None
    for start in range(len(response_ids) - size, -1, -1):
        if response_ids[start] == tag[0] and list(response_ids[start : start + size]) == tag:
            return start + size
    return None


def entropy_statistics(
    entropy_MT: Tensor,
    responses: Sequence[Sequence[int]],
    think_end_ids: Sequence[int],
    end_ids: Collection[int],
) -> Tensor:
    """Mean token entropy in nats over the response, its reasoning and its answer [M, 3], float32.

    Reasoning is what comes before the last closing thinking tag (the whole response if there is none), the answer what
    comes after it without the end token. An empty span has 0; so have values that are not finite.
    """
    clean_MT = torch.nan_to_num(entropy_MT.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    sums_MT = torch.nn.functional.pad(clean_MT.double().cumsum(1), (1, 0)).cpu()
    begin, end = [], []
    for ids in responses:
        kept = reasoning_length(ids, think_end_ids)
        finish = len(ids) - (1 if ids and ids[-1] in end_ids else 0)
        thought = len(ids) if kept is None else kept - len(think_end_ids)
        answer = len(ids) if kept is None else kept
        begin.append((0, 0, answer))
        end.append((len(ids), thought, max(answer, finish)))
    begin_M3, end_M3 = torch.tensor(begin).reshape(-1, 3), torch.tensor(end).reshape(-1, 3)
    total_M3 = sums_MT.gather(1, end_M3) - sums_MT.gather(1, begin_M3)
    return (total_M3 / (end_M3 - begin_M3).clamp(min=1)).float()
