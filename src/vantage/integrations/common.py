"""What another trainer's seam can carry of an estimator, and what it can not: checked before anything is trained.

Another trainer owns rollouts, loss and optimizer. What it hands over are rewards, lengths and prompt groups; some also let
us look at the policy. An estimator that needs more is refused in one line that names what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.errors import UserError
from vantage.estimators import get_algorithm
from vantage.estimators.base import Algorithm, Estimator, Needs, Setup

CARRIED = {
    "hidden_layers": "hidden states of the policy",
    "reads_policy": "what the policy's forward pass yields (entropies, hidden states)",
    "whole_batch": "the reads of the whole batch",
    "live": "advantages that follow the policy from one optimizer step to the next",
    "reference": "log-probs of a reference model",
    "kl_grad": "the gradient of a KL to a reference model",
}
"""Words for fields of `Needs`; one that is not listed is named as it is."""
SERVICES = "generation and models of the estimator's own before each update"


def algorithm(spec: str | Algorithm) -> Algorithm:
    """Options of an algorithm: as they are, or the defaults of a name that `--algo` takes. Raises `UserError`."""
    return spec if isinstance(spec, Algorithm) else get_algorithm(spec)()


def build(spec: str | Algorithm, setup: Setup, *, host: str, carries: Collection[str] = ()) -> Estimator:
    """The estimator, once it is sure that `host` can carry it.

    `carries` are the fields of `Needs` that the host can meet, and `learn` where it calls that hook and keeps state.

    Raises:
        UserError: the estimator needs what the host does not give; the message names it.
    """
    algo = algorithm(spec)
    try:
        estimator = algo.build(setup)
        lacking = missing(algo, estimator, carries)
    except ValueError:  # of `Setup.working`: there is no trainer of ours
        lacking = [SERVICES]
    if lacking:
        raise UserError(
            f"{algo.name} inside {host}: missing {'; '.join(lacking)}. vantage train --algo {algo.name} has it"
        )
    if setup.rollouts_per_prompt < algo.rollouts_min:
        raise UserError(
            f"{algo.name} inside {host}: {setup.rollouts_per_prompt} rollouts per prompt, it compares at least "
            f"{algo.rollouts_min}"
        )
    return estimator


def missing(algo: Algorithm, estimator: Estimator, carries: Collection[str]) -> list[str]:
    """What the estimator needs beyond rewards, lengths, groups and what the host carries, in words."""
    needs, plain = estimator.needs, Needs()
    lacking = [
        CARRIED.get(field.name, f"`{field.name}`")
        for field in dataclasses.fields(Needs)
        if field.name not in carries and getattr(needs, field.name) != getattr(plain, field.name)
    ]
    if type(estimator).loss is not Estimator.loss:
        lacking.append("a loss term of the estimator's own")
    if type(estimator).query is not Estimator.query:
        lacking.append(SERVICES)
    if type(estimator).learn is not Estimator.learn and "learn" not in carries:
        lacking.append("a call after each update to learn from it, and state in checkpoints")
    if not estimator.update_policy:
        lacking.append("steps in which the policy rests")
    if algo.defaults.group_filter != "none":
        lacking.append("dynamic sampling (groups of equal reward are replaced)")
    return lacking


def response_batch(
    step: int,
    reward_B: Tensor,
    group_B: Tensor,
    lengths: Sequence[int],
    prompt_ids: Sequence[Sequence[int]] | None = None,
    response_ids: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Rollouts of another trainer as a `Batch`: rewards [B] (NaN: unscorable), prompt groups [B], response lengths.

    Token ids are needed only where an estimator reads the policy. Rewards are computed with in float64.
    """
    reward_B = reward_B.detach().double().cpu()
    scorable_B = reward_B.isfinite()
    return Batch(
        step=step,
        prompt_ids=[list(ids) for ids in prompt_ids] if prompt_ids is not None else [[0] for _ in lengths],
        response_ids=[list(ids) for ids in response_ids] if response_ids is not None else [[0] * n for n in lengths],
        group_B=group_B.cpu(),
        outcome_B=torch.where(scorable_B, reward_B, torch.full_like(reward_B, float("nan"))),
        reward_B=torch.where(scorable_B, reward_B, torch.zeros_like(reward_B)),
        scorable_B=scorable_B,
        domains=["default"] * len(lengths),
    )


def grpo_arguments(spec: str | Algorithm) -> dict[str, Any]:
    """What TRL's `GRPOConfig` must say for the loss that Vantage would use with an algorithm: clip range and aggregation."""
    own = algorithm(spec).defaults
    names = {"token-mean": "dapo", "seq-mean-token-mean": "grpo", "seq-mean-token-sum-norm": "dr_grpo"}
    return {"epsilon": own.clip_low, "epsilon_high": own.clip_high, "loss_type": names[own.aggregation]}
