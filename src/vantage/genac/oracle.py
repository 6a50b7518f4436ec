"""Who knows what should be said of a state? A world itself, or a stronger model that reads the critic's prompt.

A world's critiques are made from demonstrations with slips, by solvers of every skill: the critic learns to read the success
rate in its prompt, and no actor has to generate anything. A model's are sampled several times; the one nearest to what
continuations say (where that is known) is kept. The teacher never sees an outcome or an answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from vantage.errors import UserError
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import Critic
from vantage.genac.parsing import Tag, score_of
from vantage.genac.prompt import StateView
from vantage.genac.traces import Trace, best_of
from vantage.prompting import decode_response
from vantage.randomness import Stream, key
from vantage.tasks.base import Criticised, Problem, Task
from vantage.tasks.critique import success_rate

MOST_SLIPS = 0.6
"""Solvers slip in each step with a probability between 0 and this, evenly."""
SPARE = 2
"""Times as many traces are made as are wanted, so that all kinds can be had in equal shares."""


def has_oracle(task: Task) -> bool:
    """Whether a task can say what should be thought of its unfinished responses."""
    problem = task.train[0]
    return task.critique(problem, "", 0.5) is not None and task.solution(problem) is not None


def world_trace(
    task: Task,
    problem: Problem,
    partial: str,
    facts: ActorFacts,
    tag: Tag,
    *,
    used: int,
    limit: int,
    value: float | None = None,
) -> Trace:
    """The world's critique of a state; the score is for `value` where one is given (by continuations), else its own.

    Raises `UserError` for a task without an oracle.
    """
    found = task.critique(problem, partial, 0.5 if facts.rate is None else facts.rate)
    if found is None:
        raise UserError(f"--task {task.name}: it has no critiques of its own; give --genac.traces or --genac.teacher")
    text = f"{found.text}{tag.label(score_of(found.value if value is None else value))}"
    return Trace(str(problem.prompt), partial, used, limit, text, facts.rate, facts.name, facts.parameters)


def world_traces(
    task: Task, count: int, seed: int, tag: Tag, tokenizer: Any, limit: int, actor: ActorFacts
) -> list[Trace]:
    """Critiques of `SPARE` · `count` states, for `balanced` to choose from; state i depends on (seed, i) alone.

    Every state is cut from a demonstration by a solver with its own rate of slips, right behind a step; the prompt shows
    that solver's success rate over all problems, and the name and size of `actor`.
    """
    counts = task.step_counts if isinstance(task, Criticised) else (3,)
    found = []
    for i in range(SPARE * count):
        draw = random.Random(key(seed, Stream.CRITIC, 4, i))
        problem = task.train[draw.randrange(len(task.train))]
        slips = draw.uniform(0, MOST_SLIPS)
        text = task.demonstration(problem, slips, draw) or ""
        steps = text.split(task.step_separator)
        done = draw.randrange(len(steps))
        partial = "".join(step + task.step_separator for step in steps[:done])
        facts = ActorFacts(actor.name, actor.parameters, rate=round(success_rate(1 - slips, counts), 2))
        used = len(tokenizer(partial, add_special_tokens=False)["input_ids"])
        trace = world_trace(task, problem, partial, facts, tag, used=used, limit=limit)
        position, outcome = len(partial) / max(1, len(text)), _outcome(task, problem, text)
        found.append(replace(trace, position=position, outcome=outcome))
    return found


def _outcome(task: Task, problem: Problem, response: str) -> float:
    """Whether the demonstration is right, by the task's own verifier: many responses may be."""
    judged = task.reward_funcs[0](completions=[response], **{k: [v] for k, v in problem.columns.items()})
    (score,) = cast("list[float | None]", judged)  # the worlds' verifiers are plain functions
    return float(score or 0.0)


def teacher_traces(teacher: Critic, states: Sequence[Trace], seed: int, samples: int = 4) -> tuple[list[Trace], int]:
    """The same states with a stronger model's words; also the tokens that this took.

    Of `samples` completions the one nearest to the truth is kept, or the first valid one where that is not known. States of
    which none can be parsed are left out.
    """
    solvers = {(trace.actor, trace.actor_parameters, trace.rate) for trace in states}
    found: dict[int, Trace] = {}
    tokens = 0
    for actor, parameters, rate in solvers:
        facts = ActorFacts(actor, parameters, rate=rate)
        mine = [i for i, t in enumerate(states) if (t.actor, t.actor_parameters, t.rate) == (actor, parameters, rate)]
        keys = [[key(seed, Stream.CRITIC, 5, i, j) for j in range(samples)] for i in mine]
        views: list[StateView] = [states[i].view for i in mine]
        for i, opinion in zip(mine, teacher.ask(views, keys, facts)):
            tokens += sum(len(r.response_ids) for r in opinion.rollouts)
            truth = states[i].truth
            valid = [j for j, v in enumerate(opinion.values) if v is not None]
            chosen = best_of(opinion.values, truth) if truth is not None else (valid[0] if valid else None)
            if chosen is not None:
                text = decode_response(teacher.policy.tokenizer, opinion.rollouts[chosen].response_ids)
                found[i] = replace(states[i], completion=text)
    return [found[i] for i in sorted(found)], tokens
