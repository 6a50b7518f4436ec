"""One policy that stands still, independent blocks of its rollouts, and estimators that have learnt from others of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vantage.audit.plan import Audit
from vantage.batch import Batch
from vantage.collect import Collected
from vantage.config import TrainConfig
from vantage.estimators.base import Algorithm, Estimator
from vantage.estimators.reinforce import Reinforce
from vantage.estimators.rloo import Rloo
from vantage.policy import Policy
from vantage.shaping import overlong_penalty
from vantage.trainer import Trainer
from vantage.update import PolicyUpdate


class Setting:
    """Rollouts and estimators of an audit; what was drawn is kept, and every draw depends on the seed alone."""

    def __init__(self, audit: Audit) -> None:
        self.audit = audit
        self.policy: Policy = Trainer(TrainConfig(**audit.shared(Rloo(), 2))).policy
        self._past: dict[int, list[Collected]] = {}
        self._steps = audit.fill_steps

    def trainer(self, algo: Algorithm, members: int, **changes: Any) -> Trainer:
        """A trainer around this policy that trains nothing and writes nothing."""
        return Trainer(TrainConfig(**self.audit.shared(algo, members, **changes)), policy=self.policy)

    def past(self, members: int) -> list[Collected]:
        """Steps to learn from, in groups of `members`; no block has their prompts."""
        if members not in self._past:
            source = self.trainer(Reinforce(), members)
            prompts = source.config.prompts
            self._past[members] = [
                source.collector(step, source.stream, (step - 1) * prompts)
                for step in range(1, self.audit.fill_steps + 1)
            ]
        return self._past[members]

    def block(self, index: int) -> Collected:
        """`drawn` rollouts of each of a block's `prompts`, siblings adjacent."""
        audit = self.audit
        source = self.trainer(Rloo(), audit.drawn, rollouts_per_step=audit.prompts * audit.drawn)
        first = audit.fill_steps * audit.rollouts_per_step + index * audit.prompts
        return source.collector(10**6 + index, source.stream, first)

    def update(self, algo: Algorithm, members: int, **changes: Any) -> PolicyUpdate:
        """Forward and backward with an estimator that has learnt from the past in groups of `members`."""
        update = self.trainer(algo, members, **changes).update
        if type(update.estimator).learn is not Estimator.learn:
            for collected in self.past(members):
                batch = asked(update, collected)[0]
                prepared = update.prepare(batch)
                update.estimator.learn(prepared.batch, prepared.reads, prepared.estimate)
        return update

    def next_step(self) -> int:
        """A number that no step has had: what is generated for values depends on it."""
        self._steps += 1
        return self._steps


def asked(update: PolicyUpdate, collected: Collected) -> tuple[Batch, float]:
    """The batch with what the estimator's `query` found, and the tokens that it generated for that."""
    queried = update.estimator.query(collected)
    return replace(collected.batch, queried=queried.reads), float(queried.metrics.get("tokens/value_extra", 0.0))


def picked(collected: Collected, rows: Sequence[int], group: Sequence[int], step: int) -> Collected:
    """Some rollouts of a step as a step of their own, in groups as given (one number a row)."""
    batch = replace(collected.batch.select(rows), step=step, group_B=torch.tensor(list(group), dtype=torch.long))
    reward = float(batch.outcome_B[batch.scorable_B].mean()) if bool(batch.scorable_B.any()) else float("nan")
    return replace(
        collected,
        batch=batch,
        problems=[collected.problems[i] for i in rows],
        texts=[collected.texts[i] for i in rows],
        rollouts=[collected.rollouts[i] for i in rows],
        extras=[collected.extras[i] for i in rows],
        metrics={**collected.metrics, "reward/mean": reward},
        consumed=len(set(group)),
        groups=len(set(group)),
    )


def shaped(batch: Batch, config: TrainConfig) -> Batch:
    """What the policy is paid under a configuration's overlong shaping; outcomes stay."""
    penalty_B = overlong_penalty(batch.length_B, config.max_new_tokens or 1, config.overlong_buffer or 0)
    return replace(batch, reward_B=batch.outcome_B - config.overlong_penalty * penalty_B)


def kept_groups(batch: Batch, config: TrainConfig) -> list[int]:
    """Rows that a group filter leaves."""
    if config.group_filter != "equal":
        return list(range(batch.size))
    from vantage.advantages import group_spread

    keep_B = group_spread(batch.outcome_B, batch.group_B, batch.scorable_B) > 0
    return [i for i, keep in enumerate(keep_B.tolist()) if keep]
