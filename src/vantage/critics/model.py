"""What does a critic compute? A value before every response token, from nothing but the prompt and the tokens before it.

The value of the state in which token t was chosen is read at the position before it, so a causal trunk can not see the
token. The head is linear, in float32, and starts at 0: until it has learned, the value is the base rate of the reward, not
noise. M rollouts, S positions, T response tokens, N response tokens of all rollouts, D width of the trunk.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vantage.batch import Batch
from vantage.errors import UserError
from vantage.policy import Policy

LEAST_SHARE = 0.02
"""A base rate nearer than this to an end of the range would start a logit where it hardly learns."""


class ValueHead(nn.Module):
    """From states to values: `score = w·h + b`, then mean + scale·score, or low + (high − low)·σ(start + score).

    `score` is 0 at first, so the value is `mean`, which is the base rate once `begin` has been told it.
    """

    mean: Tensor
    scale: Tensor
    begun: Tensor

    def __init__(self, width: int, reward_range: tuple[float, float], probability: bool = False) -> None:
        super().__init__()
        low, high = reward_range
        self.low, self.high, self.probability = float(low), float(high), probability
        self.weight = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.register_buffer("mean", torch.tensor((low + high) / 2, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(high - low, dtype=torch.float64))
        self.register_buffer("begun", torch.tensor(False))

    @property
    def span(self) -> float:
        """Width of the reward range."""
        return self.high - self.low

    def begin(self, base_rate: float) -> None:
        """Start at the mean reward that was seen."""
        self.mean.fill_(min(max(base_rate, self.low), self.high))
        self.begun.fill_(True)

    def forward(self, states_ND: Tensor) -> Tensor:
        """Scores [N] of states, in float32 (float64 states stay float64)."""
        states_ND = states_ND if states_ND.dtype == torch.float64 else states_ND.float()
        return states_ND @ self.weight.to(states_ND.dtype) + self.bias.to(states_ND.dtype)

    def logit(self, score: Tensor) -> Tensor:
        """Log-odds of the upper end of the range."""
        share = float((self.mean - self.low) / self.span)
        share = min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)
        return score + torch.tensor(share / (1 - share), dtype=torch.float64).log().to(score)

    def value(self, score: Tensor) -> Tensor:
        """Values in units of the reward."""
        if self.probability:
            return self.low + self.span * torch.sigmoid(self.logit(score))
        return self.mean.to(score) + self.scale.to(score) * score

    @torch.no_grad()
    def rescale(self, mean: float, scale: float) -> None:
        """Take other statistics of the targets without changing any value (van Hasselt et al., arXiv 1602.07714)."""
        ratio = float(self.scale) / scale
        self.bias.mul_(ratio).add_((float(self.mean) - mean) / scale)
        self.weight.mul_(ratio)
        self.mean.fill_(mean)
        self.scale.fill_(scale)


class ValueModel(nn.Module):
    """A trunk of its own and a value head."""

    def __init__(self, trunk: nn.Module, head: ValueHead, pad_id: int = 0) -> None:
        super().__init__()
        self.trunk, self.head, self.pad_id = trunk, head.to(next(trunk.parameters(), torch.empty(0)).device), pad_id
        self.compute = torch.float32
        """Type of the trunk's arithmetic; the head's is float32."""
        self.eval()  # dropout would make a value depend on more than its state

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.head.weight.device

    @property
    def positions(self) -> int | None:
        """Longest sequence that the trunk can read; None: not said."""
        found = getattr(getattr(self.trunk, "config", None), "max_position_embeddings", None)
        return None if found is None else int(found)

    def states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Last hidden states [M, S, D] of token sequences; padded on the right, where causal attention never looks."""
        width = max(len(row) for row in rows)
        ids_MS = torch.tensor([[*row, *[self.pad_id] * (width - len(row))] for row in rows], dtype=torch.long)
        fast = self.compute != torch.float32
        with torch.autocast(self.device.type, self.compute) if fast else contextlib.nullcontext():
            found: Tensor = self.trunk(input_ids=ids_MS.to(self.device), use_cache=False).last_hidden_state
        return found

    def forward(self, batch: Batch) -> Tensor:
        """Scores [M, T] of the states before the response tokens of a batch; 0 outside of the responses."""
        mask_MT = batch.response_mask_BT.to(self.device)
        row_N, token_N = mask_MT.nonzero(as_tuple=True)
        prompt_M = torch.tensor([len(p) for p in batch.prompt_ids], device=self.device)
        # The last response token has nothing behind it to predict, so it need not be read.
        states_MSD = self.states([[*p, *r[:-1]] for p, r in zip(batch.prompt_ids, batch.response_ids)])
        score_N = self.head(states_MSD[row_N, prompt_M[row_N] + token_N - 1])
        score_MT: Tensor = score_N.new_zeros(mask_MT.shape).index_put((row_N, token_N), score_N)
        return score_MT


def copied_trunk(policy: Policy) -> nn.Module:
    """A copy of the policy's trunk; raises `UserError` where it can not be separated from the head."""
    if policy.head.trunk is None:
        raise UserError(
            "--ppo.critic copy: this model's trunk can not be told from its head; give --ppo.critic head or a model"
        )
    return copy.deepcopy(policy.head.trunk)


def width_of(trunk: nn.Module) -> int:
    """Width of a trunk's last hidden states."""
    config: Any = trunk.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(config.hidden_size)
