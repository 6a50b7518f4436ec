"""Where do the values of all tokens come from? A model of the critic's own, or a head on the policy's hidden states.

Both give values [B, T] of the states before the tokens, and learn from targets of the same shape. B rollouts (M of a
micro-batch), T response tokens, K kept states of a rollout, D width.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from vantage.batch import Batch, idle_batch, pad, plan_microbatches, split_groups
from vantage.critics.model import ValueHead, ValueModel
from vantage.critics.training import CriticSettings, CriticTraining, Targets
from vantage.distributed.world import World
from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.distributed.sharding import Shards
    from vantage.estimators.base import Reads
    from vantage.policy import Forward


class TokenCritic:
    """What PPO asks of a critic. `head.begun` says whether it knows the base rate yet."""

    kind: ClassVar[str]
    layers: tuple[int, ...] = ()
    """Hidden layers of the policy that `read` wants."""

    def __init__(self, module: nn.Module, head: ValueHead, settings: CriticSettings, world: World) -> None:
        self.head, self.world = head, world
        self.training = CriticTraining(module, head, settings, world)

    def values(self, batch: Batch) -> Tensor | None:
        """Values [B, T] in units of the reward, float64; None where they come from `read`."""
        return None

    def read(self, forward: Forward) -> Reads:
        """What is kept of the policy's forward pass."""
        return {}

    def fit(self, batch: Batch, reads: Reads, targets: Targets) -> dict[str, float]:
        """Learn from a batch; `targets` has a place for each token. Every process must call it."""
        raise NotImplementedError

    def begin(self, value_N: Tensor, mask_N: Tensor) -> bool:
        """Start at the mean of what the mask lets through on all processes, once; whether the base rate is known then."""
        if not bool(self.head.begun):
            sums = torch.stack([torch.where(mask_N, value_N, 0.0).sum(), mask_N.double().sum()])
            total, count = self.world.sum(sums).tolist()
            if count:
                self.head.begin(total / count)
        return bool(self.head.begun)

    def parts(self, batch: Batch) -> list[list[int]]:
        """Rows of the mini-batches, the same groups whatever the number of processes."""
        groups = sorted({g for part in self.world.exchange(batch.group_B.tolist()) for g in part})
        return split_groups(batch, max(1, min(self.training.settings.minibatches, len(groups))), groups)

    def clamped(self, score: Tensor) -> Tensor:
        """Values of scores, within the reward range, detached, float64 on the CPU."""
        return self.head.value(score.detach().double()).clamp(self.head.low, self.head.high).cpu()


class ModelCritic(TokenCritic):
    """A trunk of the critic's own, run over prompt and response; the policy's forward pass is not needed."""

    kind = "model"

    def __init__(
        self, model: ValueModel, settings: CriticSettings, world: World, budget: int, shards: Shards | None = None
    ) -> None:
        super().__init__(model, model.head, settings, world)
        self.model, self.budget, self.shards = model, budget, shards

    def whole(self) -> contextlib.AbstractContextManager[ValueModel | None]:
        """The model for saving; None where another process saves it. Every process must enter it."""
        found: contextlib.AbstractContextManager[ValueModel | None]
        found = contextlib.nullcontext(self.model) if self.shards is None else self.shards.whole()  # type: ignore[assignment]
        return found

    def values(self, batch: Batch) -> Tensor:
        """See `TokenCritic`. Raises `UserError` for a sequence longer than the critic can read."""
        with torch.no_grad(), contextlib.nullcontext() if self.shards is None else self.shards.gathered():
            return self._values(batch)

    def _values(self, batch: Batch) -> Tensor:
        most = max(batch.tokens(), default=0)
        if self.model.positions is not None and most > self.model.positions:
            raise UserError(
                f"--ppo.critic: a rollout has {most} tokens, the critic has only {self.model.positions} positions"
            )
        found: list[Tensor] = [torch.empty(0, dtype=torch.float64)] * batch.size
        for rows in self._plan(batch, list(range(batch.size))):
            value_MT = self.clamped(self.model(batch.select(rows)))
            for i, row in enumerate(rows):
                found[row] = value_MT[i, : len(batch.response_ids[row])]
        return pad(found, batch.response_mask_BT.shape[1]).double()

    def fit(self, batch: Batch, reads: Reads, targets: Targets) -> dict[str, float]:
        """See `TokenCritic`."""
        return self.training.fit(
            targets, self.parts(batch), lambda rows: self._in_step(self._plan(batch, rows)),
            lambda rows: self.model(batch.select(rows) if rows else idle_batch(self.model.pad_id)),
        )  # fmt: skip

    def _in_step(self, parts: list[list[int]]) -> list[list[int]]:
        return parts if self.shards is None else self.shards.in_step(parts)

    def _plan(self, batch: Batch, rows: list[int]) -> list[list[int]]:
        """Micro-batches by token budget; siblings need not stay together here."""
        tokens = batch.tokens()
        plan = plan_microbatches([tokens[row] for row in rows], [[i] for i in range(len(rows))], self.budget)
        return [[rows[i] for i in micro] for micro in plan.micro]


