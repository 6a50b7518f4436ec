"""What G1, G2 and G3 are made of: actors, states with their truth, pools of next steps, and the two kinds of critics."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vantage.batch import Batch, plan_microbatches
from vantage.collect import Collected
from vantage.config import TrainConfig
from vantage.critics.model import ValueHead, ValueModel, copied_trunk
from vantage.critics.training import CriticSettings, CriticTraining, Targets
from vantage.distributed.world import World
from vantage.estimators.base import Estimate
from vantage.estimators.genac import Genac
from vantage.genac.actor import ActorFacts
from vantage.genac.alone import Bench, bench
from vantage.genac.asking import shares
from vantage.genac.critic import Critic, critic_of
from vantage.genac.harvest import harvest
from vantage.genac.lessons import teach
from vantage.genac.oracle import world_traces
from vantage.genac.prompt import COMPACT, COMPACT_TAG, StateView, Template
from vantage.genac.rival import state_targets
from vantage.genac.start import embedded_critic
from vantage.genac.states import states_of
from vantage.genac.traces import balanced
from vantage.models.loading import load_policy
from vantage.montecarlo import Cache, State, truth
from vantage.prompting import encode_prompt
from vantage.randomness import Stream, key, permutation
from vantage.rollout.engine import Request, Sampling
from vantage.segments import split
from vantage.workload import PromptStream

Row = dict[str, Any]
CRITIC = embedded_critic("tiny", "sums")
REST = 10**6
"""Steps of a policy that rests: more than any run here has."""


def actor(temperature: float, split_name: str, seed: int, rollouts: int, **options: Any) -> Bench:
    """`tiny` at a sampling temperature, which makes solvers of different skill, with an estimator that has a critic."""
    task = f"sums:{split_name}" if split_name else "sums"
    settings = {"critic": str(CRITIC), "sft_steps": 0, "gates": "off", "pretrain_steps": REST, "panel_share": 0.0}
    algo = Genac(**(settings | options))  # type: ignore[arg-type]
    return bench(
        TrainConfig(model="tiny", task=task, temperature=temperature, algo=algo, seed=seed, rollouts_per_step=rollouts),
        algo,
    )


def measured_states(made: Bench, problems: int, rollouts: int, per_response: int, k: int, cache: Any) -> list[Row]:
    """States of responses to held-out problems: the prompt, and some others at random; each with its truth."""
    services = made.services
    held = services.workload.task.evaluation(problems)
    seen, _ = harvest(
        services,
        made.estimator.splitter,
        made.estimator.actor,
        problems=held,
        rollouts=rollouts,
        seed=made.config.seed + 11,
    )
    number = {problem.prompt: i for i, problem in enumerate(held)}
    by_problem: dict[int, list[Any]] = {}
    for s in seen:
        by_problem.setdefault(number[s.state.problem.prompt], []).append(s)
    chosen = []
    for i, some in by_problem.items():
        first = [s for s in some if not s.state.prefix_ids]
        others = [s for s in some if s.state.prefix_ids]
        random.Random(i).shuffle(others)
        chosen += [(i, s) for s in first + others[: per_response * rollouts]]
    values = _truth(made, [s.state for _, s in chosen], k, cache)
    return [
        _row(made, i, s.state, s.trace.prefix) | {"position": s.trace.position} | value
        for (i, s), value in zip(chosen, values)
    ]


def _row(made: Bench, prompt: int, state: State, prefix: str) -> Row:
    ids = encode_prompt(made.services.policy.tokenizer, state.problem.prompt, made.config.chat)
    return {
        "prompt": prompt, "problem": state.problem.prompt, "prefix": prefix, "prompt_ids": ids,
        "prefix_ids": list(state.prefix_ids), "limit": made.services.sampling.max_new_tokens,
    }  # fmt: skip


def _truth(made: Bench, states: Sequence[State], k: int, cache: Any) -> list[Row]:
    work = made.services.workload
    found = truth(
        made.services.policy, made.services.engine, states, work.rewards, made.services.sampling, k=k,
        seed=made.config.seed + 12, reward_range=work.reward_range,
        cache=None if cache is None else Cache(cache, f"{work.task.name} {work.task.version}"),
    )  # fmt: skip
    pairs = zip(found.share_N.tolist(), found.share_variance_N.tolist())
    return [{"truth": m, "variance": v} for m, v in pairs]


def pools(
    made: Bench, rows: Sequence[Row], states: int, size: int, temperature: float, k: int, cache: Any
) -> list[Row]:
    """For states where success is open, different next steps (drawn at a higher temperature), each with its truth."""
    services, tokenizer = made.services, made.services.policy.tokenizer
    task = services.workload.task
    problems = {p.prompt: p for p in task.evaluation(1 + max(r["prompt"] for r in rows))}
    open_ = [r for r in rows if 0.1 <= r["truth"] <= 0.9 and len(r["prefix_ids"]) < r["limit"] // 2]
    order = permutation(made.config.seed, Stream.CRITIC, 31, len(open_)).tolist()
    found: list[Row] = []
    for r in [open_[i] for i in order]:
        if len({f["pool"] for f in found}) == states:
            break
        keys = tuple(
            key(made.config.seed, Stream.CRITIC, 32, r["prompt"], len(r["prefix_ids"]), j) for j in range(8 * size)
        )
        sampling = Sampling(services.sampling.max_new_tokens, temperature, stop=(task.step_separator,))
        (drawn,) = services.engine.generate([Request(r["prompt_ids"], keys, tuple(r["prefix_ids"]))], sampling)
        ends = tokenizer(task.step_separator, add_special_tokens=False)["input_ids"]
        steps = list(dict.fromkeys(tuple(x.response_ids) for x in drawn if x.response_ids[-len(ends) :] == ends))[:size]
        if len(steps) < size:
            continue
        for step in steps:
            state = State(problems[r["problem"]], (*r["prefix_ids"], *step))
            text = tokenizer.decode(
                list(state.prefix_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            found.append(
                _row(made, r["prompt"], state, text)
                | {"pool": len({f["pool"] for f in found} - {None}), "state": state}
            )
        last = found[-size]["pool"]
        for f in found[-size:]:
            f["pool"] = last
    values = _truth(made, [f.pop("state") for f in found], k, cache)
    return [f | value for f, value in zip(found, values)]


def collect(made: Bench, steps: int) -> list[Collected]:
    """Rollouts of the resting policy on training problems, a list entry a step."""
    stream, position, found = PromptStream(made.services.workload.task.train, made.config.seed), 0, []
    for step in range(1, steps + 1):
        collected = made.collector(step, stream, position)
        position += collected.consumed
        found.append(collected)
    return found


# --- the generative critic ----------------------------------------------------------------------------------------------


def reinforced(critic: Critic | None, made: Sequence[Bench], collected: Sequence[Sequence[Collected]]) -> list[Row]:
    """REINFORCE on the outcomes of one or more resting actors, taking turns; returns the metrics of the steps."""
    first, log = made[0].estimator, list[Row]()
    if critic is not None:
        first.critic = critic
    for other in made[1:]:
        other.estimator.critic, other.estimator.trainer = first.critic, first.trainer
    for turn in zip(*collected):
        for bench_, step in zip(made, turn):
            metrics = bench_.estimator.query(step).metrics
            nothing = step.batch.response_mask_BT.double()
            log.append({**metrics, **bench_.estimator.learn(step.batch, {}, Estimate(nothing, nothing))})
    return [
        {k: v for k, v in row.items() if k in ("genac/brier", "genac/brier_constant", "genac/critic_reward")}
        for row in log
    ]


def generative_values(
    critic: Critic, rows: Sequence[Row], rate: float, samples: int, seed: int
) -> list[list[float | None]]:
    """Values of states, one a sample; None where a completion can not be parsed."""
    facts = ActorFacts("tiny", 800_512, rate=rate)
    views = [StateView(r["problem"], r["prefix"], len(r["prefix_ids"]), r["limit"]) for r in rows]
    keys = [[key(seed, Stream.CRITIC, 33, i, j) for j in range(samples)] for i in range(len(rows))]
    return [o.values for o in critic.ask(views, keys, facts)]


def schooled(made: Bench, icc: bool, steps: int, traces: int) -> Critic:
    """The embedded critic after more lessons with or without the facts about the solver in its prompt."""
    policy = load_policy(str(CRITIC), made.services.policy.device)
    critic = critic_of(policy, Template(COMPACT, COMPACT_TAG, icc), 128)
    services = made.services
    found = world_traces(
        services.workload.task, traces, made.config.seed + 13, critic.tag, services.policy.tokenizer,
        services.sampling.max_new_tokens, ActorFacts("tiny", 800_512),
    )  # fmt: skip
    options = dataclasses.replace(made.options, sft_steps=steps, sft_learning_rate=3e-4, icc=icc)
    if steps:
        teach(options, critic, balanced(found, traces), made.config.seed, World(), lambda text: None)
    return critic


# --- the discriminative critic --------------------------------------------------------------------------------------------


@dataclass
class Learned:
    """A trunk of the same size with a value head, and its validation error after each epoch."""

    model: ValueModel
    errors: list[float]


def discriminative(
    made: Bench, collected: Sequence[Collected], rate: float, epochs: int, seed: int, held: Sequence[Collected] = ()
) -> Learned:
    """A copy of the policy's trunk with a linear head, by cross-entropy on the outcomes at the same states."""
    policy = made.services.policy
    model = ValueModel(copied_trunk(policy), ValueHead(policy.hidden_size, (0.0, 1.0), probability=True), policy.pad_id)
    sets = [_targets(made, c) for c in collected]
    known = [t for s in sets for t in s[1].target_BX[s[1].mask_BX].tolist()]
    model.head.begin(math.fsum(known) / len(known))
    parts = [(batch, targets, groups) for batch, targets in sets for groups in _parts(batch, 2)]
    settings = CriticSettings(rate, updates_total=epochs * len(parts), schedule="linear", loss="bce")
    training, errors = CriticTraining(model, model.head, settings, World()), list[float]()
    for epoch in range(epochs):
        for i in permutation(seed, Stream.CRITIC, 34 + epoch, len(parts)).tolist():
            batch, targets, rows = parts[i]
            training.fit(
                targets, [rows], lambda some, b=batch: _plan(b, some), lambda some, b=batch: model(b.select(some))
            )
        errors.append(_error(made, model, held))
    return Learned(model, errors)


