"""Rollouts that somebody else has made: JSONL or Parquet with texts, rewards and, if there are any, features and values.

| column | what it is |
|---|---|
| `prompt`, `response`, `reward` | text (or chat messages), text, number; rows of equal prompts are siblings |
| `features` | list of numbers, as long in every row: for the estimator `features` |
| `split` | `train` or `test`; without it every fifth prompt is a test prompt |
| `value`, `value_samples` | what the prompt is worth, in units of the reward, as the mean of how many samples: the truth |
| others | go to the verifier, such as `answer` |

Without `value` the truth is Monte-Carlo by the policy and the verifier, as for rollouts of our own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vantage.errors import UserError
from vantage.lab.bench import Bench
from vantage.lab.data import Rollouts, TestSet
from vantage.lab.metrics import Target
from vantage.prompting import encode_prompt
from vantage.tasks.base import Problem
from vantage.tasks.readers import Source, read_source

OWN = ("prompt", "response", "reward", "features", "split", "value", "value_samples")
TEST_ONE_IN = 5


def read_rollouts(spec: str, bench: Bench) -> tuple[Rollouts, Rollouts]:
    """Training and test rollouts of a file; raises `UserError` with the line of what is wrong."""
    source = read_source(spec, "--rollouts-from")
    low, high = bench.reward_range
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for index in range(len(source.rows)):
        row = source.rows[index]
        for column in OWN[:3]:
            if row.get(column) is None:
                raise UserError(f"{source.name}: {source.place(index)} has no {column!r}")
        if not isinstance(row["response"], str):
            raise UserError(f"{source.name}: {source.place(index)} has a response that is no text")
        reward = _number(row["reward"], source, index, "reward")
        if math.isfinite(reward) and not low <= reward <= high:
            raise UserError(
                f"{source.name}: {source.place(index)} has the reward {reward:g}, not within the task's {low:g} to {high:g}"
            )
        groups.setdefault(json.dumps(row["prompt"], sort_keys=True), []).append((index, row))
    parts: dict[str, list[tuple[int, int, Mapping[str, Any]]]] = {"train": [], "test": []}
    for number, some in enumerate(groups.values()):
        for index, row in some:
            split = str(row.get("split") or ("test" if number % TEST_ONE_IN == TEST_ONE_IN - 1 else "train"))
            if split not in parts:
                raise UserError(f"{source.name}: {source.place(index)} has the split {split!r}; train or test")
            parts[split].append((number, index, row))
    if few := next((name for name, rows in parts.items() if len({number for number, _, _ in rows}) < 8), None):
        raise UserError(f"{source.name}: it has fewer than 8 {few} prompts, too few to learn from or for an interval")
    return _rollouts(parts["train"], source, bench), _rollouts(parts["test"], source, bench)


def _number(value: Any, source: Source, index: int, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{source.name}: {source.place(index)} has the {column} {value!r}, which is no number"
        ) from error


def _rollouts(rows: list[tuple[int, int, Mapping[str, Any]]], source: Source, bench: Bench) -> Rollouts:
    tokenizer, (low, high) = bench.policy.tokenizer, bench.reward_range
    problems, prompts, responses, features = [], [], [], []
    limit = bench.sampling.max_new_tokens
    for _, index, row in rows:
        columns = {name: value for name, value in row.items() if name not in ("prompt", "response", "reward", "split")}
        domain = str(row.get("domain") or "default")
        problems.append(Problem(row["prompt"], columns, domain))
        prompts.append(encode_prompt(tokenizer, row["prompt"], bench.config.chat))
        ids = list(tokenizer(row["response"], add_special_tokens=False)["input_ids"])[:limit]
        end = bench.engine.end_ids[:1]
        responses.append([*ids, *end] if len(ids) < limit and not (ids and ids[-1] in bench.engine.end_ids) else ids)
        if row.get("features") is not None:
            features.append([_number(x, source, index, "feature") for x in row["features"]])
    if features and (len(features) < len(rows) or len({len(f) for f in features}) > 1):
        raise UserError(f"{source.name}: some rows have other features than the rest, or none; all need equally many")
    rewards = np.array([float(row["reward"]) for _, _, row in rows], dtype=np.float64)
    return Rollouts(
        problems, prompts, responses, [str(row["response"]) for _, _, row in rows],
        np.array([number for number, _, _ in rows], dtype=np.int64), (rewards - low) / (high - low),
        np.array([len(ids) >= limit for ids in responses], dtype=np.bool_), None,
        np.array(features, dtype=np.float64) if features else None,
    )  # fmt: skip


def given_truth(name: str, rollouts: Rollouts, constant: float, bench: Bench) -> TestSet | None:
    """Prompt states with the values of the file; None where it has none."""
    values = [problem.columns.get("value") for problem in rollouts.problems]
    if any(value is None for value in values):
        return None
    low, high = bench.reward_range
    mean_N = (np.array(values, dtype=np.float64) - low) / (high - low)
    samples = [problem.columns.get("value_samples") for problem in rollouts.problems]
    # Without the number of samples the values are taken as exact.
    count_N = np.array([math.inf if s is None else max(2.0, float(s)) for s in samples])
    within_N = mean_N * (1 - mean_N)
    states = bench.places(rollouts, range(len(rollouts)), [0] * len(rollouts))
    target = Target(mean_N, within_N / (count_N - 1), within_N, rollouts.prompt_B, constant)
    return TestSet(name, states, target, 0)
