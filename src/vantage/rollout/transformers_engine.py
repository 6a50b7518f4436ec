"""The default engine: batched decoding with transformers, on the policy's own weights.

A prompt (or prefix) is prefilled once for all its rollouts, what several of them begin with once for all of these
(`vantage.rollout.prefill`), and rollouts whose tokens are equal so far share one row of
the model's batch until they part: the draws are each rollout's own, the distribution is the same. Rows that nobody needs
any more leave the batch as soon as they are enough, so that a long response does not keep short ones computing.
Whether rollouts have ended is looked at on a GPU every few tokens only: a look waits for all that was queued, and what an ended
rollout draws until then is thrown away.
R rollouts that are still running, N rows of the model's batch (branches), V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vantage.policy import Policy
from vantage.randomness import uniforms
from vantage.rollout.decoding import Decoding, begin
from vantage.rollout.engine import Engine, Request, Rollout, Sampling
from vantage.rollout.prefill import width_of
from vantage.rollout.sampling import sample
from vantage.rollout.slots import SlotDecoder, agrees, suits
from vantage.rollout.stopping import StopWatch, ended
from vantage.rollout.weights import cast_once

COMPACT_BELOW = 0.85
"""Branches without rollouts are dropped when less than this share of the batch has one."""
DRAWS = 32
"""Uniform numbers are drawn for this many tokens at a time."""


LOOK_EVERY = {"cuda": 8}
"""Tokens from one look at which rollouts have ended to the next; on other devices, where a look costs nothing, 1."""

CacheKind = Literal["auto", "dynamic", "static"]


@dataclass
class _Active:
    """Rollouts in the batch, and the branch of the model's batch that each is on."""

    row_R: Tensor
    branch_R: Tensor
    branches: int
    over_R: Tensor
    """Whether a rollout that is still in the batch has ended."""
    apart: bool
    """Whether every rollout has a branch of its own: from then on none can part."""
    straight: bool
    """Whether `branch_R` is 0, 1, 2, … N − 1."""


