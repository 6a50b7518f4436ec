"""Which states does an actor come to? Its own rollouts, cut into states, with how each ended and, if wanted, their truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vantage.distributed.world import World
from vantage.estimators.base import Services
from vantage.evaluation.scoring import repeat_columns
from vantage.genac.actor import ActorFacts
from vantage.genac.states import problem_text
from vantage.genac.traces import Trace
from vantage.montecarlo import Cache, State, truth
from vantage.prompting import decode_response, encode_prompt
from vantage.randomness import Stream, key, permutation
from vantage.rollout.engine import Request
from vantage.segments import Splitter, split
from vantage.tasks.base import Problem


@dataclass(frozen=True)
class Seen:
    """A state of a rollout: as Monte-Carlo truth takes it, and as a trace without words."""

    state: State
    trace: Trace


def harvest(
    services: Services,
    splitter: Splitter,
    actor: ActorFacts,
    *,
    problems: int | Sequence[Problem],
    rollouts: int,
    seed: int,
    world: World | None = None,
) -> tuple[list[Seen], int]:
    """The segment starts of the actor's rollouts, and the tokens that these took; every process gets all.

    `problems` is how many training problems are drawn, or the problems themselves. Outcomes are shares of the reward range;
    states that are equal (all prompts of siblings) come once, with the mean. Unscorable rollouts are left out.
    """
    world, config = world or World(), services.config
    if isinstance(problems, int):
        train = services.workload.task.train
        problems = [train[int(i)] for i in permutation(seed, Stream.CRITIC, 6, len(train))[:problems]]
    mine = {i: problems[i] for i in world.share(len(problems))}
    found: list[list[Seen]] = []
    tokens = 0
    if mine:
        requests = [
            Request(
                encode_prompt(services.policy.tokenizer, problem.prompt, config.chat),
                tuple(key(seed, Stream.CRITIC, 7, i, j) for j in range(rollouts)),
            )
            for i, problem in mine.items()
        ]
        made = services.engine.generate(requests, services.sampling)
        flat = [r for some in made for r in some]
        repeated = [problem for problem in mine.values() for _ in range(rollouts)]
        scored = services.workload.rewards(
            prompts=[p.prompt for p in repeated],
            completions=[decode_response(services.policy.tokenizer, r.response_ids) for r in flat],
            completion_ids=[r.response_ids for r in flat],
            columns=repeat_columns(repeated),
        ).total
        low, high = config.reward_range or services.workload.reward_range
        shares = [(x - low) / (high - low) for x in scored]
        tokens = sum(len(r.response_ids) for r in flat)
        for n, (problem, some) in enumerate(zip(mine.values(), made)):
            ends = shares[n * rollouts : (n + 1) * rollouts]
            found.append(_states(services, splitter, actor, problem, [(r.response_ids, r.logp) for r in some], ends))
    together = world.together(found)
    return [s for some in together for s in some], sum(world.exchange(tokens))


def _states(
    services: Services,
    splitter: Splitter,
    actor: ActorFacts,
    problem: Problem,
    responses: Sequence[tuple[list[int], list[float]]],
    shares: Sequence[float],
) -> list[Seen]:
    """The different states of one problem's rollouts."""
    tokenizer, limit = services.policy.tokenizer, services.sampling.max_new_tokens
    ended: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for (ids, logp), share in zip(responses, shares):
        cut = split(ids, splitter, tokenizer, logp)
        for k in range(len(cut) if math.isfinite(share) else 0):
            ended.setdefault(cut.prefix(ids, k), []).append((share, cut.starts[k] / len(ids)))
    found = []
    for prefix, ends in ended.items():
        text = tokenizer.decode(list(prefix), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        trace = Trace(
            problem_text(problem.prompt), text, len(prefix), limit, "", actor.rate, actor.name, actor.parameters,
            position=math.fsum(p for _, p in ends) / len(ends), outcome=math.fsum(r for r, _ in ends) / len(ends),
        )  # fmt: skip
        found.append(Seen(State(problem, prefix), trace))
    return found


def with_truth(
    services: Services,
    seen: Sequence[Seen],
    *,
    k: int,
    seed: int,
    world: World | None = None,
    cache: Path | None = None,
) -> tuple[list[Seen], int]:
    """The same states with their Monte-Carlo truth by k continuations, and the tokens that these took."""
    work = services.workload
    found = truth(
        services.policy, services.engine, [s.state for s in seen], work.rewards, services.sampling, k=k, seed=seed,
        reward_range=services.config.reward_range or work.reward_range, chat=services.config.chat,
        cache=None if cache is None else Cache(cache, f"{work.task.name} {work.task.version}"), world=world,
    )  # fmt: skip
    values = [v if math.isfinite(v) else None for v in found.share_N.tolist()]
    return [replace(s, trace=replace(s.trace, truth=v)) for s, v in zip(seen, values)], found.generated
