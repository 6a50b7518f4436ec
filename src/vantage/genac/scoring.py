"""How good is a saved critic on held-out problems? `vantage critic score`: outcomes, Monte-Carlo truth, parts of responses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vantage.config import TrainConfig
from vantage.estimators.genac import Genac
from vantage.genac.actor import ActorFacts
from vantage.genac.alone import bench
from vantage.genac.harvest import Seen, harvest
from vantage.genac.oracle import has_oracle
from vantage.genac.panel import Judged, judge
from vantage.genac.settings import ScoreConfig
from vantage.lab.metrics import (
    Metric,
    Target,
    measured,
    mse,
    mse_corrected,
    mse_penalised,
    paired,
    pearson,
    resampled_rows,
)
from vantage.montecarlo import truth
from vantage.prompting import decode_response
from vantage.randomness import Stream, key
from vantage.tasks.base import Task
from vantage.tracking import finite, versions

CORRECTED = "mse_noise_corrected"
METRICS_OF_VALUES: dict[str, Metric] = {
    "mse": mse, CORRECTED: mse_corrected, "mse_penalised": mse_penalised, "pearson": pearson,
}  # fmt: skip


def score(config: ScoreConfig) -> dict[str, Any]:
    """Print a table, write JSON where asked, return the results. Raises `UserError`."""
    choice = None if config.critic == "embedded" else config.critic
    options = Genac(critic=choice, sft_steps=0, icc=config.icc, samples=config.samples, reading=config.reading)
    train = TrainConfig(
        model=config.model, task=config.task, algo=options, seed=config.seed, device=config.device,
        max_new_tokens=config.max_new_tokens,
    )  # fmt: skip
    made = bench(train, options)
    estimator, services = made.estimator, made.services
    estimator.actor.rate = config.rate
    estimator.first_success_rate()
    problems = services.workload.task.evaluation(config.problems)
    seen, _ = harvest(
        services, estimator.splitter, estimator.actor, problems=problems, rollouts=config.rollouts, seed=config.seed
    )
    keys = [[key(config.seed, Stream.CRITIC, 8, i, j) for j in range(config.samples)] for i in range(len(seen))]
    actor: ActorFacts = estimator.actor
    opinions = estimator.critic.ask([s.trace.view for s in seen], keys, actor, soft=config.reading == "expected")
    values = [o.value for o in opinions]
    flat = [v for o in opinions for v in o.values]
    result: dict[str, Any] = {
        "critic": config.critic, "model": config.model, "task": config.task, "problems": len(problems),
        "states": len(seen), "samples": config.samples, "reading": config.reading, "shown_rate": actor.rate,
        "completions_parsed": sum(v is not None for v in flat) / max(1, len(flat)),
        "against_outcomes": asdict(_against(seen, values)),
        "parts": {part: asdict(_against(seen, values, part)) for part in ("early", "middle", "late")},
        "versions": versions(),
    }  # fmt: skip
    if config.continuations:
        said = oracle_values(services.workload.task, seen, actor.rate)
        seen, result["against_truth"] = _with_truth(config, services, seen, values, said)
    _print(result)
    if config.out is not None:
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "score.json").write_text(json.dumps(finite(result), indent=1), encoding="utf-8")
        with (out / "states.jsonl").open("w", encoding="utf-8") as file:
            for s, opinion in zip(seen, opinions):
                row = asdict(replace(s.trace, completion="")) | {"value": opinion.value, "values": opinion.values}
                tokenizer = estimator.critic.policy.tokenizer
                row["said"] = [decode_response(tokenizer, r.response_ids) for r in opinion.rollouts]
                file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")
    return result


def _against(seen: list[Seen], values: list[float | None], part: str | None = None) -> Judged:
    pairs = [(v, s.trace.outcome) for s, v in zip(seen, values) if part is None or s.trace.part == part]
    return judge([v for v, _ in pairs], [math.nan if r is None else r for _, r in pairs])


def _with_truth(
    config: ScoreConfig, services: Any, seen: list[Seen], values: list[float | None], oracle: list[float] | None
) -> tuple[list[Seen], dict[str, Any]]:
    """The error against Monte-Carlo truth, with its own noise taken out; a failure counts as an error of 1 where penalised."""
    work = services.workload
    found = truth(
        services.policy, services.engine, [s.state for s in seen], work.rewards, services.sampling,
        k=config.continuations, seed=config.seed, reward_range=work.reward_range,
    )  # fmt: skip
    mean_N, variance_N = found.share_N, found.share_variance_N
    value_N = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    best = float(np.nanmean(mean_N))
    number = {text: i for i, text in enumerate(dict.fromkeys(s.trace.problem for s in seen))}
    prompt_N = np.array([number[s.trace.problem] for s in seen])
    target = Target(mean_N, variance_N, mean_N * (1 - mean_N), prompt_N, best)
    truths = [v if math.isfinite(v) else None for v in mean_N.tolist()]
    numbers = {
        **errors(value_N, target, None if oracle is None else np.array(oracle)),
        "continuations": float(config.continuations),
        "tokens": float(found.generated),
    }
    return [replace(s, trace=replace(s.trace, truth=v)) for s, v in zip(seen, truths)], numbers


def oracle_values(task: Task, seen: list[Seen], rate: float | None) -> list[float] | None:
    """What the task's own oracle, if it has one, says of the states: what a critic taught by it can come to."""
    if not has_oracle(task):
        return None
    said = [task.critique(s.state.problem, s.trace.prefix, 0.5 if rate is None else rate) for s in seen]
    return [critique.value for critique in said if critique is not None]


def errors(value_N: NDArray[np.float64], target: Target, oracle_N: NDArray[np.float64] | None = None) -> dict[str, Any]:
    """Values (NaN: a failure) against truth [N]: each number, and under `intervals` its 95 % interval over problems."""
    rows, constant_N = resampled_rows(target.prompt_N), np.full(len(value_N), target.constant)
    found = measured(value_N, target, rows, METRICS_OF_VALUES)
    others = {"the_best_constant": constant_N} | ({} if oracle_N is None else {"the_oracle": oracle_N})
    for who, other_N in others.items():
        other = measured(other_N, target, rows, {name: METRICS_OF_VALUES[name] for name in ("mse", CORRECTED)})
        found |= {name.replace("mse", f"mse_of_{who}", 1): row for name, row in other.items()}
    found[f"{CORRECTED}_less_that_of_the_constant"] = paired(mse_corrected, value_N, constant_N, target, rows)
    intervals = {name: [row.low, row.high] for name, row in found.items()}
    return {**{name: row.mean for name, row in found.items()}, "intervals": intervals}


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result['critic']} on {result['states']} states of {result['model']}'s responses to {result['task']}"
    table = Table(title=title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_row("shown success rate", "none" if result["shown_rate"] is None else f"{result['shown_rate']:.3f}")
    table.add_row("completions that can be parsed", f"{result['completions_parsed']:.3f}")
    for name, value in result["against_outcomes"].items():
        table.add_row(
            f"{name.replace('_', ' ')} (outcomes)", f"{value:.4f}" if isinstance(value, float) else str(value)
        )
    against = dict(result.get("against_truth", {}))
    intervals = against.pop("intervals", {})
    for name, value in against.items():
        low, high = intervals.get(name, (None, None))
        between = "" if low is None else f" [{low:.4f}, {high:.4f}]"
        table.add_row(f"{name.replace('_', ' ')} (truth)", f"{value:.4f}{between}")
    Console().print(table)
