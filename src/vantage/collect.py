"""From prompts to a batch: generate rollouts, decode, verify, flip where noise is asked for, filter groups, shape rewards.

Each process generates and verifies its share of the prompts. Which rollouts make up the step is decided from all of
them together, so that it depends on the step alone and not on the number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vantage.advantages import group_spread
from vantage.batch import Batch, pad
from vantage.config import TrainConfig
from vantage.distributed.world import World
from vantage.evaluation.scoring import repeat_columns
from vantage.policy import Policy
from vantage.prompting import decode_response, encode_prompt
from vantage.randomness import Stream, key, uniforms
from vantage.rollout.engine import Engine, Request, Rollout, Sampling
from vantage.shaping import overlong_penalty
from vantage.workload import PromptStream, Workload

if TYPE_CHECKING:
    from vantage.tasks.base import Problem


@dataclass(frozen=True)
class TrainerState:
    """What a reward function may ask about the run, under the names that TRL's functions use."""

    global_step: int
    max_steps: int


@dataclass(frozen=True)
class Collected:
    """This process's rollouts of a step, and what the log wants to know about how they came to be."""

    batch: Batch
    problems: list[Problem]
    """One for each rollout."""
    texts: list[str]
    rollouts: list[Rollout]
    extras: list[dict[str, Any]]
    """What reward functions gave `log_extra` for each rollout."""
    metrics: dict[str, float]
    """Of all processes together."""
    notes: list[str]
    """What went wrong in reward functions, in one line each."""
    consumed: int
    """Prompts that the step took from the stream, on all processes, thrown away ones included."""
    groups: int
    """Prompt groups in the step on all processes; 0 if the filter left none."""


@dataclass
class Drawn:
    """Rollouts of this process, one entry each; rounds of generation are appended."""

    group: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    prompt_ids: list[list[int]] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    """Total reward before noise; NaN if unscorable."""
    outcome: list[float] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    components: dict[str, list[float]] = field(default_factory=dict)
    custom: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds_generating: float = 0.0
    seconds_scoring: float = 0.0