def _targets(made: Bench, collected: Collected) -> tuple[Batch, Targets]:
    """Mean outcome of the siblings at each segment start, and nothing elsewhere."""
    batch, tokenizer = collected.batch, made.services.policy.tokenizer
    cuts = [split(r.response_ids, made.estimator.splitter, tokenizer, r.logp) for r in collected.rollouts]
    states = states_of(
        [p.prompt for p in collected.problems], batch.prompt_ids, batch.response_ids, cuts, batch.group_B.tolist(),
        tokenizer, made.services.sampling.max_new_tokens,
    )  # fmt: skip
    target_BT, mask_BT = state_targets(states, states.targets(shares(batch, 0.0, 1.0)), batch.response_mask_BT)
    return batch, Targets(target_BT, target_BT, mask_BT)


def _parts(batch: Batch, count: int) -> list[list[int]]:
    groups = batch.groups()
    return [[row for group in groups[i::count] for row in group] for i in range(count)]


def _plan(batch: Batch, rows: list[int]) -> list[list[int]]:
    tokens = batch.tokens()
    plan = plan_microbatches([tokens[r] for r in rows], [[i] for i in range(len(rows))], 4096)
    return [[rows[i] for i in micro] for micro in plan.micro]


@torch.no_grad()
def _error(made: Bench, model: ValueModel, held: Sequence[Collected]) -> float:
    """Mean squared error at states that it was not trained on; NaN without any."""
    total, count = 0.0, 0
    for collected in held:
        batch, targets = _targets(made, collected)
        for rows in _plan(batch, list(range(batch.size))):
            value_MT = model.head.value(model(batch.select(rows))).double()
            mask_MT = targets.mask_BX[rows, : value_MT.shape[1]]
            total += float((value_MT - targets.target_BX[rows, : value_MT.shape[1]])[mask_MT].square().sum())
            count += int(mask_MT.sum())
    return total / count if count else math.nan


@torch.no_grad()
def discriminative_values(model: ValueModel, rows: Sequence[Row]) -> list[float]:
    """Values of states: what the head reads behind the last token of the prefix."""
    found = []
    for start in range(0, len(rows), 64):
        ids = [r["prompt_ids"] + r["prefix_ids"] for r in rows[start : start + 64]]
        states_MSD = model.states(ids)
        last_M = torch.tensor([len(row) - 1 for row in ids])
        found += model.head.value(model.head(states_MSD[torch.arange(len(ids)), last_M])).double().tolist()
    return found
