"""Rollouts as tensors, and how a batch is cut into micro-batches: siblings together, sorted by length, by token budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vantage.distributed.world import World


@dataclass(frozen=True)
class Batch:
    """Rollouts of one step; all tensors on the CPU. B rollouts, T longest response."""

    step: int
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    group_B: Tensor
    """Index of the prompt within the step; equal for siblings, which are adjacent."""
    outcome_B: Tensor
    """What the verifier said, summed over reward functions: what value estimates learn from. NaN if unscorable."""
    reward_B: Tensor
    """What the policy is paid, after shaping."""
    scorable_B: Tensor
    domains: list[str]
    truncated_B: Tensor | None = None
    """True where the length limit ended the response; None: nowhere."""
    old_logp_BT: Tensor | None = None
    """Log-probs under the policy before the update, once a pre-pass has taken them."""
    behaviour_logp_BT: Tensor | None = None
    """Log-probs that the engine sampled with, where it computes apart from the policy; None: those of the policy."""
    reference_logp_BT: Tensor | None = None
    """Log-probs under the reference, once they have been taken."""
    reference_states: list[Tensor] | None = None
    """The reference's last hidden states behind each response's tokens [T_i, D], kept where they are needed again."""
    queried: Mapping[str, Tensor] = field(default_factory=dict)
    """What the estimator's `query` found, one row a rollout: `NAME_MT` with the tokens last [B, T]."""

    @property
    def size(self) -> int:
        """Rollouts, B."""
        return len(self.response_ids)

    @cached_property
    def length_B(self) -> Tensor:
        """Response lengths in tokens, the end token included [B]."""
        return torch.tensor([len(ids) for ids in self.response_ids], dtype=torch.long)

    @cached_property
    def response_mask_BT(self) -> Tensor:
        """True at the tokens of each response [B, T]."""
        longest = int(self.length_B.max()) if self.size else 0
        return torch.arange(longest)[None] < self.length_B[:, None]

    def trained_B(self, mask_truncated: bool) -> Tensor:
        """Which rollouts enter the loss [B]."""
        whole_B = torch.ones(self.size, dtype=torch.bool)
        return ~self.truncated_B if mask_truncated and self.truncated_B is not None else whole_B

    def rows_by_domain(self) -> dict[str, Tensor]:
        """Row numbers of each task domain, in order of first appearance."""
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.domains):
            rows.setdefault(name, []).append(i)
        return {name: torch.tensor(found) for name, found in rows.items()}

    def select(self, rows: Sequence[int]) -> Batch:
        """The given rows, in the given order; the T axis shrinks to the longest of them."""
        index = torch.tensor(list(rows), dtype=torch.long)
        responses = [self.response_ids[i] for i in rows]
        longest = max((len(r) for r in responses), default=0)
        return replace(
            self,
            prompt_ids=[self.prompt_ids[i] for i in rows],
            response_ids=responses,
            group_B=self.group_B[index],
            outcome_B=self.outcome_B[index],
            reward_B=self.reward_B[index],
            scorable_B=self.scorable_B[index],
            domains=[self.domains[i] for i in rows],
            truncated_B=None if self.truncated_B is None else self.truncated_B[index],
            old_logp_BT=None if self.old_logp_BT is None else self.old_logp_BT[index, :longest],
            behaviour_logp_BT=None if self.behaviour_logp_BT is None else self.behaviour_logp_BT[index, :longest],
            reference_logp_BT=None if self.reference_logp_BT is None else self.reference_logp_BT[index, :longest],
            reference_states=None if self.reference_states is None else [self.reference_states[i] for i in rows],
            queried={k: v[index, :longest] if k.endswith("_MT") else v[index] for k, v in self.queried.items()},
        )

    def tokens(self) -> list[int]:
        """Length of prompt and response together, by rollout."""
        return [len(p) + len(r) for p, r in zip(self.prompt_ids, self.response_ids)]

    def groups(self) -> list[list[int]]:
        """Row numbers of each prompt group."""
        rows: dict[int, list[int]] = {}
        for i, g in enumerate(self.group_B.tolist()):
            rows.setdefault(g, []).append(i)
        return list(rows.values())


def idle_batch(pad_id: int, states: Tensor | None = None) -> Batch:
    """One rollout of one token, for a pass that changes nothing; with the reference's `states` [1, D] where others have."""
    nothing = torch.zeros(1, dtype=torch.float64)
    return Batch(
        step=0, prompt_ids=[[pad_id]], response_ids=[[pad_id]], group_B=torch.zeros(1, dtype=torch.long), outcome_B=nothing,
        reward_B=nothing, scorable_B=torch.ones(1, dtype=torch.bool), domains=["default"],
        reference_states=None if states is None else [states],
    )  # fmt: skip


def pad(rows: Sequence[Tensor], width: int) -> Tensor:
    """Stack vectors of different length into [B, width], zeros on the right."""
    out = rows[0].new_zeros((len(rows), width)) if rows else torch.zeros((0, width))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


EFFICIENT_TOKENS = 2048
"""A micro-batch of fewer tokens takes in more, whatever the padding."""
MAX_PADDING = 0.15
"""Share of padding above which a micro-batch ends, if it is large enough."""


