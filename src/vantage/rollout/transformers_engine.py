"""The default engine: batched decoding with transformers, on the policy's own weights.

A prompt is prefilled once for all its rollouts; its key-value cache is then repeated. Rows that have ended leave the
batch as soon as enough of them have, so that a long response does not keep the short ones computing. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from vantage.policy import Policy
from vantage.randomness import uniforms
from vantage.rollout.engine import Request, Rollout, Sampling
from vantage.rollout.sampling import sample

COMPACT_BELOW = 0.85
"""Ended rows are dropped when less than this share of the batch is still running."""
DRAWS = 32
"""Uniform numbers are drawn for this many tokens at a time."""


@dataclass
class _Active:
    """Rows still decoding: which rollout each is, its position, and what the model needs for the next token."""

    row_R: Tensor
    token_R: Tensor
    position_R: Tensor
    mask_RS: Tensor
    """Attention over the cache, 0 at the left padding of prompts."""
    running_R: Tensor
    cache: Any
    padded: bool


@dataclass
class _Output:
    ids: list[list[int]] = field(default_factory=list)
    logp: list[list[float]] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


class TransformersEngine:
    """Decodes `generation_batch` rollouts side by side; see the module."""

    def __init__(self, policy: Policy, end_ids: Sequence[int], generation_batch: int = 512) -> None:
        self.policy, self.generation_batch = policy, generation_batch
        self.end_ids = tuple(end_ids)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """See `Engine`. Requests of similar prompt length are decoded together; the result is in the given order."""
        results: list[list[Rollout]] = [[] for _ in requests]
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        start = 0
        while start < len(order):
            chosen, rows = [order[start]], len(requests[order[start]].keys)
            while start + len(chosen) < len(order):
                following = order[start + len(chosen)]
                if rows + len(requests[following].keys) > self.generation_batch:
                    break
                chosen.append(following)
                rows += len(requests[following].keys)
            start += len(chosen)
            for i, rollouts in zip(chosen, self._decode([requests[i] for i in chosen], sampling)):
                results[i] = rollouts
        return results

    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        counts = [len(r.keys) for r in requests]
        keys_R = np.array([k for r in requests for k in r.keys], dtype=np.uint64)
        total = len(keys_R)
        out = _Output([[] for _ in range(total)], [[] for _ in range(total)], [False] * total)
        active, logits_RV = self._prefill(requests, counts)
        draws = uniforms(keys_R, 0, DRAWS)
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        for t in range(sampling.max_new_tokens):
            if t and t % DRAWS == 0:
                draws = uniforms(keys_R, t, DRAWS)
            uniform_R = torch.from_numpy(draws[:, t % DRAWS])[active.row_R.cpu()]
            token_R, logp_R = sample(logits_RV, uniform_R, sampling.temperature, sampling.top_p, sampling.top_k)
            steps.append((active.row_R[active.running_R], token_R[active.running_R], logp_R[active.running_R]))
            active.token_R = token_R
            ended_R = self._ended(active, out, steps, sampling)
            active.running_R = active.running_R & ~ended_R
            running = int(active.running_R.sum())
            if running == 0 or t + 1 == sampling.max_new_tokens:
                break
            if running < COMPACT_BELOW * len(active.row_R):
                active = _compact(active)
            logits_RV = self._next_logits(active)
        _collect(out, steps)
        rollouts = [
            Rollout(ids, logp, "stop" if stopped else "length")
            for ids, logp, stopped in zip(out.ids, out.logp, out.stopped)
        ]
        bounds = np.cumsum([0, *counts])
        return [rollouts[a:b] for a, b in pairwise(bounds)]

    def _prefill(self, requests: Sequence[Request], counts: Sequence[int]) -> tuple[_Active, Tensor]:
        """Run every prompt once, then repeat cache and logits for its rollouts."""
        device = self.policy.device
        lengths = [len(r.prompt_ids) for r in requests]
        width = max(lengths)
        fill = self.policy.pad_id
        ids = torch.tensor([[fill] * (width - n) + r.prompt_ids for n, r in zip(lengths, requests)], device=device)
        length_P = torch.tensor(lengths, device=device)
        padded = min(lengths) < width
        mask_PS = (torch.arange(width, device=device)[None] >= width - length_P[:, None]).long()
        position_PS = (mask_PS.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.policy.text_config)
        logits_PV = self.policy.next_logits(ids, mask_PS if padded else None, position_PS, cache)
        repeat_R = torch.repeat_interleave(
            torch.arange(len(requests), device=device), torch.tensor(counts, device=device)
        )
        if max(counts) > 1:
            cache.batch_select_indices(repeat_R)
        rows = len(repeat_R)
        active = _Active(
            row_R=torch.arange(rows, device=device),
            token_R=torch.zeros(rows, dtype=torch.long, device=device),
            position_R=length_P[repeat_R] - 1,
            mask_RS=mask_PS[repeat_R],
            running_R=torch.ones(rows, dtype=torch.bool, device=device),
            cache=cache,
            padded=padded,
        )
        return active, logits_PV[repeat_R]

    def _next_logits(self, active: _Active) -> Tensor:
        active.position_R = active.position_R + 1
        active.mask_RS = torch.nn.functional.pad(active.mask_RS, (0, 1), value=1)
        mask = active.mask_RS if active.padded else None
        return self.policy.next_logits(active.token_R[:, None], mask, active.position_R[:, None], active.cache)

    def _ended(
        self, active: _Active, out: _Output, steps: list[tuple[Tensor, Tensor, Tensor]], sampling: Sampling
    ) -> Tensor:
        """Rows whose newest token ends the response, by end token or by stop string."""
        ended_R = torch.isin(active.token_R, torch.tensor(self.end_ids, device=active.token_R.device, dtype=torch.long))
        if sampling.stop:
            _collect(out, steps)
            tail = max(len(s) for s in sampling.stop) + 4
            for i, (row, running) in enumerate(zip(active.row_R.tolist(), active.running_R.tolist())):
                if running and not bool(ended_R[i]):
                    text = self.policy.tokenizer.decode(out.ids[row][-tail:], skip_special_tokens=True)
                    ended_R[i] = any(s in text for s in sampling.stop)
        for row in active.row_R[ended_R & active.running_R].tolist():
            out.stopped[row] = True
        return ended_R


def _collect(out: _Output, steps: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Move tokens and log-probs from the device into lists, and forget them."""
    for row_R, token_R, logp_R in steps:
        for row, token, logp in zip(row_R.tolist(), token_R.tolist(), logp_R.tolist()):
            out.ids[row].append(token)
            out.logp[row].append(logp)
    steps.clear()


def _compact(active: _Active) -> _Active:
    """Keep only the running rows, in the cache too."""
    keep = active.running_R.nonzero().squeeze(1)
    active.cache.batch_select_indices(keep)
    return _Active(
        row_R=active.row_R[keep],
        token_R=active.token_R[keep],
        position_R=active.position_R[keep],
        mask_RS=active.mask_RS[keep],
        running_R=active.running_R[keep],
        cache=active.cache,
        padded=active.padded,
    )
