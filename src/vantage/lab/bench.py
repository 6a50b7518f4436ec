"""What is measured on? A policy at rest, rollouts to learn from, states to be asked about, and what these are worth.

Training rollouts answer training problems, test rollouts held-out ones. The states of a test rollout are the prompt and
starts of steps (`vantage.segments`), at most so many, evenly; whole responses are none. Truth is Monte-Carlo
(`vantage.montecarlo`), drawn from another stream than rollouts, and kept on disk by everything that it depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vantage.config import TrainConfig, resolve
from vantage.errors import UserError
from vantage.estimators.base import Services, Setup
from vantage.evaluation.scoring import repeat_columns
from vantage.lab.data import Floats, Ints, Pools, Rollouts, States, TestSet
from vantage.lab.metrics import Target
from vantage.lab.settings import LabConfig
from vantage.models.loading import choose_device, end_token_ids, load_policy, think_end_ids
from vantage.montecarlo import Cache, State, truth
from vantage.policy import Policy
from vantage.prompting import decode_response, encode_prompt
from vantage.randomness import Stream, key, permutation
from vantage.rollout.engine import Request, Rollout, Sampling
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.segments import Splitter, split, thin
from vantage.tasks.base import Problem
from vantage.workload import Workload

DRAWS_FOR_POOL = 6
"""Continuations that are sampled for each wanted candidate, as many of them begin with the same step."""
TRAIN, TEST, POOL = 11, 12, 13
"""Coordinates of the lab's draws within their stream, which no step of a run has."""


