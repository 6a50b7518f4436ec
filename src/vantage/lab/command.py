"""What does `vantage lab` do? A benchmark of states with truth, all estimators on it, and a folder with what came out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vantage.lab.bench import Bench, check_learnable
from vantage.lab.choose import Origin, chosen
from vantage.lab.data import Floats, Pools, Rollouts, TestSet
from vantage.lab.elsewhere import given_truth, read_rollouts
from vantage.lab.scoring import differences, fitted, score_estimator
from vantage.lab.settings import RESULT, LabConfig, check_out
from vantage.tracking import finite, git_commit, versions

HELD_OUT = "held-out"


def run_lab(config: LabConfig) -> dict[str, Any]:
    """Build the benchmark, score, write the folder, return what lab.json holds. Raises `UserError`."""
    out = check_out(config.out)
    config = config.resolved()
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - start:6.1f} s  {text}", file=sys.stderr, flush=True)

    task, origin, shifts = what_of_run(config)
    bench = Bench.of(config, task, shifts)
    given = None if config.rollouts_from is None else read_rollouts(config.rollouts_from, bench)
    # Names, files and folders are looked at before anything is generated.
    estimators = chosen(config.estimators, bench, origin, given is not None and given[0].features_BP is not None)
    train, held = given or (bench.training(), bench.held_out(None, config.prompts or 0))
    check_learnable(train)
    constant = float(np.nanmean(train.reward_B))
    say(f"{len(train)} training rollouts, mean reward {constant:.3f}; {len(held)} test rollouts")
    tests = test_sets(bench, held, shifts, constant, say)
    pools = bench.pools(held, config.pools) if config.pools else None
    if pools is not None:
        say(f"ranking: {len(pools.prompts)} states with {len(pools.states)} next steps")
    found, predicted, fits = dict[str, Any](), dict[str, Mapping[str, Floats]](), dict[str, float]()
    for name, estimator in estimators:
        fits[name] = fitted(name, estimator, train, bench)
        found[name], predicted[name] = score_estimator(name, estimator, tests, pools, config.resamples or 0)
        found[name]["cost"]["fit_seconds"] = fits[name]
        error = found[name]["sets"][tests[0].name]["all"]["metrics"]["mse_corrected"]["mean"]
        say(f"{name}: squared error {error:.4f} without the truth's noise")
    grid = None
    if config.ablate:
        from vantage.lab.ablation import ablate

        grid = ablate(bench, train, tests[0], say)
    result = {
        "kind": "lab", "model": config.model, "task": bench.work.task.name, "quick": config.quick, "seed": config.seed,
        "configuration": asdict(config), "reward_range": list(bench.reward_range), "train_mean": constant,
        "train_rollouts": len(train), "max_new_tokens": bench.sampling.max_new_tokens,
        "sets": [about(test) for test in tests], "pools": None if pools is None else about_pools(pools),
        "estimators": found, "differences": differences(predicted, tests, config.resamples or 0), "ablation": grid,
        "seconds": time.perf_counter() - start, "versions": versions(), "git_commit": git_commit(), "machine": machine(),
    }  # fmt: skip
    plain: dict[str, Any] = finite(result)
    write(out, plain, tests, predicted)
    return plain


def what_of_run(config: LabConfig) -> tuple[str, Origin, list[str]]:
    """Task, origin and shifts, where the run says what the flags do not."""
    from vantage.runfiles import read_config
    from vantage.tasks import BUILT_IN

    run: dict[str, Any] = read_config(Path(config.model)) if (Path(config.model) / "config.yaml").is_file() else {}
    task = str(config.task or run.get("task") or "sums")
    algo = run.get("algo") if isinstance(run.get("algo"), str) else None
    options = run.get("vimpo") if algo == "vimpo" else None
    beta = float(options["beta"]) if isinstance(options, dict) and "beta" in options else None
    critic = (
        str(Path(config.model) / "critic") if algo == "genac" and (Path(config.model) / "critic").is_dir() else None
    )
    origin = Origin(config.reference or (str(run["model"]) if run.get("model") else None), beta, critic)
    if config.rollouts_from is not None:
        return task, origin, []
    if config.shifts is not None:
        from vantage.tasks import get_task, task_specs

        shifts = [] if config.shifts == "none" else task_specs(config.shifts, "--shifts")
        for shift in shifts:
            get_task(shift)
        return task, origin, shifts
    name, _, split = task.partition(":")
    own = BUILT_IN[name][1] if name in BUILT_IN and not split else ()
    return task, origin, [f"{name}:{other}" for other in own if other]


def test_sets(bench: Bench, held: Rollouts, shifts: Sequence[str], constant: float, say: Any) -> list[TestSet]:
    """Held-out states and those of every shift, with truth."""
    tests = [given_truth(HELD_OUT, held, constant, bench) or bench.test_set(HELD_OUT, held, constant)]
    for shift in shifts:
        rollouts = bench.held_out(shift, bench.config.shift_prompts or 0)
        tests.append(bench.test_set(shift, rollouts, constant))
    for test in tests:
        say(f"{test.name}: truth of {len(test.states)} states, mean {np.nanmean(test.target.mean_N):.3f}")
    return tests


def about(test: TestSet) -> dict[str, Any]:
    """What a test set consists of."""
    target = test.target
    spread = float(np.nanvar(target.mean_N)) - float(np.nanmean(target.variance_N))
    return {
        "name": test.name, "states": len(test.states), "prompts": len(set(test.states.prompt_N.tolist())),
        "rollouts": len(test.states.rollouts), "mean": float(np.nanmean(target.mean_N)),
        "noise": float(np.nanmean(target.variance_N)), "variance_of_values": spread, "tokens": test.generated,
        "accuracy": float(np.nanmean(test.states.rollouts.reward_B)),
    }  # fmt: skip


def about_pools(pools: Pools) -> dict[str, Any]:
    """What is ranked."""
    return {
        "states": len(pools.prompts), "candidates": len(pools.states), "continuations": pools.continuations,
        "tokens": pools.generated,
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, cores, threads, accelerator."""
    import os
    import platform

    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu,
    }  # fmt: skip


def write(
    out: Path, result: Mapping[str, Any], tests: Sequence[TestSet], predicted: Mapping[str, Mapping[str, Floats]]
) -> None:
    """states.jsonl, the page with its plots, and at last lab.json."""
    from vantage.lab.report import write_lab_report

    out.mkdir(parents=True, exist_ok=True)
    with (out / "states.jsonl").open("w", encoding="utf-8") as file:
        for test in tests:
            for i in range(len(test.states)):
                file.write(json.dumps(finite(state_row(test, i, predicted)), ensure_ascii=False, default=str) + "\n")
    write_lab_report(result, out)
    (out / RESULT).write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")


def state_row(test: TestSet, i: int, predicted: Mapping[str, Mapping[str, Floats]]) -> dict[str, Any]:
    """A state with its truth and what every estimator said."""
    states, target = test.states, test.target
    return {
        "set": test.name, "prompt": states.problem(i).prompt, "prompt_number": int(states.prompt_N[i]),
        "prefix": states.prefix_text(i), "tokens": int(states.cut_N[i]), "truth": float(target.mean_N[i]),
        "truth_variance": float(target.variance_N[i]), "reward": float(states.rollouts.reward_B[states.rollout_N[i]]),
        "predictions": {name: float(found[test.name][i]) for name, found in predicted.items()},
    }  # fmt: skip