class Collector:
    """Generates and verifies a step's rollouts."""

    def __init__(
        self, policy: Policy, engine: Engine, workload: Workload, config: TrainConfig, world: World | None = None
    ) -> None:
        self.policy, self.engine, self.workload, self.config = policy, engine, workload, config
        self.world = world or World()
        self.sampling = Sampling(
            max_new_tokens=config.max_new_tokens or 512,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop=tuple(config.stop or ()),
        )

    def __call__(self, step: int, stream: PromptStream, position: int) -> Collected:
        """Rollouts of one step: `rollouts_per_prompt` for each prompt, siblings adjacent, from `position` in the stream."""
        config, wanted = self.config, self.config.prompts
        drawn, kept, consumed, rounds = Drawn(), list[int](), 0, 0
        start = time.perf_counter()
        self.engine.update_weights()
        drawn.seconds_generating += time.perf_counter() - start
        while len(kept) < wanted and rounds < (1 if config.group_filter != "equal" else config.filter_rounds):
            count = refill(wanted, len(kept), consumed)
            problems = stream.take(position + consumed, count)
            fresh = len(drawn.group)
            self._draw(drawn, step, {consumed + i: problems[i] for i in self.world.share(count)})
            kept += self._keep(drawn, fresh)
            consumed += count
            rounds += 1
        kept = sorted(kept)[:wanted]
        rows = [i for i, g in enumerate(drawn.group) if g in set(kept)]
        return Collected(
            batch=self._batch(step, drawn, rows),
            problems=[drawn.problems[i] for i in rows],
            texts=[drawn.texts[i] for i in rows],
            rollouts=[drawn.rollouts[i] for i in rows],
            extras=[drawn.extras[i] for i in rows],
            metrics=self._metrics(drawn, rows, consumed, rounds),
            notes=list(dict.fromkeys(note for notes in self.world.exchange(drawn.notes) for note in notes)),
            consumed=consumed,
            groups=len(kept),
        )

    def _draw(self, drawn: Drawn, step: int, problems: dict[int, Problem]) -> None:
        """Generate and score the rollouts of problems, by their number within the step."""
        if not problems:
            return
        config, start = self.config, time.perf_counter()
        requests = [self._request(step, index, p) for index, p in problems.items()]
        rollouts = [r for found in self.engine.generate(requests, self.sampling) for r in found]
        texts = [decode_response(self.policy.tokenizer, r.response_ids) for r in rollouts]
        generated = time.perf_counter()
        repeated = [p for p in problems.values() for _ in range(config.group_size)]
        group = [index for index in problems for _ in range(config.group_size)]
        scored = self.workload.rewards(
            prompts=[p.prompt for p in repeated],
            completions=texts,
            completion_ids=[r.response_ids for r in rollouts],
            columns=repeat_columns(repeated),
            trainer_state=TrainerState(step, config.steps),
        )
        drawn.group += group
        drawn.problems += repeated
        drawn.prompt_ids += [list(r.prompt_ids) for r in requests for _ in range(config.group_size)]
        drawn.rollouts += rollouts
        drawn.texts += texts
        drawn.clean += scored.total
        drawn.outcome += self._noisy(step, scored.total, group)
        drawn.extras += [{name: column[i] for name, column in scored.extras.items()} for i in range(len(group))]
        for name, values in scored.components.items():
            drawn.components.setdefault(name, []).extend(values)
        drawn.custom.append(dict(scored.metrics))
        drawn.notes += scored.problems
        drawn.seconds_generating += generated - start
        drawn.seconds_scoring += time.perf_counter() - generated

    def _request(self, step: int, index: int, problem: Problem) -> Request:
        ids = encode_prompt(self.policy.tokenizer, problem.prompt, self.config.chat)
        keys = (key(self.config.seed, Stream.ROLLOUT, step, index, j) for j in range(self.config.group_size))
        return Request(ids, tuple(keys))

    def _noisy(self, step: int, clean: Sequence[float], group: Sequence[int]) -> list[float]:
        """Flip outcomes within the reward range with the configured probability, by rollout or by group."""
        config = self.config
        if config.reward_noise == 0:
            return list(clean)
        members = [i % config.group_size if config.reward_noise_level == "rollout" else 0 for i in range(len(group))]
        keys = np.array([key(config.seed, Stream.NOISE, step, g, m) for g, m in zip(group, members)], dtype=np.uint64)
        flipped = uniforms(keys, 0, 1)[:, 0] < config.reward_noise
        low, high = self.workload.reward_range if config.reward_range is None else config.reward_range
        return [low + high - c if f else c for c, f in zip(clean, flipped.tolist())]

    def _keep(self, drawn: Drawn, start: int) -> list[int]:
        """Which groups of the newest round, of all processes, stay: those whose outcomes differ, if a filter is on."""
        group_N, outcome_N = torch.tensor(drawn.group[start:]), torch.tensor(drawn.outcome[start:], dtype=torch.float64)
        if self.config.group_filter == "equal" and len(group_N):
            group_N = group_N[group_spread(outcome_N, group_N, outcome_N.isfinite()) > 0]
        return [g for part in self.world.exchange(sorted(set(group_N.tolist()))) for g in part]

    def _batch(self, step: int, drawn: Drawn, rows: Sequence[int]) -> Batch:
        config = self.config
        outcome_B = torch.tensor([drawn.outcome[i] for i in rows], dtype=torch.float64)
        length_B = torch.tensor([len(drawn.rollouts[i].response_ids) for i in rows], dtype=torch.long)
        penalty_B = overlong_penalty(length_B, self.sampling.max_new_tokens, config.overlong_buffer or 0)
        return Batch(
            step=step,
            prompt_ids=[drawn.prompt_ids[i] for i in rows],
            response_ids=[drawn.rollouts[i].response_ids for i in rows],
            group_B=torch.tensor([drawn.group[i] for i in rows], dtype=torch.long),
            outcome_B=outcome_B,
            reward_B=outcome_B - config.overlong_penalty * penalty_B,
            scorable_B=outcome_B.isfinite(),
            domains=[drawn.problems[i].domain for i in rows],
            truncated_B=torch.tensor([drawn.rollouts[i].finish_reason == "length" for i in rows], dtype=torch.bool),
            behaviour_logp_BT=self._behaviour([drawn.rollouts[i] for i in rows]),
        )

    def _behaviour(self, rollouts: Sequence[Rollout]) -> Tensor | None:
        """The engine's log-probs of the responses [B, T], where they are not simply the policy's."""
        if not self.engine.separate and self.config.mismatch_correction in (None, "none"):
            return None
        rows = [torch.tensor(r.logp, dtype=torch.float32) for r in rollouts]
        return pad(rows, max((len(row) for row in rows), default=0))

    def _metrics(self, drawn: Drawn, rows: Sequence[int], consumed: int, rounds: int) -> dict[str, float]:
        """Keys about rewards and responses, over everything that was generated, on all processes."""
        lengths = [len(r.response_ids) for r in drawn.rollouts]
        own = (
            drawn.clean, drawn.outcome, lengths, [r.finish_reason == "length" for r in drawn.rollouts],
            sum(lengths[i] for i in rows), len(rows), drawn.components, drawn.custom,
        )  # fmt: skip
        clean, outcome, length, truncated, used, size, components, custom = zip(*self.world.exchange(own))
        metrics = rollout_metrics(*(flat(part) for part in (clean, outcome, length, truncated)))
        metrics |= {f"rewards/{name}": value for name, value in component_means(merged(components)).items()}
        metrics |= {f"custom/{name}": value for name, value in means(flat(custom)).items()}
        if self.config.group_filter == "equal":
            metrics["groups/rounds"] = float(rounds)
            metrics["groups/filtered"] = 1 - sum(size) / max(1, consumed * self.config.group_size)
            metrics["tokens/filtered"] = metrics["tokens/generated"] - sum(used)
        if self.config.overlong_buffer:
            limit = self.sampling.max_new_tokens
            penalty_N = overlong_penalty(torch.tensor(flat(length)), limit, self.config.overlong_buffer)
            metrics["reward/overlong_penalty"] = self.config.overlong_penalty * float(penalty_N.mean())
        return metrics | {"time/rollout": drawn.seconds_generating, "time/reward": drawn.seconds_scoring}