@dataclass(frozen=True)
class Bench:
    """A policy at rest with all that generates and judges."""

    config: LabConfig
    train: TrainConfig
    """As a run on this policy and task would be configured."""
    policy: Policy
    engine: TransformersEngine
    work: Workload
    sampling: Sampling
    splitter: Splitter
    cache: Path

    @staticmethod
    def of(config: LabConfig, task: str, shifts: Sequence[str] = ()) -> Bench:
        """Load the policy; `config` must be resolved. Raises `UserError`."""
        work = Workload.of(task, config.reward)
        lengths = [
            work.task.max_new_tokens,
            *(Workload.of(shift, config.reward).task.max_new_tokens for shift in shifts),
        ]
        longest = config.max_new_tokens or max((n for n in lengths if n is not None), default=512)
        train = resolve(
            TrainConfig(
                model=config.model, task=task, seed=config.seed, device=config.device, temperature=config.temperature,
                max_new_tokens=longest, generation_batch=config.generation_batch, reward=config.reward,
                chat_template=config.chat_template, enable_thinking=config.enable_thinking,
            ),
            max_new_tokens=longest, stop=tuple(work.task.stop), reward_range=work.reward_range,
        )  # fmt: skip
        policy = load_policy(
            train.model, choose_device(config.device), temperature=config.temperature, seed=config.seed
        )
        engine = TransformersEngine(policy, end_token_ids(policy), config.generation_batch)
        sampling = Sampling(longest, config.temperature, stop=tuple(work.task.stop))
        cache = Path(config.cache) if config.cache else Path(config.out) / "truth"
        return Bench(config, train, policy, engine, work, sampling, Splitter.of_task(work.task), cache)

    @property
    def seed(self) -> int:
        """Every draw depends on it."""
        return self.config.seed

    @property
    def reward_range(self) -> tuple[float, float]:
        """Smallest and largest total reward."""
        return self.work.reward_range

    def setup(self, rollouts_per_prompt: int) -> Setup:
        """What an algorithm's estimator is built from."""
        services = Services(self.policy, self.engine, self.sampling, self.work, self.train)
        return Setup(
            num_layers=self.policy.num_layers, hidden_size=self.policy.hidden_size,
            rollouts_per_prompt=rollouts_per_prompt, reward_range=self.reward_range,
            think_end_ids=think_end_ids(self.policy), end_ids=self.engine.end_ids,
            max_new_tokens=self.sampling.max_new_tokens, services=services,
        )  # fmt: skip

    def training(self) -> Rollouts:
        """Rollouts of training problems, drawn in the seeded order of a run."""
        config, problems = self.config, self.work.task.train
        per = config.train_rollouts_per_prompt
        count = max(1, (config.train_rollouts or 0) // per)
        if count > len(problems):
            raise UserError(
                f"--train-rollouts is {config.train_rollouts}: the task has {len(problems)} training problems, for "
                f"{len(problems) * per} rollouts at --train-rollouts-per-prompt {per}"
            )
        order = permutation(self.seed, Stream.DATA, 0, len(problems))[:count]
        return self.draw([problems[int(i)] for i in order], per, TRAIN)

    def held_out(self, task: str | None, prompts: int) -> Rollouts:
        """Rollouts of held-out problems of this task, or of a shift of it."""
        work = self.work if task is None else Workload.of(task, self.config.reward)
        if work.rewards.names != self.work.rewards.names:
            raise UserError(
                f"--shifts {task}: it is judged by {', '.join(work.rewards.names)}, the task by "
                f"{', '.join(self.work.rewards.names)}; a shift must have the same verifier"
            )
        problems = list(work.task.evaluation(prompts))
        if len(problems) < 8:
            what = "--task" if task is None else "--shifts"
            raise UserError(
                f"{what} {work.task.name}: it holds out {len(problems)} problems, intervals over prompts need at least 8"
            )
        return self.draw(problems, self.config.rollouts, TEST)

    def draw(self, problems: Sequence[Problem], per_prompt: int, purpose: int) -> Rollouts:
        """Responses to problems, judged; the draws depend on (seed, purpose, problem's number, response)."""
        requests = [
            Request(
                encode_prompt(self.policy.tokenizer, problem.prompt, self.config.chat),
                tuple(key(self.seed, Stream.EVAL, purpose, i, j) for j in range(per_prompt)),
            )
            for i, problem in enumerate(problems)
        ]
        found = self.engine.generate(requests, self.sampling)
        numbers = [i for i in range(len(problems)) for _ in range(per_prompt)]
        flat = [rollout for some in found for rollout in some]
        return self.judged([problems[i] for i in numbers], [requests[i].prompt_ids for i in numbers], flat, numbers)

    def judged(
        self, problems: list[Problem], prompt_ids: list[list[int]], rollouts: Sequence[Rollout], numbers: Sequence[int]
    ) -> Rollouts:
        """Whole responses with their rewards, as shares of the range."""
        texts = [decode_response(self.policy.tokenizer, r.response_ids) for r in rollouts]
        total = self.work.rewards(
            prompts=[p.prompt for p in problems],
            completions=texts,
            completion_ids=[r.response_ids for r in rollouts],
            columns=repeat_columns(problems),
        ).total
        low, high = self.reward_range
        return Rollouts(
            problems,
            prompt_ids,
            [list(r.response_ids) for r in rollouts],
            texts,
            np.array(numbers, dtype=np.int64),
            (np.array(total, dtype=np.float64) - low) / (high - low),
            np.array([r.finish_reason == "length" for r in rollouts], dtype=np.bool_),
            [list(r.logp) for r in rollouts],
        )

    def states(self, rollouts: Rollouts, most: int | None = None) -> States:
        """The prompt and starts of steps of each rollout, at most `most` of them."""
        rows, cuts = list[int](), list[int]()
        for row, ids in enumerate(rollouts.response_ids):
            logp = None if rollouts.logp is None else rollouts.logp[row]
            found = split(ids, self.splitter, self.policy.tokenizer, logp).starts
            for cut in thin(found, most or self.config.states):
                rows.append(row)
                cuts.append(cut)
        return self.places(rollouts, rows, cuts)

    def places(self, rollouts: Rollouts, rows: Sequence[int], cuts: Sequence[int]) -> States:
        """States at given places."""
        return States(
            rollouts, np.array(rows, dtype=np.int64), np.array(cuts, dtype=np.int64), self.policy.tokenizer,
            self.sampling.max_new_tokens,
        )  # fmt: skip

    def values(self, states: Sequence[State], k: int, seed: int, keep: bool = True) -> tuple[Floats, int]:
        """Outcomes [N, K] of continuations as shares of the reward range, and the tokens that were generated."""
        version = f"{self.work.task.name} {self.work.task.version}"
        found = truth(
            self.policy, self.engine, states, self.work.rewards, self.sampling, k=k, seed=seed,
            reward_range=self.reward_range, chat=self.config.chat, cache=Cache(self.cache, version) if keep else None,
        )  # fmt: skip
        low, high = self.reward_range
        return (found.outcome_NK - low) / (high - low), found.generated

    def test_set(self, name: str, rollouts: Rollouts, constant: float) -> TestSet:
        """States of rollouts with their truth."""
        states = self.states(rollouts)
        k = self.config.continuations or 2
        outcome_NK, generated = self.values([states.state(i) for i in range(len(states))], k, self.seed)
        return TestSet(name, states, Target.of(outcome_NK, states.prompt_N, constant), generated)

    def pools(self, rollouts: Rollouts, count: int) -> Pools | None:
        """Different next steps of `count` states, each as the state behind it; None where steps do not part.

        A state is one of a rollout's own, one rollout a prompt. Steps that end the response are left out: their value is the
        verifier's answer. Kept are states with at least two steps.
        """
        wanted = self.config.candidates
        chosen = self._pool_states(rollouts)
        requests = [
            Request(
                rollouts.prompt_ids[row],
                tuple(key(self.seed, Stream.EVAL, POOL, row, j) for j in range(DRAWS_FOR_POOL * wanted)),
                tuple(rollouts.response_ids[row][:cut]),
            )
            for row, cut in chosen
        ]
        kept: list[tuple[int, list[tuple[Rollout, int]]]] = []
        for start in range(0, len(chosen), 16):
            drawn = self.engine.generate(requests[start : start + 16], self.sampling)
            for (row, cut), some in zip(chosen[start : start + 16], drawn):
                steps = self._steps(tuple(rollouts.response_ids[row][:cut]), cut, some)[:wanted]
                if len(steps) > 1 and len(kept) < count:
                    kept.append((row, steps))
            if len(kept) >= count:
                break
        if not kept:
            return None
        return self._pooled(rollouts, kept)

    def _pool_states(self, rollouts: Rollouts) -> list[tuple[int, int]]:
        """One state of the first rollout of each prompt, any of its step starts but the last."""
        found, seen = [], set[int]()
        for row, ids in enumerate(rollouts.response_ids):
            prompt = int(rollouts.prompt_B[row])
            starts = split(
                ids, self.splitter, self.policy.tokenizer, rollouts.logp[row] if rollouts.logp else None
            ).starts
            if prompt in seen or len(starts) < 2:
                continue
            seen.add(prompt)
            found.append((row, starts[key(self.seed, Stream.EVAL, POOL, row) % (len(starts) - 1)]))
        return found

    def _steps(self, prefix: tuple[int, ...], cut: int, drawn: Sequence[Rollout]) -> list[tuple[Rollout, int]]:
        """Whole responses that begin with different next steps, in order of first appearance, and where the step ends."""
        found: dict[tuple[int, ...], tuple[Rollout, int]] = {}
        for r in drawn:
            whole = [*prefix, *r.response_ids]
            starts = split(whole, self.splitter, self.policy.tokenizer, [*[0.0] * cut, *r.logp]).starts
            end = next((start for start in starts if start > cut), None)
            if end is not None:
                logp = [*[0.0] * cut, *r.logp]
                found.setdefault(tuple(whole[:end]), (replace(r, response_ids=whole, logp=logp), end))
        return list(found.values())

    def _pooled(self, rollouts: Rollouts, kept: Sequence[tuple[int, list[tuple[Rollout, int]]]]) -> Pools:
        rows = [row for row, steps in kept for _ in steps]
        pool_N: Ints = np.array([i for i, (_, steps) in enumerate(kept) for _ in steps], dtype=np.int64)
        whole = self.judged(
            [rollouts.problems[row] for row in rows], [rollouts.prompt_ids[row] for row in rows],
            [r for _, steps in kept for r, _ in steps], pool_N.tolist(),
        )  # fmt: skip
        states = self.places(whole, range(len(whole)), [end for _, steps in kept for _, end in steps])
        k = self.config.continuations or 2
        outcome_NK, generated = self.values([states.state(i) for i in range(len(states))], k, self.seed)
        mean_N = np.nanmean(outcome_NK, 1)
        if not np.isfinite(mean_N).all():
            mean_N = np.nan_to_num(mean_N, nan=float(np.nanmean(mean_N)))
        return Pools(states, pool_N, mean_N, [int(rollouts.prompt_B[row]) for row, _ in kept], k, generated)


def check_learnable(rollouts: Rollouts) -> None:
    """Raise `UserError` where there is nothing to predict."""
    known = rollouts.reward_B[np.isfinite(rollouts.reward_B)]
    if not len(known) or math.isclose(float(known.min()), float(known.max())):
        said = "none could be judged" if not len(known) else f"all have the reward {known[0]:g}"
        raise UserError(
            f"of the {len(rollouts)} training rollouts {said}: there is nothing to predict; take another --task"
        )
