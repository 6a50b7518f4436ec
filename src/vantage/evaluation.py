"""Accuracy of a policy on held-out problems: avg@k, unbiased pass@k, confidence intervals; `vantage eval`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vantage.distributed import World
from vantage.errors import UserError
from vantage.policy import Policy
from vantage.prompting import decode_response, encode_prompt
from vantage.randomness import Stream, key
from vantage.rollout.engine import Engine, Request, Sampling
from vantage.tiny import policy_for

if TYPE_CHECKING:
    from vantage.config import EvalConfig
    from vantage.rewards.functions import RewardSet
    from vantage.tasks.base import Problem

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """Scores of P problems with k responses each; NaN where a response was unscorable."""

    score_PK: NDArray[np.float64]
    """Outcome as a share of the reward range: 1 correct, 0 wrong."""
    length_mean: float
    truncated: float
    responses: list[list[str]]

    def accuracy(self) -> tuple[float, float, float]:
        """avg@k and its 95 % interval; unscorable responses count as wrong."""
        return mean_interval(np.nan_to_num(self.score_PK, nan=0.0))

    def metrics(self) -> dict[str, float]:
        """The keys of metrics.jsonl."""
        mean, low, high = self.accuracy()
        return {
            "eval/accuracy": mean,
            "eval/accuracy_low": low,
            "eval/accuracy_high": high,
            "eval/length_mean": self.length_mean,
            "eval/truncated": self.truncated,
        }


def mean_interval(score_PK: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and 95 % interval over problems: Wilson's for one 0/1 score each, else normal over the problems' means."""
    problems = len(score_PK)
    if problems == 0:
        return math.nan, math.nan, math.nan
    per_problem = score_PK.mean(axis=1)
    mean = float(per_problem.mean())
    if score_PK.shape[1] == 1 and np.isin(score_PK, (0.0, 1.0)).all():
        return mean, *wilson(mean, problems)
    half = Z95 * float(per_problem.std(ddof=1)) / math.sqrt(problems) if problems > 1 else 1.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (J. Am. Stat. Assoc. 22, 1927)."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Unbiased chance that one of k responses is correct, from `samples` ≥ k of them (Chen et al., arXiv 2107.03374)."""
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod((samples - correct - i) / (samples - i) for i in range(k))


def evaluate(
    policy: Policy,
    engine: Engine,
    problems: Sequence[Problem],
    rewards: RewardSet,
    sampling: Sampling,
    *,
    reward_range: tuple[float, float],
    seed: int,
    k: int = 1,
    chat_template: str = "auto",
    world: World | None = None,
) -> Evaluation:
    """Generate and score k responses for each problem; the draws depend on (seed, problem, sample) only.

    In a `world` of several processes each does its share of the problems, and all get the whole.
    """
    world = world or World()
    mine = list(world.share(len(problems)))
    requests = [
        Request(
            encode_prompt(policy.tokenizer, problems[i].prompt, chat_template),
            tuple(key(seed, Stream.EVAL, i, j) for j in range(k)),
        )
        for i in mine
    ]
    rollouts = [r for group in engine.generate(requests, sampling) for r in group]
    texts = [decode_response(policy.tokenizer, r.response_ids) for r in rollouts]
    repeated = [problems[i] for i in mine for _ in range(k)]
    scored = rewards(
        prompts=[p.prompt for p in repeated],
        completions=texts,
        completion_ids=[r.response_ids for r in rollouts],
        columns=repeat_columns(repeated),
    )
    scores, lengths = scored.total, [len(r.response_ids) for r in rollouts]
    truncated = [r.finish_reason == "length" for r in rollouts]
    by_problem = [slice(j * k, (j + 1) * k) for j in range(len(mine))]
    found = world.together([(scores[s], lengths[s], truncated[s], texts[s]) for s in by_problem])
    low, high = reward_range
    score_PK = (np.array([row[0] for row in found]).reshape(len(problems), k) - low) / (high - low)
    return Evaluation(
        score_PK, float(np.mean([row[1] for row in found])), float(np.mean([row[2] for row in found])),
        [row[3] for row in found],
    )  # fmt: skip


def repeat_columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """Dataset columns as lists aligned with the rollouts; a column that a problem lacks is None there."""
    names = dict.fromkeys(name for p in problems for name in p.columns)
    return {name: [p.columns.get(name) for p in problems] for name in names}


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """`vantage eval`: print a table, write JSON where asked, return the results. Raises `UserError`."""
    from vantage.loading import choose_device, end_token_ids, load_policy
    from vantage.rollout.transformers_engine import TransformersEngine
    from vantage.tracking import finite, versions
    from vantage.workload import Workload

    work = Workload.of(config.task, config.reward, (), config.prompt_column)
    out = Path(config.out) if config.out else None
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    problems = work.task.evaluation(config.problems)
    policy = load_policy(
        policy_for(config.model, config.task), choose_device(config.device), temperature=config.temperature or 1.0
    )
    engine = TransformersEngine(policy, end_token_ids(policy), config.generation_batch)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or work.task.max_new_tokens or 512,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=tuple(work.task.stop),
    )
    found = evaluate(
        policy, engine, problems, work.rewards, sampling,
        reward_range=work.reward_range, seed=config.seed, k=config.k, chat_template=config.chat_template,
    )  # fmt: skip
    mean, low, high = found.accuracy()
    correct_P = (np.nan_to_num(found.score_PK, nan=0.0) >= 1 - 1e-9).sum(axis=1)
    powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= config.k]
    result: dict[str, Any] = {
        "model": config.model,
        "task": config.task,
        "problems": len(problems),
        "k": config.k,
        "avg@k": mean,
        "low": low,
        "high": high,
        "pass@k": {str(k): float(np.mean([pass_at_k(int(c), config.k, k) for c in correct_P])) for k in powers},
        "length_mean": found.length_mean,
        "truncated": found.truncated,
        "unscorable": float(np.isnan(found.score_PK).mean()),
        "sampling": {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "seed": config.seed,
        },
        "versions": versions(),
    }
    _print(result)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(finite(result), indent=1))
        with (out / "problems.jsonl").open("w", encoding="utf-8") as file:
            for problem, scores, responses in zip(problems, found.score_PK.tolist(), found.responses):
                row = {"prompt": problem.prompt, "scores": scores, "responses": responses}
                file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
    return result


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result['model']} on {result['task']}, {result['problems']} problems × {result['k']} responses"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row(f"avg@{result['k']}", f"{result['avg@k']:.3f}  [{result['low']:.3f}, {result['high']:.3f}]")
    for k, value in result["pass@k"].items():
        table.add_row(f"pass@{k}", f"{value:.3f}")
    table.add_row("response length", f"{result['length_mean']:.1f} tokens")
    table.add_row("truncated", f"{result['truncated']:.3f}")
    table.add_row("unscorable", f"{result['unscorable']:.3f}")
    Console().print(table)
