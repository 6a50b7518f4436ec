"""From prompts to a batch: generate rollouts, decode, verify, flip where noise is asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vantage.batch import Batch
from vantage.config import TrainConfig
from vantage.evaluation import repeat_columns
from vantage.policy import Policy
from vantage.prompting import decode_response, encode_prompt
from vantage.randomness import Stream, key, uniforms
from vantage.rollout.engine import Engine, Request, Rollout, Sampling
from vantage.workload import Workload

if TYPE_CHECKING:
    from vantage.tasks.base import Problem


@dataclass(frozen=True)
class TrainerState:
    """What a reward function may ask about the run, under the names that TRL's functions use."""

    global_step: int
    max_steps: int


@dataclass(frozen=True)
class Collected:
    """A batch and what the log wants to know about how it came to be."""

    batch: Batch
    problems: list[Problem]
    """One for each rollout."""
    texts: list[str]
    rollouts: list[Rollout]
    metrics: dict[str, float]
    notes: list[str]
    """What went wrong in reward functions, in one line each."""


class Collector:
    """Generates and verifies a step's rollouts."""

    def __init__(self, policy: Policy, engine: Engine, workload: Workload, config: TrainConfig) -> None:
        self.policy, self.engine, self.workload, self.config = policy, engine, workload, config
        self.sampling = Sampling(
            max_new_tokens=config.max_new_tokens or 512,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop=tuple(config.stop or ()),
        )

    def __call__(self, step: int, problems: Sequence[Problem]) -> Collected:
        """Rollouts of one step: `rollouts_per_prompt` for each problem, siblings adjacent."""
        config, group = self.config, self.config.group_size
        start = time.perf_counter()
        requests = [self._request(step, i, p) for i, p in enumerate(problems)]
        rollouts = [r for found in self.engine.generate(requests, self.sampling) for r in found]
        texts = [decode_response(self.policy.tokenizer, r.response_ids) for r in rollouts]
        generated = time.perf_counter()
        repeated = [p for p in problems for _ in range(group)]
        scored = self.workload.rewards(
            prompts=[p.prompt for p in repeated],
            completions=texts,
            completion_ids=[r.response_ids for r in rollouts],
            columns=repeat_columns(repeated),
            trainer_state=TrainerState(step, config.steps),
        )
        clean_B = torch.tensor(scored.total, dtype=torch.float64)
        group_B = torch.arange(len(problems)).repeat_interleave(group)
        outcome_B = self._noisy(step, clean_B, group_B)
        batch = Batch(
            step=step,
            prompt_ids=[list(r.prompt_ids) for r in requests for _ in range(group)],
            response_ids=[r.response_ids for r in rollouts],
            group_B=group_B,
            outcome_B=outcome_B,
            reward_B=outcome_B,
            scorable_B=outcome_B.isfinite(),
            domains=[p.domain for p in repeated],
        )
        metrics = rollout_metrics(clean_B, batch, [r.finish_reason == "length" for r in rollouts])
        metrics |= {f"rewards/{name}": value for name, value in component_means(scored.components).items()}
        metrics |= {f"custom/{name}": float(value) for name, value in scored.metrics.items()}
        metrics |= {"time/rollout": generated - start, "time/reward": time.perf_counter() - generated}
        return Collected(batch, repeated, texts, rollouts, metrics, list(scored.problems))

    def _request(self, step: int, index: int, problem: Problem) -> Request:
        ids = encode_prompt(self.policy.tokenizer, problem.prompt, self.config.chat_template)
        keys = (key(self.config.seed, Stream.ROLLOUT, step, index, j) for j in range(self.config.group_size))
        return Request(ids, tuple(keys))

    def _noisy(self, step: int, clean_B: Tensor, group_B: Tensor) -> Tensor:
        """Flip outcomes within the reward range with the configured probability, by rollout or by group."""
        config = self.config
        if config.reward_noise == 0:
            return clean_B
        member = torch.arange(len(clean_B)) % config.group_size
        places = zip(group_B.tolist(), (member if config.reward_noise_level == "rollout" else member * 0).tolist())
        keys = np.array([key(config.seed, Stream.NOISE, step, g, m) for g, m in places], dtype=np.uint64)
        flip_B = torch.from_numpy(uniforms(keys, 0, 1)[:, 0] < config.reward_noise)
        low, high = self.workload.reward_range if config.reward_range is None else config.reward_range
        return torch.where(flip_B, low + high - clean_B, clean_B)


def rollout_metrics(clean_B: Tensor, batch: Batch, truncated: Sequence[bool]) -> dict[str, float]:
    """Keys about rewards and responses; rewards are those before noise, over all scorable rollouts."""
    known = clean_B[clean_B.isfinite()]
    return {
        "reward/mean": float(known.mean()) if len(known) else float("nan"),
        "reward/std": float(known.std(correction=0)) if len(known) else float("nan"),
        "reward/unscorable": float((~batch.scorable_B).double().mean()),
        "completion/length_mean": float(batch.length_B.double().mean()),
        "completion/truncated": sum(truncated) / max(1, len(truncated)),
        "tokens/generated": float(batch.length_B.sum()),
        "tokens/value_extra": 0.0,
    }


def component_means(components: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each reward function where there are several, over the rollouts it scored."""
    if len(components) < 2:
        return {}
    arrays: dict[str, Any] = {name: np.array(values, dtype=float) for name, values in components.items()}
    return {name: float(np.nanmean(a)) if np.isfinite(a).any() else float("nan") for name, a in arrays.items()}