@dataclass(frozen=True)
class Plan:
    """Micro-batches of an optimizer step."""

    micro: list[list[int]]
    """Row numbers of each micro-batch."""
    whole_groups: bool
    """Whether every group lies within one micro-batch, as the fused forward needs."""


def plan_microbatches(tokens: Sequence[int], groups: Sequence[Sequence[int]], budget: int) -> Plan:
    """Cut rollouts into micro-batches of at most `budget` padded tokens (rows × longest row).

    Groups are sorted by their longest member and stay together where they fit; a group that exceeds the budget is cut
    into its rollouts, and a single rollout above the budget gets a micro-batch of its own. A micro-batch that is large
    enough to be efficient also ends where the next group would make padding more than `MAX_PADDING` of it. `tokens`
    [B] has the length of each rollout, `groups` the row numbers that belong together.
    """
    longest = [max(tokens[i] for i in g) for g in groups]
    whole = all(len(g) * n <= budget or len(g) == 1 for g, n in zip(groups, longest))
    units: list[list[int]] = []
    for g, n in zip(groups, longest):
        units += [list(g)] if len(g) * n <= budget else [[i] for i in g]
    units.sort(key=lambda unit: max(tokens[i] for i in unit))
    micro: list[list[int]] = []
    for unit in units:
        width = max(tokens[i] for i in unit)
        if micro and _fits(micro[-1], unit, width, tokens, budget):
            micro[-1] += unit
        else:
            micro.append(list(unit))
    return Plan(micro, whole)


def _fits(rows: Sequence[int], unit: Sequence[int], width: int, tokens: Sequence[int], budget: int) -> bool:
    """Whether a micro-batch should take in another unit, whose longest rollout has `width` tokens."""
    padded = (len(rows) + len(unit)) * width
    if padded > budget:
        return False
    used = sum(tokens[i] for i in rows)
    return used < EFFICIENT_TOKENS or used + sum(tokens[i] for i in unit) >= (1 - MAX_PADDING) * padded


def split_groups(batch: Batch, parts: int, groups: Sequence[int] | None = None) -> list[list[int]]:
    """Rows of `parts` mini-batches of whole prompt groups, in order, as equal in groups as can be.

    `groups` has the numbers of all groups of the step in ascending order where `batch` has only some of them: the
    mini-batches are then cut as if it had all.
    """
    if groups is None:
        groups = torch.unique(batch.group_B).tolist()
    bounds = [round(k * len(groups) / parts) for k in range(parts + 1)]
    part_of = {g: k for k, (a, b) in enumerate(pairwise(bounds)) for g in groups[a:b]}
    rows: list[list[int]] = [[] for _ in range(parts)]
    for i, g in enumerate(batch.group_B.tolist()):
        rows[part_of[g]].append(i)
    return rows


def gathered(batch: Batch, tensors: Mapping[str, Tensor], world: World) -> tuple[Batch, dict[str, Tensor]]:
    """The whole step from every process's part, in the order that one process alone would have.

    `tensors` are per-rollout tensors [B, ...] that go with the batch. Log-probs of tokens and what was queried are left
    out. Every process must call it, one without rollouts too.
    """
    if world.size == 1:
        return batch, dict(tensors)
    bare = replace(
        batch, old_logp_BT=None, behaviour_logp_BT=None, reference_logp_BT=None, reference_states=None, queried={}
    )
    own = (bare, dict(tensors))
    parts = [part for part in world.exchange(_packed(*own)) if len(part[0].group_B)]
    if not parts:
        return own
    order = torch.argsort(torch.cat([b.group_B for b, _, _, _ in parts]), stable=True)
    rows = order.tolist()

    def lists(each: Iterable[Sequence[Any]]) -> list[Any]:
        joined = [item for part in each for item in part]
        return [joined[i] for i in rows]

    whole = Batch(
        step=batch.step,
        prompt_ids=lists(_unpacked(prompts) for _, prompts, _, _ in parts),
        response_ids=lists(_unpacked(responses) for _, _, responses, _ in parts),
        group_B=torch.cat([b.group_B for b, _, _, _ in parts])[order],
        outcome_B=torch.cat([b.outcome_B for b, _, _, _ in parts])[order],
        reward_B=torch.cat([b.reward_B for b, _, _, _ in parts])[order],
        scorable_B=torch.cat([b.scorable_B for b, _, _, _ in parts])[order],
        domains=lists(b.domains for b, _, _, _ in parts),
        truncated_B=torch.cat([~b.trained_B(True) for b, _, _, _ in parts])[order],
    )
    return whole, {name: torch.cat([part[3][name] for part in parts])[order] for name in parts[0][3]}


Ids = tuple[Tensor, list[int]]


def _packed(batch: Batch, tensors: dict[str, Tensor]) -> tuple[Batch, Ids, Ids, dict[str, Tensor]]:
    """Token ids as one tensor: lists of a million numbers are slow to send."""
    bare = replace(batch, prompt_ids=[], response_ids=[[]] * batch.size)
    return bare, _pack(batch.prompt_ids), _pack(batch.response_ids), tensors


def _pack(rows: Sequence[Sequence[int]]) -> Ids:
    return torch.tensor([i for row in rows for i in row], dtype=torch.int32), [len(row) for row in rows]


def _unpacked(ids: Ids) -> list[list[int]]:
    return [part.tolist() for part in torch.split(ids[0], ids[1])]
