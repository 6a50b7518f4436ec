"""The default engine: batched decoding with transformers, on the policy's own weights.

A prompt is prefilled once for all its rollouts; its key-value cache is then repeated. Rows that have ended leave the
batch as soon as enough of them have, so that a long response does not keep the short ones computing. R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from vantage.rollout.stopping import StopWatch, ended

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


_Step = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of each row in the batch: its number, its token, the log-prob, and whether the row was still running."""


class TransformersEngine:
    """Decodes `generation_batch` rollouts side by side; see the module."""

    def __init__(self, policy: Policy, end_ids: Sequence[int], generation_batch: int = 512) -> None:
        self.policy, self.generation_batch = policy, generation_batch
        self.end_ids = tuple(end_ids)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """See `Engine`. Requests of similar length are decoded together; the result is in the given order."""
        results: list[list[Rollout]] = [[] for _ in requests]
        open_requests = []
        for i, request in enumerate(requests):
            limit = request.limit(sampling)
            reason = ended(request.prefix_ids, limit, self.end_ids, sampling.stop, self.policy.tokenizer)
            if reason is None:
                open_requests.append((i, request))
            else:
                results[i] = [Rollout([], [], reason) for _ in request.keys]
        for batch in _batches(open_requests, self.generation_batch):
            for (i, _), rollouts in zip(batch, self._decode([request for _, request in batch], sampling)):
                results[i] += rollouts
        return results

    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        device = self.policy.device
        counts = [len(r.keys) for r in requests]
        keys_R = np.array([k for r in requests for k in r.keys], dtype=np.uint64)
        limits = np.repeat([r.limit(sampling) for r in requests], counts)
        # Rows reach their limits at these lengths; elsewhere limits need no look at, and where all are equal, nowhere.
        partings, longest = set(limits.tolist()), int(limits.max())
        limit_R = torch.from_numpy(limits).to(device) if len(partings) > 1 else None
        end_ids = torch.tensor(self.end_ids, device=device, dtype=torch.long)
        watch = _watch(self.policy.tokenizer, sampling.stop, requests)
        active, logits_RV = self._prefill(requests, counts)
        stopped_R = torch.zeros(len(keys_R), dtype=torch.bool, device=device)
        steps: list[_Step] = []
        for t in range(longest):
            if t % DRAWS == 0:
                draws_RT = torch.from_numpy(uniforms(keys_R, t, DRAWS)).to(device)
            uniform_R = draws_RT[active.row_R, t % DRAWS]
            token_R, logp_R = sample(logits_RV, uniform_R, sampling.temperature, sampling.top_p, sampling.top_k)
            steps.append((active.row_R, token_R, logp_R, active.running_R))
            active.token_R = token_R
            ended_R = torch.isin(token_R, end_ids) & active.running_R
            if watch is not None:
                ended_R = ended_R | _completed(watch, active, ended_R)
            stopped_R[active.row_R] |= ended_R
            active.running_R = active.running_R & ~ended_R
            if limit_R is not None and t + 1 in partings:
                active.running_R = active.running_R & (limit_R[active.row_R] > t + 1)
            running = int(active.running_R.sum())
            if running == 0 or t + 1 == longest:
                break
            if running < COMPACT_BELOW * len(active.row_R):
                active = _compact(active)
            logits_RV = self._next_logits(active)
        rollouts = _rollouts(steps, stopped_R)
        bounds = np.cumsum([0, *counts])
        return [rollouts[a:b] for a, b in pairwise(bounds)]

    def _prefill(self, requests: Sequence[Request], counts: Sequence[int]) -> tuple[_Active, Tensor]:
        """Run every prompt (and prefix) once, then repeat cache and logits for its rollouts."""
        device = self.policy.device
        contexts = [[*r.prompt_ids, *r.prefix_ids] for r in requests]
        lengths = [len(c) for c in contexts]
        width = max(lengths)
        fill = self.policy.pad_id
        ids = torch.tensor([[fill] * (width - len(c)) + c for c in contexts], device=device)
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


def _batches(requests: Sequence[tuple[int, Request]], most: int) -> Iterator[list[tuple[int, Request]]]:
    """Numbered requests in batches of at most so many rollouts, by length; one with more keys is cut into pieces."""
    pieces = [
        (i, request if len(request.keys) <= most else replace(request, keys=request.keys[a : a + most]))
        for i, request in requests
        for a in range(0, len(request.keys), most)
    ]
    batch, rows = list[tuple[int, Request]](), 0
    for piece in sorted(pieces, key=lambda piece: len(piece[1].prompt_ids) + len(piece[1].prefix_ids)):
        if batch and rows + len(piece[1].keys) > most:
            yield batch
            batch, rows = [], 0
        batch.append(piece)
        rows += len(piece[1].keys)
    if batch:
        yield batch


def _watch(tokenizer: Any, stop: Sequence[str], requests: Sequence[Request]) -> StopWatch | None:
    return StopWatch(tokenizer, stop, [r.prefix_ids for r in requests for _ in r.keys]) if stop else None


def _completed(watch: StopWatch, active: _Active, ended_R: Tensor) -> Tensor:
    """Running rows whose newest token completes a stop string."""
    rows = zip(active.row_R.tolist(), active.token_R.tolist(), (active.running_R & ~ended_R).tolist())
    return torch.tensor([open_ and watch.add(row, token) for row, token, open_ in rows], device=ended_R.device)


def _rollouts(steps: Sequence[_Step], stopped_R: Tensor) -> list[Rollout]:
    """Gather each row's tokens and log-probs, all rows at once."""
    row_N, token_N, logp_N, running_N = (torch.cat(parts).cpu() for parts in zip(*steps))
    row_N, token_N, logp_N = row_N[running_N], token_N[running_N], logp_N[running_N]
    order_N = row_N.argsort(stable=True)
    tokens, logps = token_N[order_N].tolist(), logp_N[order_N].tolist()
    ends = torch.bincount(row_N, minlength=len(stopped_R)).cumsum(0).tolist()
    return [
        Rollout(tokens[a:b], logps[a:b], "stop" if stopped else "length")
        for (a, b), stopped in zip(pairwise([0, *ends]), stopped_R.tolist())
    ]


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
