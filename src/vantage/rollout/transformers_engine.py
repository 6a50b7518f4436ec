"""The default engine: batched decoding with transformers, on the policy's own weights.

A prompt (or prefix) is prefilled once for all its rollouts, what several of them begin with once for all of these
(`vantage.rollout.prefill`), and rollouts whose tokens are equal so far share one row of
the model's batch until they part: the draws are each rollout's own, the distribution is the same. Rows that nobody needs
any more leave the batch as soon as they are enough, so that a long response does not keep short ones computing.
R rollouts that are still running, N rows of the model's batch (branches), V vocabulary.
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
from vantage.rollout.prefill import prefill
from vantage.rollout.sampling import sample
from vantage.rollout.stopping import StopWatch, ended

COMPACT_BELOW = 0.85
"""Branches without rollouts are dropped when less than this share of the batch has one."""
DRAWS = 32
"""Uniform numbers are drawn for this many tokens at a time."""


@dataclass
class _Active:
    """Rollouts still running, the branch of the model's batch each is on, and what the model needs for the next token."""

    row_R: Tensor
    branch_R: Tensor
    token_N: Tensor
    position_N: Tensor
    mask_NS: Tensor
    """Attention over the cache, 0 at the left padding of prompts."""
    cache: Any
    padded: bool
    apart: bool
    """Whether every running rollout has a branch of its own: from then on none can part."""
    straight: bool
    """Whether `branch_R` is 0, 1, 2, … N − 1."""


_Step = tuple[Tensor, Tensor, Tensor]
"""Of each running rollout: its number, its token, the log-prob."""


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
        active, logits_NV = self._prefill(requests, counts)
        stopped_R = torch.zeros(len(keys_R), dtype=torch.bool, device=device)
        steps: list[_Step] = []
        for t in range(longest):
            if t % DRAWS == 0:
                draws_RT = torch.from_numpy(uniforms(keys_R, t, DRAWS)).to(device)
            row_R, uniform_R = active.row_R, draws_RT[active.row_R, t % DRAWS]
            branch_R = None if active.straight else active.branch_R
            token_R, logp_R = sample(
                logits_NV, uniform_R, sampling.temperature, sampling.top_p, sampling.top_k, branch_R
            )
            steps.append((row_R, token_R, logp_R))
            ended_R = torch.isin(token_R, end_ids)
            if watch is not None:
                ended_R = ended_R | _completed(watch, row_R, token_R, ended_R)
            stopped_R[row_R] = ended_R
            if limit_R is not None and t + 1 in partings:
                ended_R = ended_R | (limit_R[row_R] <= t + 1)
            going_R = (~ended_R).nonzero().squeeze(1)
            if len(going_R) == 0 or t + 1 == longest:
                break
            _advance(active, going_R, token_R, logits_NV.shape[1])
            logits_NV = self._next_logits(active)
        rollouts = _rollouts(steps, stopped_R)
        bounds = np.cumsum([0, *counts])
        return [rollouts[a:b] for a, b in pairwise(bounds)]

    def _prefill(self, requests: Sequence[Request], counts: Sequence[int]) -> tuple[_Active, Tensor]:
        """Run every prompt (and prefix) once, what several begin with once too; rollouts begin on the branch of their own."""
        device = self.policy.device
        contexts = [[*r.prompt_ids, *r.prefix_ids] for r in requests]
        length_P = torch.tensor([len(c) for c in contexts], device=device)
        cache = DynamicCache(config=self.policy.text_config)
        mask_PS, padded, logits_PV = prefill(self.policy, contexts, cache)
        branch_R = torch.repeat_interleave(
            torch.arange(len(requests), device=device), torch.tensor(counts, device=device)
        )
        active = _Active(
            row_R=torch.arange(len(branch_R), device=device),
            branch_R=branch_R,
            token_N=torch.zeros_like(length_P),
            position_N=length_P - 1,
            mask_NS=mask_PS,
            cache=cache,
            padded=padded,
            apart=max(counts) == 1,
            straight=max(counts) == 1,
        )
        return active, logits_PV

    def _next_logits(self, active: _Active) -> Tensor:
        active.position_N = active.position_N + 1
        active.mask_NS = torch.nn.functional.pad(active.mask_NS, (0, 1), value=1)
        mask = active.mask_NS if active.padded else None
        return self.policy.next_logits(active.token_N[:, None], mask, active.position_N[:, None], active.cache)


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


def _completed(watch: StopWatch, row_R: Tensor, token_R: Tensor, ended_R: Tensor) -> Tensor:
    """Rollouts whose newest token completes a stop string; one that has ended need not be looked at."""
    rows = zip(row_R.tolist(), token_R.tolist(), ended_R.tolist())
    return torch.tensor([not ended_ and watch.add(row, token) for row, token, ended_ in rows], device=ended_R.device)


def _rollouts(steps: Sequence[_Step], stopped_R: Tensor) -> list[Rollout]:
    """Gather each rollout's tokens and log-probs, all at once."""
    row_N, token_N, logp_N = (torch.cat(parts).cpu() for parts in zip(*steps))
    order_N = row_N.argsort(stable=True)
    tokens, logps = token_N[order_N].tolist(), logp_N[order_N].tolist()
    ends = torch.bincount(row_N, minlength=len(stopped_R)).cumsum(0).tolist()
    return [
        Rollout(tokens[a:b], logps[a:b], "stop" if stopped else "length")
        for (a, b), stopped in zip(pairwise([0, *ends]), stopped_R.tolist())
    ]


def _advance(active: _Active, going_R: Tensor, token_R: Tensor, vocabulary: int) -> None:
    """Go on with some of the rollouts behind their new tokens: branches part where tokens differ.

    The cache is copied only where branches part, or where too many of them have nobody left.
    """
    active.row_R, branch_R, token_R = active.row_R[going_R], active.branch_R[going_R], token_R[going_R]
    branches, parted = len(active.token_N), False
    if not active.apart:
        pair_M, child_R = torch.unique(branch_R * vocabulary + token_R, return_inverse=True)
        parent_M, token_M = pair_M // vocabulary, pair_M % vocabulary
        parted = bool((parent_M[1:] == parent_M[:-1]).any())
        active.apart = len(pair_M) == len(branch_R)
    if active.apart:
        parent_M, token_M, child_R = branch_R, token_R, torch.arange(len(branch_R), device=branch_R.device)
    if not parted and len(parent_M) >= COMPACT_BELOW * branches:
        active.straight = active.straight and len(branch_R) == branches
        active.branch_R = branch_R
        active.token_N = torch.zeros_like(active.token_N).index_put((parent_M,), token_M)
        return
    active.branch_R, active.token_N, active.straight = child_R, token_M, active.apart
    active.position_N, active.mask_NS = active.position_N[parent_M], active.mask_NS[parent_M]
    active.cache.batch_select_indices(parent_M)
