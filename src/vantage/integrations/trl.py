"""TRL's `GRPOTrainer` with advantages from a Vantage estimator.

    from vantage.integrations.trl import VantageGRPOTrainer
    VantageGRPOTrainer(algo="rloo", model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=...).train()

TRL generates, rewards, and trains with its own loss; only the advantages are replaced (`scale_rewards` means nothing
then). Estimators that read rewards alone (rloo, grpo, dr_grpo, reinforce) cost nothing extra. One that reads the policy
(poise) costs one forward pass without gradient over each generated batch, since TRL's own passes keep neither hidden states
nor entropies: about a third of the time of forward and backward. Vantage's own trainer reads in the pass that trains.
Checked against TRL 1.16.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.batch import Batch, plan_microbatches
from vantage.checkpoint import load_state, save_state
from vantage.diagnostics import first_value, value_metrics
from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Estimate, Estimator, Reads, Setup, State
from vantage.integrations.common import build, response_batch
from vantage.models.loading import end_token_ids, think_end_ids
from vantage.policy import Policy
from vantage.requirements import NAME

CARRIES = ("hidden_layers", "reads_policy", "whole_batch", "learn")
STATE = "vantage-estimator"
"""Files with the estimator's state in each of TRL's checkpoints."""


class EstimatorAdvantages:
    """The part of the trainer that is Vantage's; `trainer_class` joins it with TRL's `GRPOTrainer`."""

    def __init__(
        self, *args: Any, algo: str | Algorithm, reward_range: tuple[float, float] = (0.0, 1.0), **kwargs: Any
    ) -> None:
        """All other arguments are those of `GRPOTrainer`.

        `algo` is a name as `--algo` takes it, or an algorithm's options; `reward_range` the smallest and largest total reward,
        to which value estimates are clipped. Raises `UserError` for an estimator that TRL's seam can not carry.
        """
        super().__init__(*args, **kwargs)
        own: Any = self
        if own.args.multi_objective_aggregation != "sum_then_normalize":
            raise UserError(
                f"multi_objective_aggregation is {own.args.multi_objective_aggregation!r}: the estimator takes one total "
                "reward; use 'sum_then_normalize'"
            )
        self.generation = 0
        """Batches that were generated: the estimator's step."""
        self._rewards: Tensor | None = None
        self._policy = self._policy_view()
        self.estimator: Estimator = build(algo, self._setup(reward_range), host="TRL's GRPOTrainer", carries=CARRIES)
        if self.estimator.needs.reads_policy and (own.is_fsdp_enabled or own.is_deepspeed_enabled):
            raise UserError(
                "an estimator that reads the policy needs it whole on each device: not under FSDP or DeepSpeed"
            )

    def _policy_view(self) -> Policy:
        own: Any = self
        model = own.accelerator.unwrap_model(own.model)
        was = model.training
        policy = Policy(model, own.processing_class, temperature=own.args.temperature)
        model.train(was)
        return policy

    def _setup(self, reward_range: tuple[float, float]) -> Setup:
        own, policy = self, self._policy
        arguments: Any = own.args  # type: ignore[attr-defined]
        return Setup(
            num_layers=policy.num_layers,
            hidden_size=policy.hidden_size,
            rollouts_per_prompt=arguments.num_generations,
            reward_range=reward_range,
            think_end_ids=think_end_ids(policy),
            end_ids=end_token_ids(policy),
        )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's, [all rollouts of all processes, functions]; kept until the advantages are made."""
        found: Tensor = super()._calculate_rewards(*args, **kwargs)  # type: ignore[misc]
        self._rewards = found
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's, with other advantages: [B], or [B, T] where they differ within a response."""
        own: Any = self
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if own.model.training:
            self.generation += 1
            output["advantages"] = self._advantages(output).to(output["advantages"])
        return output

    def _advantages(self, output: dict[str, Any]) -> Tensor:
        """Advantages of this process's rollouts; the estimator sees, and learns from, those of all processes."""
        own: Any = self
        local = self._local(output)
        reads = self._read(local, output) if self.estimator.needs.reads_policy else {}
        whole, reads = self._gathered(local, reads)
        estimate = self.estimator.advantages(whole, reads)
        learned = self.estimator.learn(
            whole, reads, estimate
        )  # the advantages above are made: it can not see into them
        values = value_metrics(first_value(estimate, whole.response_mask_BT), whole.outcome_B)
        for name, number in (values | dict(learned)).items():
            own._metrics["train"][name].append(number)
        per_response_B = estimate.advantage_BT.sum(1) / whole.length_B.clamp(min=1)
        self._show(per_response_B)
        count, start = local.size, own.accelerator.process_index * local.size
        return self._rows(estimate, whole, slice(start, start + count), output["completion_ids"].shape[1])

    def _local(self, output: dict[str, Any]) -> Batch:
        """This process's rollouts, with token ids; rewards are put in once those of all processes are there."""
        prompts = _unpadded(output["prompt_ids"], output["prompt_mask"])
        responses = _unpadded(output["completion_ids"], output["completion_mask"])
        empty_B = torch.zeros(len(prompts))
        return response_batch(
            self.generation, empty_B, empty_B.long(), [len(ids) for ids in responses], prompts, responses
        )

    @torch.no_grad()
    def _read(self, batch: Batch, output: dict[str, Any]) -> Reads:
        """The estimator's reads, from a forward pass of our own."""
        own: Any = self
        if "tool_mask" in output or "pixel_values" in output:
            raise UserError("an estimator that reads the policy can not read rollouts with tools or images inside TRL")
        model, tokens = self._policy.model, batch.tokens()
        budget = own.args.per_device_train_batch_size * max(tokens)
        was = model.training
        model.eval()
        try:
            parts: dict[str, list[Tensor]] = {}
            order: list[int] = []
            for rows in plan_microbatches(tokens, [[i] for i in range(batch.size)], budget).micro:
                with own.accelerator.autocast():
                    forward = self._policy.forward(batch.select(rows), layers=self.estimator.needs.hidden_layers)
                order += rows
                for name, value in self.estimator.read(forward).items():
                    parts.setdefault(name, []).append(value)
        finally:
            model.train(was)
        position = torch.tensor(order).argsort()
        return {name: torch.cat(found)[position] for name, found in parts.items()}

    def _gathered(self, local: Batch, reads: Reads) -> tuple[Batch, Reads]:
        """Rollouts, rewards and reads of all processes, in TRL's order: siblings beside each other."""
        own: Any = self
        assert self._rewards is not None
        weights = own.reward_weights.to(self._rewards)
        reward_B = (self._rewards * weights).nansum(1).masked_fill(self._rewards.isnan().all(1), float("nan"))
        parts: list[tuple[list[list[int]], list[list[int]], dict[str, Tensor]]]
        mine = (local.prompt_ids, local.response_ids, dict(reads))
        parts = [mine]
        if own.accelerator.num_processes > 1:
            parts = importlib.import_module("accelerate.utils").gather_object([mine])
        prompts = [ids for part in parts for ids in part[0]]
        responses = [ids for part in parts for ids in part[1]]
        group_B = torch.arange(len(responses)) // own.num_generations
        whole = response_batch(self.generation, reward_B, group_B, [len(ids) for ids in responses], prompts, responses)
        return whole, {name: torch.cat([part[2][name] for part in parts]) for name in reads}

    def _show(self, advantage_B: Tensor) -> None:
        """TRL has put its own advantages into its table of completions: replace them."""
        own: Any = self
        shown = own._logs["advantages"]
        for _ in range(min(len(shown), len(advantage_B))):
            shown.pop()
        shown.extend(advantage_B.tolist())

    def _rows(self, estimate: Estimate, whole: Batch, rows: slice, width: int) -> Tensor:
        """Some rollouts' advantages: [B] where each response has one number, as every loss of TRL's takes it."""
        advantage_BT, mask_BT = estimate.advantage_BT[rows], whole.response_mask_BT[rows]
        first_B = advantage_BT[:, 0] if advantage_BT.shape[1] else advantage_BT.sum(1)
        if bool((advantage_BT == torch.where(mask_BT, first_B[:, None], 0.0)).all()):
            return first_B
        padded_BT = advantage_BT.new_zeros((len(advantage_BT), width))
        padded_BT[:, : min(width, advantage_BT.shape[1])] = advantage_BT[:, :width]
        return padded_BT

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """TRL's checkpoint, and in it the estimator's state."""
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        own: Any = self
        if own.args.should_save:
            state = self.estimator.state_dict()
            values = {"generation": self.generation, "estimator": dict(state.values)}
            folder = Path(own._get_output_dir(trial=None)) / f"checkpoint-{own.state.global_step}"
            save_state(folder / STATE, State(state.tensors, values))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """The estimator goes on where the checkpoint left it; raises `UserError` where its state is missing."""
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        state = load_state(Path(resume_from_checkpoint) / STATE, "the estimator's state")
        self.generation = int(state.values["generation"])
        self.estimator.load_state_dict(State(state.tensors, state.values["estimator"]))


def _unpadded(ids_BT: Tensor, mask_BT: Tensor) -> list[list[int]]:
    rows: Sequence[tuple[Tensor, Tensor]] = list(zip(ids_BT.cpu(), mask_BT.cpu().bool()))
    return [ids[mask].tolist() for ids, mask in rows]


@functools.cache
def trainer_class() -> type[Any]:
    """`VantageGRPOTrainer`; raises `UserError` where TRL is not installed."""
    try:
        base: Any = importlib.import_module("trl").GRPOTrainer
    except ImportError as error:
        raise UserError(f'vantage.integrations.trl needs the package trl; pip install "{NAME}[trl]"') from error
    return type("VantageGRPOTrainer", (EstimatorAdvantages, base), {"__doc__": EstimatorAdvantages.__doc__})


def __getattr__(name: str) -> Any:
    """The class is made when it is first asked for, so that importing this module does not import TRL."""
    if name == "VantageGRPOTrainer":
        return trainer_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