def refill(wanted: int, kept: int, drawn: int) -> int:
    """Prompts of the next round: as many as the missing groups need at the rate of the groups that stayed so far."""
    if drawn == 0 or kept == 0:
        return wanted
    return min(wanted, math.ceil((wanted - kept) * drawn / kept))


def rollout_metrics(
    clean: Sequence[float], outcome: Sequence[float], length: Sequence[int], truncated: Sequence[bool]
) -> dict[str, float]:
    """Keys about rewards and responses; rewards are those before noise, over all scorable rollouts."""
    all_B = torch.tensor(clean, dtype=torch.float64)
    known = all_B[all_B.isfinite()]
    count = max(1, len(length))
    return {
        "reward/mean": float(known.mean()) if len(known) else float("nan"),
        "reward/std": float(known.std(correction=0)) if len(known) else float("nan"),
        "reward/unscorable": sum(not math.isfinite(o) for o in outcome) / count,
        "completion/length_mean": sum(length) / count,
        "completion/truncated": sum(truncated) / count,
        "tokens/generated": float(sum(length)),
        "tokens/value_extra": 0.0,
    }


def flat(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The items of all parts in one list."""
    return [item for part in parts for item in part]


def merged(parts: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Lists of the same name joined."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: flat([part.get(name, []) for part in parts]) for name in names}


def means(logged: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the calls that logged it."""
    names = dict.fromkeys(name for metrics in logged for name in metrics)
    found = {name: [float(m[name]) for m in logged if name in m] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def component_means(components: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each reward function where there are several, over the rollouts it scored."""
    if len(components) < 2:
        return {}
    arrays: dict[str, Any] = {name: np.array(values, dtype=float) for name, values in components.items()}
    return {name: float(np.nanmean(a)) if np.isfinite(a).any() else float("nan") for name, a in arrays.items()}