class StateCritic(TokenCritic):
    """A linear head on one layer of the policy's own hidden states, which it does not change (they are detached).

    States are brought to mean 0 and variance 1 over their width first. Values are taken at every token; learned is from at
    most `keep` states of each rollout, spread evenly from the first to the last, so what is held between forward pass and
    learning is B·keep·D numbers, whatever the length of responses.
    """

    kind = "head"

    def __init__(self, head: ValueHead, layer: int, keep: int, settings: CriticSettings, world: World) -> None:
        super().__init__(head, head, settings, world)
        self.layer, self.layers, self.keep = layer, (layer,), keep

    @torch.no_grad()
    def read(self, forward: Forward) -> Reads:
        """`value_MT` [M, T], float64; `states` [M, K, D], float32; `places` [M, K], token numbers, −1 for none."""
        hidden_MSD, mask_MT = forward.hidden[self.layer], forward.mask_MT
        row_N, token_N = mask_MT.nonzero(as_tuple=True)
        start_M = forward.prompt_length_M - 1
        value_N = self.clamped(self.head(self._even(hidden_MSD[row_N, start_M[row_N] + token_N])))
        value_MT = torch.zeros(mask_MT.shape, dtype=torch.float64)
        value_MT = value_MT.index_put((row_N.cpu(), token_N.cpu()), value_N)
        place_MK = places(forward.length_M, self.keep)
        row_MK = torch.arange(len(place_MK), device=place_MK.device)[:, None]
        states_MKD = self._even(hidden_MSD[row_MK, start_M[:, None] + place_MK.clamp(min=0)])
        return {"value_MT": value_MT, "states": states_MKD.float().cpu(), "places": place_MK.cpu()}

    def _even(self, states: Tensor) -> Tensor:
        states = states if states.dtype == torch.float64 else states.float()
        return nn.functional.layer_norm(states, states.shape[-1:])

    def fit(self, batch: Batch, reads: Reads, targets: Targets) -> dict[str, float]:
        """See `TokenCritic`."""
        nothing = {"places": torch.zeros((0, self.keep), dtype=torch.long), "states": torch.zeros((0, self.keep, 1))}
        place_BK, states_BKD = ((reads or nothing)[name] for name in ("places", "states"))
        at_BK = place_BK.clamp(min=0)
        kept = Targets(
            targets.target_BX.gather(1, at_BK),
            targets.old_BX.gather(1, at_BK),
            targets.mask_BX.gather(1, at_BK) & (place_BK >= 0),
        )
        device = self.head.weight.device
        return self.training.fit(
            kept, self.parts(batch), lambda rows: [rows] if rows else [],
            lambda rows: self.head(states_BKD[rows].to(device)),
        )  # fmt: skip


def places(length_M: Tensor, keep: int) -> Tensor:
    """At most `keep` token numbers of each response, evenly from the first to the last [M, K]; −1 fills up."""
    step_K = torch.arange(keep, device=length_M.device)
    spread_MK = (step_K[None] * (length_M[:, None] - 1) / max(1, keep - 1)).round().long()
    few_MK = torch.where(step_K[None] < length_M[:, None], step_K[None], torch.full_like(spread_MK, -1))
    return torch.where(length_M[:, None] > keep, spread_MK, few_MK)
