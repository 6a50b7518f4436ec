"""What does `vantage eval` do? Several benchmarks, one or two models; a table, and JSON where asked."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vantage.errors import UserError
from vantage.evaluation.scoring import Benchmark, Evaluation, evaluate_all, short_name
from vantage.evaluation.statistics import (
    Estimate,
    macro_average,
    majority_at_k,
    paired_difference,
    pass_all_k,
    pass_at_k,
    powers_of_two,
    problem_estimate,
)
from vantage.protocols import PRESETS, eval_tasks
from vantage.tasks import options_of

if TYPE_CHECKING:
    from vantage.config import EvalConfig

Found = dict[str, Evaluation]


def benchmarks_of(config: EvalConfig) -> list[Benchmark]:
    """The benchmarks of a configuration with their problems read; raises `UserError`."""
    preset = PRESETS[config.preset] if config.preset else None
    specs = eval_tasks(config)
    given = {
        "prompt_column": None if config.prompt_column == "prompt" else config.prompt_column,
        "answer_column": config.answer_column,
        "prompt_template": config.prompt_template,
        "system_prompt": config.system_prompt,
    }
    options = shared_options(specs, {name: value for name, value in given.items() if value is not None})
    names = [short_name(spec) for spec in specs]
    found = []
    for spec, name, data in zip(specs, names, options, strict=True):
        k = config.k or (preset.responses.get(spec, preset.k) if preset else 32)
        if config.pass_k and max(config.pass_k) > k:
            raise UserError(f"--pass-k is {max(config.pass_k)}, more than the {k} responses to a problem of {spec}")
        found.append(
            Benchmark.of(
                spec,
                problems=config.problems,
                k=k,
                temperature=_first(config.temperature, preset.temperature if preset else None, 0.6),
                top_p=_first(config.top_p, preset.top_p if preset else None, 0.95),
                top_k=config.top_k,
                max_new_tokens=config.max_new_tokens or (preset.max_new_tokens if preset else None),
                reward=config.reward,
                name=name if names.count(name) == 1 else spec,
                whole=config.rows == "all",
                **data,
            )
        )
    return found


def shared_options(specs: Sequence[str], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each of several tasks the options that it takes; one that none of them takes goes to the first, to be refused."""
    taken = [options_of(spec) for spec in specs]
    nobodys = {name for name in options if not any(name in names for names in taken)}
    return [
        {name: value for name, value in options.items() if name in names or (index == 0 and name in nobodys)}
        for index, names in enumerate(taken)
    ]


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def run_eval(config: EvalConfig) -> dict[str, Any]:
    """Evaluate, print a table, write JSON where asked, return the results; raises `UserError`."""
    from vantage.evaluation.table import print_results
    from vantage.tracking import finite, versions

    out = Path(config.out) if config.out else None
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder")
    benchmarks = benchmarks_of(config)
    found = _evaluate_model(config.model, benchmarks, config)
    before = _evaluate_model(config.against, benchmarks, config) if config.against else None
    result: dict[str, Any] = {
        "model": config.model,
        "preset": config.preset,
        "seed": config.seed,
        "interval": config.interval,
        **results(benchmarks, found, config.pass_k, config.interval),
    }
    if before is not None:
        result["against"] = {
            "model": config.against,
            **results(benchmarks, before, config.pass_k, config.interval),
            "difference": differences(found, before, config.interval),
        }
    result["versions"] = versions()
    print_results(result)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(finite(result), indent=1, ensure_ascii=False), encoding="utf-8")
        with (out / "problems.jsonl").open("w", encoding="utf-8") as file:
            for model, evaluations in ((config.model, found), (config.against, before)):
                for row in problem_rows(model, benchmarks, evaluations or {}):
                    file.write(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n")
    return result


def _evaluate_model(model: str, benchmarks: Sequence[Benchmark], config: EvalConfig) -> Found:
    """Load a model, evaluate it on every benchmark, and let go of it, so that a second one has the memory."""
    from vantage.models.holding import ModelOptions
    from vantage.models.loading import choose_device, end_token_ids, load_policy
    from vantage.prompting import check_thinking
    from vantage.rollout.transformers_engine import TransformersEngine
    from vantage.tiny import policy_for

    name = policy_for(model, eval_tasks(config)[0])
    policy = load_policy(
        name, choose_device(config.device), temperature=benchmarks[0].sampling.temperature or 1.0,
        options=ModelOptions(config.precision, config.attention),
    )  # fmt: skip
    if config.enable_thinking is not None:
        check_thinking(policy.tokenizer, name)
    engine = TransformersEngine(policy, end_token_ids(policy), config.generation_batch)

    def announce(b: Benchmark) -> None:
        if len(benchmarks) > 1 or config.against:
            print(f"{model}: {b.name}, {len(b.problems)} problems × {b.k} responses", file=sys.stderr, flush=True)

    found = evaluate_all(policy, engine, benchmarks, seed=config.seed, chat=config.chat, announce=announce)
    del policy, engine
    gc.collect()
    return found


def results(
    benchmarks: Sequence[Benchmark], found: Mapping[str, Evaluation], ks: Sequence[int] | None, method: str = "normal"
) -> dict[str, Any]:
    """What evaluations say, for JSON: `benchmarks`, one entry each, and `macro`, their mean, where there are several."""
    rows = [benchmark_result(b, found[b.name], ks, method) for b in benchmarks]
    if len(rows) == 1:
        return {"benchmarks": rows, "macro": None}
    macro = macro_average([found[b.name].scored_PK.mean(axis=1) for b in benchmarks], method)
    return {"benchmarks": rows, "macro": {"avg@k": macro.mean, "low": macro.low, "high": macro.high}}


def benchmark_result(
    b: Benchmark, found: Evaluation, ks: Sequence[int] | None, method: str = "normal"
) -> dict[str, Any]:
    """avg@k, pass@k, pass^k and majority@k of one benchmark, each with its interval over problems, for JSON."""
    values = per_problem(found, sorted(set(ks)) if ks else powers_of_two(b.k))
    average = problem_estimate(found.scored_PK.mean(axis=1), method)
    row: dict[str, Any] = {
        "task": b.name,
        "problems": len(b.problems),
        "k": b.k,
        "avg@k": average.mean,
        "low": average.low,
        "high": average.high,
    }
    for metric, by_k in values.items():
        estimates = {str(k): problem_estimate(value_P, method) for k, value_P in by_k.items()}
        row[metric] = {k: estimate.mean for k, estimate in estimates.items()}
        row[f"{metric} interval"] = {k: [estimate.low, estimate.high] for k, estimate in estimates.items()}
    return row | {
        "length_mean": found.length_mean,
        "truncated": found.truncated,
        "unscorable": float(np.isnan(found.score_PK).mean()),
        "sampling": {
            "temperature": b.sampling.temperature,
            "top_p": b.sampling.top_p,
            "top_k": b.sampling.top_k,
            "max_new_tokens": b.sampling.max_new_tokens,
        },
    }


def per_problem(found: Evaluation, ks: Sequence[int]) -> dict[str, dict[int, NDArray[np.float64]]]:
    """pass@k, pass^k and, where any response votes, majority@k: a value for each problem [P], by k."""
    samples = found.score_PK.shape[1]
    correct_P = found.correct_PK.sum(axis=1).tolist()
    values = {
        "pass@k": {k: np.array([pass_at_k(c, samples, k) for c in correct_P]) for k in ks},
        "pass^k": {k: np.array([pass_all_k(c, samples, k) for c in correct_P]) for k in ks},
    }
    if any(vote is not None for votes in found.votes for vote in votes):
        scores = found.scored_PK.tolist()
        values["majority@k"] = {
            k: np.array([majority_at_k(v, s, k) for v, s in zip(found.votes, scores, strict=True)]) for k in ks
        }
    return values


def differences(found: Mapping[str, Evaluation], before: Mapping[str, Evaluation], method: str) -> dict[str, Any]:
    """Paired difference in avg@k by benchmark and, where there are several, their mean (`macro`), for JSON."""
    rows, changes = {}, []
    for name, after in found.items():
        one_P, other_P = after.scored_PK.mean(axis=1), before[name].scored_PK.mean(axis=1)
        paired = paired_difference(one_P, other_P, method)
        changes.append(one_P - other_P)
        rows[name] = {
            **_interval(paired.difference), "better": paired.better, "worse": paired.worse, "equal": paired.equal,
        }  # fmt: skip
    macro = _interval(macro_average(changes, method, -1.0)) if len(changes) > 1 else None
    return {"benchmarks": rows, "macro": macro}


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def problem_rows(
    model: str | None, benchmarks: Sequence[Benchmark], found: Mapping[str, Evaluation]
) -> list[dict[str, Any]]:
    """One row for each problem, with every response, its score, its vote and its length."""
    rows = []
    for b in benchmarks:
        if b.name not in found:
            continue
        one = found[b.name]
        for index, problem in enumerate(b.problems):
            rows.append(
                {
                    "model": model,
                    "task": b.name,
                    "index": index,
                    "prompt": problem.prompt,
                    "answer": problem.columns.get("answer"),
                    "mean": float(one.scored_PK[index].mean()),
                    "correct": int(one.correct_PK[index].sum()),
                    "scores": one.score_PK[index].tolist(),
                    "votes": one.votes[index] if one.votes else None,
                    "lengths": one.length_PK[index].tolist(),
                    "truncated": one.truncated_PK[index].tolist(),
                    "responses": one.responses[index],
                }
            )
    return rows
