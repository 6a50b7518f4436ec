"""How does the critic learn from an oracle? Maximum likelihood of the traces' completions, and of nothing in the prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vantage.distributed.world import World
from vantage.genac.reinforce import CriticTrainer, Example
from vantage.optimization import scheduled
from vantage.policy import Policy
from vantage.randomness import Stream, permutation

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Schooling:
    """How the supervised stage goes."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-5
    warmup_share: float = 0.03
    """Share of the steps over which the learning rate rises; then it falls to 0 along a line."""
    weight_decay: float = 0.01
    seed: int = 0


def school(
    policy: Policy,
    pairs: Sequence[Pair],
    plan: Schooling,
    *,
    world: World | None = None,
    tokens_per_microbatch: int = 16384,
    say: Callable[[str], None] | None = None,
) -> float:
    """Train on prompts and completions; returns the last step's loss in nats a token.

    That is REINFORCE with the weight 1 for every completion, so the normaliser and the processes are handled there.
    """
    world = world or World()
    trainer = CriticTrainer(
        policy,
        learning_rate=0.0,
        weight_decay=plan.weight_decay,
        tokens_per_microbatch=tokens_per_microbatch,
        world=world,
    )
    loss = math.nan
    for step in range(plan.steps):
        drawn = drawn_pairs(pairs, plan.batch_size, plan.seed, step)
        mine = [Example(*drawn[i], reward=1.0, target=1.0) for i in world.share(len(drawn))]
        warmup = math.ceil(plan.warmup_share * plan.steps)
        trainer.learning_rate = scheduled(plan.learning_rate, "linear", warmup, step, plan.steps)
        loss = trainer.step(mine, [1.0] * len(mine)).loss
        if say is not None and ((step + 1) % 50 == 0 or step + 1 == plan.steps):
            say(f"supervised step {step + 1}/{plan.steps}, {loss:.4f} nats a token")
    return loss


def drawn_pairs(pairs: Sequence[Pair], count: int, seed: int, step: int) -> list[Pair]:
    """The step's batch: consecutive places of seeded permutations, one for each epoch."""
    found, epoch = [], -1
    for place in range(step * count, (step + 1) * count):
        if place // len(pairs) != epoch:
            epoch = place // len(pairs)
            order = permutation(seed, Stream.SFT, epoch, len(pairs))
        found.append(pairs[int(order[place % len(pairs)])])
    return found
