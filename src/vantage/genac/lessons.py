"""Where do the supervised stage's lessons come from, and how is it held? Shared by `vantage train` and `vantage critic sft`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import Services
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import Critic
from vantage.genac.harvest import Seen, harvest, with_truth
from vantage.genac.oracle import has_oracle, teacher_traces, world_trace, world_traces
from vantage.genac.parsing import Tag
from vantage.genac.prompt import characterwise
from vantage.genac.sft import Schooling, school
from vantage.genac.start import begin
from vantage.genac.traces import Trace, balanced, encoded, read_traces, usable
from vantage.models.holding import ModelOptions
from vantage.segments import Splitter

if TYPE_CHECKING:
    from vantage.estimators.genac import Genac
    from vantage.tasks.base import Task

MICROBATCH, MICROBATCH_CPU = 16384, 1024
"""Tokens of a micro-batch of lessons where the run does not say otherwise; small ones are padded less."""
SFT_SEED = 1_000_003
"""Added to the seed: the rollouts that a teacher judges are none of training's."""
SIBLINGS = 8
"""Rollouts of each problem for a teacher."""
STATES = 2
"""New states of a response, about: siblings share the others."""
BATCH, RATE, EPOCHS = 64, 1e-5, 2
CHARACTER_BATCH, CHARACTER_RATE, CHARACTER_STEPS = 16, 2e-3, 1600
"""A small critic learns more from many small steps than from few large ones, in the same time."""


def source_of(options: Genac, services: Services) -> str:
    """Who teaches: `traces`, `teacher`, `world`, or nobody (an empty text)."""
    if options.traces is not None:
        return "traces"
    if options.teacher is not None:
        return "teacher"
    return "world" if has_oracle(services.workload.task) else ""


def lessons(
    options: Genac, services: Services, critic: Critic, actor: ActorFacts, splitter: Splitter, world: World
) -> tuple[list[Trace], int, list[str]]:
    """Filtered and balanced traces, the tokens that were generated for them, and what there is to say; raises `UserError`."""
    wanted, seed, tokens = options.sft_examples, services.config.seed + SFT_SEED, 0
    source = source_of(options, services)
    if source == "traces":
        traces = read_traces(Path(options.traces or "").expanduser())
    elif source == "teacher":
        traces, tokens = _taught(options, services, critic, actor, splitter, world, seed)
    elif source == "world":
        traces, tokens = _by_the_world(options, services, critic, actor, splitter, world, seed)
    else:
        raise UserError(
            f"--task {services.workload.task.name}: it has no critiques of its own; give --genac.traces or --genac.teacher"
        )
    kept, reasons = usable(
        traces, critic.tag, critic.policy.tokenizer, critic.sampling.max_new_tokens, options.sft_tolerance
    )
    said = [f"{count} of {len(traces)} traces are left out: {why}" for why, count in reasons.items()]
    if not kept:
        where = f"--task {services.workload.task.name}" if source == "world" else f"--genac.{source}"
        raise UserError(f"{where}: no trace is left to learn from; {'; '.join(said) or 'there was none'}")
    return balanced(kept, wanted), tokens, said


def _by_the_world(
    options: Genac, services: Services, critic: Critic, actor: ActorFacts, splitter: Splitter, world: World, seed: int
) -> tuple[list[Trace], int]:
    """The task's own critiques, of the policy's states and of demonstrations; more of these where the policy has too few."""
    task, wanted, limit = services.workload.task, options.sft_examples, services.sampling.max_new_tokens
    seen, tokens = list[Seen](), 0
    if own := round(options.sft_own * wanted):
        seen, tokens = _measured(options, services, actor, splitter, world, seed, own)
    mine = [written(task, s, actor, critic.tag) for s in seen]
    others = world_traces(task, wanted - len(mine), seed, critic.tag, services.policy.tokenizer, limit, actor)
    return balanced(others, wanted - len(mine)) + mine, tokens


def _taught(
    options: Genac, services: Services, critic: Critic, actor: ActorFacts, splitter: Splitter, world: World, seed: int
) -> tuple[list[Trace], int]:
    """States of the actor's own rollouts, judged by a stronger model with the critic's prompt."""
    config = services.config
    teacher = begin(
        options.teacher, model=config.model, task=config.task, policy=services.policy, device=services.policy.device,
        template=options.template, icc=options.icc, critic_tokens=critic.sampling.max_new_tokens,
        generation_batch=config.generation_batch, chunk_tokens=config.logit_chunk_tokens,
        hold=ModelOptions(config.precision, config.attention),
    ).critic  # fmt: skip
    chosen, tokens = _measured(options, services, actor, splitter, world, seed, options.sft_examples)
    teacher.template = replace(critic.template)  # it reads what the critic reads, and answers as the critic should
    traces, spent = teacher_traces(teacher, [s.trace for s in chosen], seed)
    return traces, tokens + spent


def _measured(
    options: Genac, services: Services, actor: ActorFacts, splitter: Splitter, world: World, seed: int, count: int
) -> tuple[list[Seen], int]:
    """About `count` states of the actor's own rollouts, of all kinds, with their truth where continuations are wanted."""
    problems = max(1, math.ceil(2 * count / (SIBLINGS * STATES)))
    seen, tokens = harvest(services, splitter, actor, problems=problems, rollouts=SIBLINGS, seed=seed, world=world)
    chosen = _balanced(seen, count)
    if options.sft_continuations:
        chosen, spent = with_truth(services, chosen, k=options.sft_continuations, seed=seed, world=world)
        tokens += spent
    return chosen, tokens


def written(task: Task, seen: Seen, actor: ActorFacts, tag: Tag) -> Trace:
    """The world's words on a state that the actor came to, with the score for its truth where that is known."""
    old = seen.trace
    made = world_trace(
        task, seen.state.problem, old.prefix, actor, tag, used=old.used, limit=old.limit, value=old.truth
    )  # fmt: skip
    return replace(made, position=old.position, outcome=old.outcome, truth=old.truth)


def _balanced(seen: list[Seen], count: int) -> list[Seen]:
    by_trace = {id(s.trace): s for s in seen}
    return [by_trace[id(trace)] for trace in balanced([s.trace for s in seen], count)]


def teach(
    options: Genac,
    critic: Critic,
    traces: list[Trace],
    seed: int,
    world: World,
    say: Callable[[str], None],
    tokens_per_microbatch: int | None = None,
) -> float:
    """The supervised stage itself; returns its last loss in nats a token."""
    spelled = characterwise(critic.policy.tokenizer)
    batch = options.sft_batch or (CHARACTER_BATCH if spelled else BATCH)
    steps = options.sft_steps
    if steps is None:
        steps = CHARACTER_STEPS if spelled else math.ceil(EPOCHS * len(traces) / batch)
    plan = Schooling(steps, batch, options.sft_learning_rate or (CHARACTER_RATE if spelled else RATE), seed=seed)
    pairs = encoded(traces, critic.template, critic.policy.tokenizer)
    budget = tokens_per_microbatch or (MICROBATCH_CPU if critic.policy.device.type == "cpu" else MICROBATCH)
    return school(critic.policy, pairs, plan, world=world, tokens_per_microbatch=budget, say=say)
