"""One policy update from one batch: who reads what in which forward pass, gradients, optimizer steps.

Fused: the forward that feeds the loss feeds `read` too; possible where a batch is used for one update, advantages need
nothing beyond the rollout's own group, and every group fits a micro-batch. Otherwise a pre-pass without gradient gives
the reads and the old log-probs. Both give the same result to rounding, for any micro-batch size.

With several processes each has its own prompts' rollouts. Losses are local sums over the denominators of the whole
step, and the gradients are added up once an optimizer step, so the result does not depend on the number of processes.

Where a device runs out of memory the micro-batches are halved and the optimizer step begins anew (`vantage.sizing`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vantage.batch import Batch, pad, plan_microbatches, split_groups
from vantage.config import TrainConfig
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import Estimate, Estimator, Reads
from vantage.mismatch import compare
from vantage.objectives import Objective, kl_penalty, policy_loss, rollout_weights, weighted_sum
from vantage.optimization import add_up_gradients, clip_gradient, make_optimizer, scheduled, set_learning_rate
from vantage.policy import Forward, Policy
from vantage.sizing import less_room, no_room_for_moments
from vantage.tally import Tally


@dataclass(frozen=True)
class UpdateResult:
    """What an update leaves for `learn`, the log and the samples."""

    reads: Reads
    estimate: Estimate
    metrics: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Prepared:
    """A batch with everything that its gradient needs, made for all of it at once: the gradient is then a sum over parts."""

    batch: Batch
    reads: Reads
    estimate: Estimate
    weight_B: Tensor
    """Of each rollout in the token losses."""
    share_B: Tensor
    """Of each rollout in the estimator's own loss."""