_Step = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of each rollout in the batch: its number, its token, the log-prob, whether it had ended before."""


class TransformersEngine(Engine):
    """Decodes `generation_batch` rollouts side by side; see the module.

    `cache`: `dynamic` grows with the responses; `static` is taken once (`vantage.rollout.slots`), with CUDA graphs
    where there is CUDA; `auto` is static on CUDA devices. Models that a static cache does not suit have a dynamic one.
    A batch for which there is not enough memory on the device is cut in two, which changes no rollout.
    """

    def __init__(
        self, policy: Policy, end_ids: Sequence[int], generation_batch: int = 512, cache: CacheKind = "auto"
    ) -> None:
        self.policy, self.generation_batch, self.cache = policy, generation_batch, cache
        self._end_ids = tuple(end_ids)
        self.look_every = LOOK_EVERY.get(policy.device.type, 1)
        self._static_agrees: bool | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """See `Engine`."""
        return self._end_ids

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """See `Engine`. Requests of similar length are decoded together; the result is in the given order."""
        results: list[list[Rollout]] = [[] for _ in requests]
        waiting = []
        for i, request in enumerate(requests):
            limit = request.limit(sampling)
            reason = ended(request.prefix_ids, limit, self.end_ids, sampling.stop, self.policy.tokenizer)
            if reason is None:
                waiting.append((i, request))
            else:
                results[i] = [Rollout([], [], reason) for _ in request.keys]
        with cast_once(self.policy):
            while waiting:
                waiting = self._generate_some(waiting, sampling, results)
        return results

    def _generate_some(
        self, waiting: Sequence[tuple[int, Request]], sampling: Sampling, results: list[list[Rollout]]
    ) -> list[tuple[int, Request]]:
        """Decode batch by batch into `results`; what is left where memory ran out, with the batch halved for a next try."""
        batches = list(_batches(waiting, self.generation_batch))
        most = max(map(_rollouts_of, batches))
        try:
            decoder = self._slots(batches, sampling)
            while batches:
                found = self._decode([request for _, request in batches[0]], sampling, decoder)
                for (i, _), rollouts in zip(batches.pop(0), found):
                    results[i] += rollouts
            return []
        except torch.OutOfMemoryError:
            if most == 1:
                raise
        decoder = None
        torch.cuda.empty_cache()
        self.generation_batch = most // 2
        warnings.warn(
            f"not enough memory for {most} rollouts side by side; --generation-batch {self.generation_batch} from here on",
            stacklevel=2,
        )
        return [piece for batch in batches for piece in batch]

    def _slots(self, batches: Sequence[Sequence[tuple[int, Request]]], sampling: Sampling) -> SlotDecoder | None:
        """Memory for the largest of the batches, where that kind of cache is wanted and suits the model."""
        wanted = self.cache == "static" or (self.cache == "auto" and self.policy.device.type == "cuda")
        if not wanted or self._static_agrees is False or not batches or not suits(self.policy):
            return None
        ends = [
            width_of([_context(r) for _, r in batch]) + max(r.limit(sampling) for _, r in batch) for batch in batches
        ]
        return SlotDecoder(self.policy, max(_rollouts_of(batch) for batch in batches), max(ends))

    def _decode(
        self, requests: Sequence[Request], sampling: Sampling, slots: SlotDecoder | None
    ) -> list[list[Rollout]]:
        device = self.policy.device
        counts = [len(r.keys) for r in requests]
        keys_R = np.array([k for r in requests for k in r.keys], dtype=np.uint64)
        limits = np.repeat([r.limit(sampling) for r in requests], counts)
        # Rows reach their limits at these lengths; elsewhere limits need no look at, and where all are equal, nowhere.
        partings, longest = set(limits.tolist()), int(limits.max())
        limit_R = torch.from_numpy(limits).to(device) if len(partings) > 1 else None
        end_ids = torch.tensor(self.end_ids, device=device, dtype=torch.long)
        watch = _watch(self.policy.tokenizer, sampling.stop, requests)
        decoding, logits_NV = self._begin(requests, slots)
        active = _begun(counts, device)
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
            steps.append((row_R, token_R, logp_R, active.over_R))
            ended_R = torch.isin(token_R, end_ids)
            if watch is not None:
                ended_R = ended_R | _completed(watch, row_R, token_R, ended_R)
            if len(steps) == 1 or self.look_every == 1:
                stopped_R[row_R] = ended_R
            else:
                stopped_R[row_R] |= ended_R & ~active.over_R
            active.over_R = active.over_R | ended_R
            if limit_R is not None and t + 1 in partings:
                active.over_R = active.over_R | (limit_R[row_R] <= t + 1)
            if t + 1 == longest:
                break
            if not active.apart or watch is not None or t + 1 in partings or (t + 1) % self.look_every == 0:
                going_R = (~active.over_R).nonzero().squeeze(1)
                if len(going_R) == 0:
                    break
                token_N = _advance(active, going_R, token_R, logits_NV.shape[1], decoding)
            else:
                token_N = _onto(active, token_R)
            logits_NV = decoding.step(token_N)
        rollouts = _rollouts(steps, stopped_R)
        bounds = np.cumsum([0, *counts])
        return [rollouts[a:b] for a, b in pairwise(bounds)]

    def _begin(self, requests: Sequence[Request], slots: SlotDecoder | None) -> tuple[Decoding, Tensor]:
        """Run every prompt (and prefix) once, what several begin with once too; rollouts begin on the branch of their own."""
        contexts = list(map(_context, requests))
        growing, logits_PV = begin(self.policy, contexts)
        if slots is None or self._static_agrees is False:
            return growing, logits_PV
        slots.begin(growing)
        if self._static_agrees is None:
            self._static_agrees = agrees(slots, growing, logits_PV)
            if not self._static_agrees:
                warnings.warn(
                    "a static cache does not suit this model; generation goes on with a growing one", stacklevel=2
                )
                return begin(self.policy, contexts)
        return slots, logits_PV


def _begun(counts: Sequence[int], device: torch.device) -> _Active:
    """All rollouts on the branches of their prompts."""
    branch_R = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
    return _Active(
        row_R=torch.arange(len(branch_R), device=device),
        branch_R=branch_R,
        branches=len(counts),
        over_R=torch.zeros(len(branch_R), dtype=torch.bool, device=device),
        apart=max(counts) == 1,
        straight=max(counts) == 1,
    )


def _context(request: Request) -> list[int]:
    return [*request.prompt_ids, *request.prefix_ids]


def _rollouts_of(batch: Sequence[tuple[int, Request]]) -> int:
    return sum(len(request.keys) for _, request in batch)


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
    row_N, token_N, logp_N, over_N = (torch.cat(parts).cpu() for parts in zip(*steps))
    row_N, token_N, logp_N = row_N[~over_N], token_N[~over_N], logp_N[~over_N]
    order_N = row_N.argsort(stable=True)
    tokens, logps = token_N[order_N].tolist(), logp_N[order_N].tolist()
    ends = torch.bincount(row_N, minlength=len(stopped_R)).cumsum(0).tolist()
    return [
        Rollout(tokens[a:b], logps[a:b], "stop" if stopped else "length")
        for (a, b), stopped in zip(pairwise([0, *ends]), stopped_R.tolist())
    ]


def _onto(active: _Active, token_R: Tensor) -> Tensor:
    """The tokens [N] of the branches, from those of the rollouts on them; a branch without any gets token 0."""
    if active.straight:
        return token_R
    return torch.zeros(active.branches, dtype=token_R.dtype, device=token_R.device).index_put(
        (active.branch_R,), token_R
    )


def _advance(active: _Active, going_R: Tensor, token_R: Tensor, vocabulary: int, decoding: Decoding) -> Tensor:
    """Go on with some of the rollouts behind their new tokens, and the tokens of branches: they part where tokens differ.

    The cache is copied only where branches part, or where too many of them have nobody left.
    """
    active.row_R, branch_R, token_R = active.row_R[going_R], active.branch_R[going_R], token_R[going_R]
    active.over_R = active.over_R[going_R]
    parted = False
    if not active.apart:
        pair_M, child_R = torch.unique(branch_R * vocabulary + token_R, return_inverse=True)
        parent_M, token_M = pair_M // vocabulary, torch.remainder(pair_M, vocabulary)
        parted = bool((parent_M[1:] == parent_M[:-1]).any())
        active.apart = len(pair_M) == len(branch_R)
    if active.apart:
        parent_M, token_M, child_R = branch_R, token_R, torch.arange(len(branch_R), device=branch_R.device)
    if not parted and len(parent_M) >= COMPACT_BELOW * active.branches:
        active.straight = active.straight and len(branch_R) == active.branches
        active.branch_R = branch_R
        return _onto(active, token_R)
    active.branch_R, active.straight, active.branches = child_R, active.apart, len(parent_M)
    decoding.select(parent_M)
    chosen_M: Tensor = token_M
    return chosen_M