class PolicyUpdate:
    """Policy, optimizer and estimator; `run` is one step's update.

    `reference` is the frozen model of the KL term, if there is one.
    """

    def __init__(
        self,
        policy: Policy,
        estimator: Estimator,
        config: TrainConfig,
        reference: Policy | None = None,
        world: World | None = None,
    ) -> None:
        self.policy, self.estimator, self.config, self.reference = policy, estimator, config, reference
        self.world = world or World()
        self.objective = Objective.of(config)
        self.optimizer = make_optimizer(
            policy.model, weight_decay=config.weight_decay, betas=config.adam_betas, kind=config.optimizer
        )
        self.budget = config.tokens_per_microbatch or 4096
        self.updates_done = 0
        self.read_at = -1
        """Updates that were done when the whole batch was read last."""
        self.spent = 0.0
        """Share of the budget of tokens or seconds that is used up, for the learning rate."""
        self.updates_total = config.steps * config.epochs * config.minibatches
        self.once = config.epochs == 1 and config.minibatches == 1
        needs = estimator.needs
        if config.forward == "fused" and not (self.once and not needs.whole_batch and not needs.live):
            raise UserError("--forward fused needs --epochs 1, --minibatches 1 and no statistics over the whole batch")

    def run(self, batch: Batch) -> UpdateResult:
        """Read, estimate, and train the policy on a batch (B rollouts, T response tokens)."""
        groups = sorted({g for part in self.world.exchange(batch.group_B.tolist()) for g in part})
        done = self.updates_done
        while True:
            try:
                return self._run(batch, groups)
            except torch.OutOfMemoryError:
                if self.updates_done > done:
                    raise
            self._give_way(batch, together=self.world.size > 1)

    def _give_way(self, batch: Batch, together: bool = False) -> None:
        """Halve the micro-batches after memory ran out in one of this batch's; raises `UserError` where that can not help."""
        self.optimizer.zero_grad(set_to_none=True)
        together = together or self.policy.shards is not None
        self.budget = less_room(batch, self.budget, self.config, together)

    def _run(self, batch: Batch, groups: Sequence[int]) -> UpdateResult:
        tally = Tally(device=self.policy.device)
        batch, reads, estimate = self._prepare(batch, tally)
        if self.estimator.update_policy:
            for _ in range(self.config.epochs):
                for rows in split_groups(batch, self.config.minibatches, groups):
                    part = batch.select(rows)
                    part_estimate = None if estimate is None else self._estimate_of(part, rows, estimate, tally)
                    part_reads, part_estimate = self._optimizer_step(part, part_estimate, tally)
                    if estimate is None:
                        reads, estimate = part_reads, part_estimate
        assert estimate is not None
        return UpdateResult(reads, estimate, tally.gathered(self.world).metrics(), dict(tally.seconds))

    def gradient(self, batch: Batch) -> UpdateResult:
        """Accumulate the gradient of a batch in `.grad`, as `run` does, without an optimizer step."""
        tally = Tally(device=self.policy.device)
        batch, reads, estimate = self._prepare(batch, tally)
        fused_reads, estimate = self._accumulate(batch, estimate, tally)
        return UpdateResult(reads or fused_reads, estimate, tally.gathered(self.world).metrics(), dict(tally.seconds))

    def prepare(self, batch: Batch) -> Prepared:
        """Reads, estimate and weights of a batch, as `run` would use them; raises `ValueError` without `--forward prepass`."""
        batch, reads, estimate = self._prepare(batch, Tally(device=self.policy.device))
        if estimate is None:
            raise ValueError("the estimate is made with the gradient: give the configuration forward='prepass'")
        return Prepared(batch, reads, estimate, *self._weights(batch))

    def add_gradient(self, prepared: Prepared, rows: Sequence[int]) -> None:
        """Add to `.grad` what some rollouts of a prepared batch contribute to the gradient of the whole."""
        part, index = prepared.batch.select(rows), torch.tensor(list(rows), dtype=torch.long)
        estimate = _rows(prepared.estimate, rows, part)
        self._accumulate(
            part, estimate, Tally(device=self.policy.device), (prepared.weight_B[index], prepared.share_B[index])
        )

    def _prepare(self, batch: Batch, tally: Tally) -> tuple[Batch, Reads, Estimate | None]:
        """What happens before the first gradient: the pre-pass where one is needed, and the estimate where it can be."""
        reads: Reads = {}
        batch = self._with_reference(batch, tally)
        if self._prepass_needed(batch):
            batch, reads = self._prepass(batch, tally)
        self.read_at = self.updates_done
        fused = self.estimator.needs.reads_policy and batch.old_logp_BT is None
        return batch, reads, None if fused else self._advantages(batch, reads, tally)

    def _with_reference(self, batch: Batch, tally: Tally) -> Batch:
        """What a batch keeps of the reference: log-probs of its tokens; states, where several updates need the whole KL."""
        if self.reference is None:
            return batch
        with tally.timed("reference"), self.reference.gathered():
            if "sampled" in self.compared:
                batch = replace(batch, reference_logp_BT=self._logp(self.reference, batch))
            if "exact" in self.compared and not self.once:
                batch = replace(batch, reference_states=self._states(self.reference, batch))
        return batch

    @property
    def compared(self) -> set[str]:
        """Which terms of the reference the KL penalty and the estimator want: sampled, exact."""
        own = {"none": set(), "logp": {"sampled"}, "kl": {"exact"}}[self.estimator.needs.reference]
        penalty = {"exact" if self.objective.kl_estimator == "exact" else "sampled"}
        return own | (penalty if self.objective.kl_coef > 0 else set())

    def _estimate_of(self, part: Batch, rows: Sequence[int], whole: Estimate, tally: Tally) -> Estimate:
        """A mini-batch's share of the estimate; made anew for the current policy where the estimator is live."""
        if not self.estimator.needs.live:
            return _rows(whole, rows, part)
        if self.config.minibatches == 1 and self.read_at == self.updates_done:
            return whole
        reads = self._prepass(part, tally)[1]
        return self._advantages(part, reads, tally)

    def _prepass_needed(self, batch: Batch) -> bool:
        needs = self.estimator.needs
        if self.config.forward == "prepass" or not self.once or not self.estimator.update_policy:
            return True
        if not needs.reads_policy:
            return False
        plan = plan_microbatches(batch.tokens(), batch.groups(), self.budget)
        fusible = plan.whole_groups and not needs.whole_batch and not needs.live
        if self.policy.shards is not None:  # then a pre-pass is made by all or none
            fusible = all(self.world.exchange(fusible))
        if self.config.forward == "fused" and not fusible:
            raise UserError(
                f"--forward fused: a prompt group exceeds --tokens-per-microbatch {self.budget}; "
                "raise it or use --forward auto"
            )
        return not fusible

    def _states(self, reference: Policy, batch: Batch) -> list[Tensor] | None:
        """The reference's states of every rollout, in the batch's order; None where they are not to be had."""
        if reference.head.trunk is None:
            return None
        found: list[Tensor] = [torch.empty(0)] * batch.size
        for rows in plan_microbatches(batch.tokens(), batch.groups(), self.budget).micro:
            states = reference.states_of(batch.select(rows))
            if states is None:
                return None
            for row, state in zip(rows, states):
                found[row] = state
        return found

    @torch.no_grad()
    def _logp(self, model: Policy, batch: Batch) -> Tensor:
        """Log-probs of a batch under a reference [B, T], on the CPU."""
        logp: list[Tensor] = [torch.empty(0)] * batch.size
        for rows in plan_microbatches(batch.tokens(), batch.groups(), self.budget).micro:
            with model.active():
                forward = model.forward(batch.select(rows))
            for i, row in enumerate(rows):
                logp[row] = forward.logp_MT[i, : int(forward.length_M[i])].cpu()
        return pad(logp, batch.response_mask_BT.shape[1])

    def _prepass(self, batch: Batch, tally: Tally) -> tuple[Batch, Reads]:
        """One forward without gradient: old log-probs and reads, in the batch's order."""
        plan = plan_microbatches(batch.tokens(), batch.groups(), self.budget)
        collected: list[tuple[list[int], Reads]] = []
        logp: list[Tensor] = [torch.empty(0)] * batch.size
        needs = self.estimator.needs
        reference = self.reference if needs.reference == "kl" and needs.reads_policy else None
        with self.policy.gathered(), (reference or self.policy).gathered():
            for rows in plan.micro:
                with torch.no_grad(), tally.timed("forward_backward"):
                    forward = self.policy.forward(batch.select(rows), layers=needs.hidden_layers, reference=reference)
                if reference is not None:
                    tally.add_kl(forward)
                for i, row in enumerate(rows):
                    logp[row] = forward.logp_MT[i, : int(forward.length_M[i])].cpu()
                if needs.reads_policy:
                    with tally.timed("value"):
                        collected.append((rows, self.estimator.read(forward)))
        width = batch.response_mask_BT.shape[1]
        return replace(batch, old_logp_BT=pad(logp, width)), _gather(collected, batch.size)

    def _advantages(self, batch: Batch, reads: Reads, tally: Tally) -> Estimate:
        with tally.timed("value"):
            estimate = self.estimator.advantages(batch, reads)
        for key, value in estimate.metrics.items():
            tally.estimates[key].append(value)
        return estimate

    def _optimizer_step(self, batch: Batch, estimate: Estimate | None, tally: Tally) -> tuple[Reads, Estimate]:
        config = self.config
        reads, estimate = self._accumulate(batch, estimate, tally)
        with tally.timed("forward_backward"):
            peak, done, total = config.learning_rate or 0.0, self.updates_done, self.updates_total
            rate = scheduled(peak, config.lr_schedule, config.warmup_steps, done, total, self.spent)
            set_learning_rate(self.optimizer, rate)
            norm = clip_gradient(self.policy.model.parameters(), config.max_grad_norm)
            if math.isfinite(norm):
                with no_room_for_moments(self.config):
                    self.optimizer.step()
                tally.grad_norms.append(norm)
            else:
                tally.skipped += 1
            self.optimizer.zero_grad(set_to_none=True)
        self.updates_done += 1
        return reads, estimate

    def _accumulate(
        self, batch: Batch, estimate: Estimate | None, tally: Tally, weights: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Reads, Estimate]:
        """Forward and backward over all micro-batches, and gradients added up; without an `estimate` it is made on the way.

        `weights` are those of the rollouts where the batch is a part of a larger one.
        """
        weights = weights or self._weights(batch)
        while True:
            before = copy.deepcopy(tally)
            try:
                found = self._run_microbatches(batch, estimate, weights, tally)
                break
            except torch.OutOfMemoryError:
                if estimate is None:  # smaller micro-batches may need a pre-pass: the whole update begins anew
                    raise
            tally.restore(before)
            self._give_way(batch)
        tally.steps += 1
        with tally.timed("forward_backward"):
            add_up_gradients(self.policy.model, self.world)
            if self.reference is not None:
                self.reference.rest()
        return found

    def _run_microbatches(
        self, batch: Batch, estimate: Estimate | None, weights: tuple[Tensor, Tensor], tally: Tally
    ) -> tuple[Reads, Estimate]:
        """Forward and backward over all micro-batches; where `estimate` is None it is made on the way (fused)."""
        weight_B, share_B = weights
        plan = plan_microbatches(batch.tokens(), batch.groups(), self.budget)
        collected: list[tuple[list[int], Reads]] = []
        made: list[tuple[list[int], Estimate]] = []
        reference = self.reference if self._exact_kl_wanted(estimate is None) else None
        kl_grad = self.objective.kl_coef > 0 or self.estimator.needs.kl_grad
        for rows in self.policy.in_step(plan.micro):
            if not rows:
                self.policy.idle(reference, batch.reference_states is not None, kl_grad)
                continue
            micro = batch.select(rows)
            with tally.timed("forward_backward"):
                forward = self.policy.forward(
                    micro,
                    layers=self.estimator.needs.hidden_layers if estimate is None else (),
                    entropy_grad=self.objective.entropy_coef > 0,
                    reference=reference,
                    kl_grad=kl_grad,
                )
            if estimate is None:
                with tally.timed("value"):
                    reads = self.estimator.read(forward)
                collected.append((rows, reads))
                part = self._advantages(micro, reads, tally)
                made.append((rows, part))
            else:
                part = _rows(estimate, rows, micro)
            with tally.timed("forward_backward"):
                loss = self._loss(forward, micro, part, (weight_B[rows], share_B[rows]), tally)
                loss.backward()  # type: ignore[no-untyped-call]
        if estimate is not None:
            return {}, estimate
        return _gather(collected, batch.size), _assemble(made, batch)

    def _exact_kl_wanted(self, reading: bool) -> bool:
        """Whether a training forward takes the KL over the vocabulary: for the loss, or because it feeds `read`."""
        needs = self.estimator.needs
        own = needs.reference == "kl" and (reading or needs.kl_grad or not needs.reads_policy)
        return own or (self.objective.kl_coef > 0 and self.objective.kl_estimator == "exact")

    def _weights(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each rollout's weight [B] in the token losses and in the estimator's own loss, over all processes' rollouts."""
        trained_B = batch.trained_B(self.objective.mask_truncated)
        length_B = batch.length_B * trained_B
        rows, tokens = self.world.sum(torch.tensor([batch.size, int(length_B.sum())], dtype=torch.float64)).tolist()
        weight_B = rollout_weights(self.objective.aggregation, length_B, self.objective.constant, (rows, tokens))
        return weight_B, trained_B.double() / max(1.0, rows)

    def _loss(
        self, forward: Forward, micro: Batch, part: Estimate, weights: tuple[Tensor, Tensor], tally: Tally
    ) -> Tensor:
        """Surrogate, entropy bonus, KL and the estimator's own term of one micro-batch; a scalar.

        `weights` [M] are those of token losses and of the estimator's own loss.
        """
        objective, logp_MT, device = self.objective, forward.logp_MT, forward.logp_MT.device
        mask_MT = forward.mask_MT & micro.trained_B(objective.mask_truncated).to(device)[:, None]
        old_MT = logp_MT.detach() if micro.old_logp_BT is None else micro.old_logp_BT.to(device)
        advantage_MT = part.advantage_BT.to(device=device, dtype=logp_MT.dtype)
        weight_M, share_M = (w.to(device=device, dtype=logp_MT.dtype) for w in weights)
        tokens = policy_loss(logp_MT, old_MT, advantage_MT, mask_MT, objective)
        corrected, share_M = self._corrected(micro, old_MT, mask_MT, share_M, tally)
        surrogate = weighted_sum(corrected(tokens.loss_MT), mask_MT, weight_M)
        loss = surrogate
        if objective.entropy_coef > 0:
            loss = loss - objective.entropy_coef * weighted_sum(forward.entropy_MT, mask_MT, weight_M)
        if objective.kl_coef > 0:
            kl_MT = self._kl(forward, old_MT)
            kl_MT = kl_MT if objective.kl_estimator == "exact" else corrected(kl_MT)
            loss = loss + objective.kl_coef * weighted_sum(kl_MT, mask_MT, weight_M)
        tally.add_kl(forward, objective.kl_estimator)
        own = self.estimator.loss(forward, micro, part, share_M)
        if own is not None:
            loss = loss + own
            tally.loss_value = (tally.loss_value or 0.0) + float(own.detach())
        tally.loss_policy += float(surrogate.detach())
        tally.entropy += float(forward.entropy_MT.detach()[mask_MT].sum())
        tally.clipped += float(tokens.clipped_MT[mask_MT].sum())
        tally.ratio_max = max(tally.ratio_max, float(tokens.ratio_MT[mask_MT].max()) if bool(mask_MT.any()) else 0.0)
        tally.tokens += int(mask_MT.sum())
        return loss

    def _corrected(
        self, micro: Batch, old_MT: Tensor, mask_MT: Tensor, share_M: Tensor, tally: Tally
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """How losses of sampled tokens [M, T] are weighted where an engine of other kernels sampled, and rollouts' shares."""
        if micro.behaviour_logp_BT is None:
            return (lambda loss_MT: loss_MT), share_M
        objective, behaviour_MT = self.objective, micro.behaviour_logp_BT.to(old_MT)
        found = compare(old_MT, behaviour_MT, mask_MT, objective.mismatch_correction, objective.mismatch_cap)
        tally.add_mismatch(found, mask_MT, objective.mismatch_correction)
        if objective.mismatch_correction == "none":
            return (lambda loss_MT: loss_MT), share_M
        return (lambda loss_MT: loss_MT * found.weight_MT), share_M * found.of_rollouts(mask_MT)

    def _kl(self, forward: Forward, old_MT: Tensor) -> Tensor:
        """The KL to the reference at each token as a loss [M, T]."""
        if self.objective.kl_estimator == "exact":
            assert forward.kl_MT is not None
            return forward.kl_MT
        assert forward.reference_logp_MT is not None
        return kl_penalty(forward.logp_MT, old_MT, forward.reference_logp_MT, self.objective)


def _rows(estimate: Estimate, rows: Sequence[int], part: Batch) -> Estimate:
    """The rows of an estimate that belong to a part of the batch."""
    index = torch.tensor(list(rows), dtype=torch.long)
    width = part.response_mask_BT.shape[1]
    kept = {name: found[index] if found.dim() == 1 else found[index, :width] for name, found in estimate.kept.items()}
    pull_B = None if estimate.pull_B is None else estimate.pull_B[index]
    return Estimate(estimate.advantage_BT[index, :width], estimate.value_BT[index, :width], kept=kept, pull_B=pull_B)


def _gather(collected: Sequence[tuple[list[int], Reads]], size: int) -> Reads:
    """Join the reads of micro-batches in the batch's order; what has tokens (`NAME_MT`) is padded to the longest."""
    order = torch.tensor([i for rows, _ in collected for i in rows], dtype=torch.long)
    position = torch.empty(size, dtype=torch.long)
    position[order] = torch.arange(len(order))
    names = collected[0][1].keys() if collected else ()
    return {name: _joined(name, [reads[name] for _, reads in collected])[position] for name in names}


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    if not name.endswith("_MT"):
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def _assemble(made: Sequence[tuple[list[int], Estimate]], batch: Batch) -> Estimate:
    """Join the estimates of micro-batches in the batch's order, padded to its T. What was kept for the loss is used up."""
    shape = batch.response_mask_BT.shape
    kinds = (made[0][1].advantage_BT.dtype, made[0][1].value_BT.dtype) if made else (torch.float64, torch.float64)
    advantage_BT, value_BT = (torch.zeros(shape, dtype=kind) for kind in kinds)
    for rows, part in made:
        width = part.advantage_BT.shape[1]
        advantage_BT[rows, :width] = part.advantage_BT
        value_BT[rows, :width] = part.value_BT
    return Estimate(advantage_BT, value_BT, pull_B=_assembled_pull(made, len(value_BT)))


def _assembled_pull(made: Sequence[tuple[list[int], Estimate]], size: int) -> Tensor | None:
    parts = [(rows, part.pull_B) for rows, part in made if part.pull_B is not None]
    pull_B = torch.zeros(size, dtype=torch.float64)
    for rows, part_B in parts:
        pull_B[rows] = part_B.double()
    return pull_B if parts else None
