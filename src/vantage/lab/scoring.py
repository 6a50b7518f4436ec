"""All estimators on all test sets: what comes out, as plain values for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vantage.errors import UserError
from vantage.lab.bench import Bench
from vantage.lab.data import Floats, Ints, Pools, Rollouts, States, TestSet
from vantage.lab.metrics import Interval, calibration, measured, mse_corrected, mse_penalised, paired, resampled_rows
from vantage.lab.protocol import ValueEstimator
from vantage.lab.ranking import SIZES, ranked
from vantage.lab.settings import BUILT_IN
from vantage.memory.trace import QUESTIONS, Ledger
from vantage.plugins import one_line

MEMORY_STATES = 16
"""States for which peak memory is taken."""
Say = Callable[[str], None]


def parts_of(test: TestSet) -> dict[str, Ints]:
    """Rows of all states, of prompts and of starts of later steps; a part without states is left out."""
    cut_N = test.states.cut_N
    found = {"all": np.arange(len(cut_N)), "prompt": np.flatnonzero(cut_N == 0), "step": np.flatnonzero(cut_N > 0)}
    return {name: rows for name, rows in found.items() if len(rows)}


def predictions(name: str, estimator: ValueEstimator, states: States) -> Floats:
    """One number a state; raises `UserError` where an estimator of the user's gives something else."""
    try:
        found = np.asarray(estimator.predict(states), dtype=np.float64)
    except UserError:
        raise
    except Exception as error:
        if ".py:" not in name:
            raise
        raise UserError(f"--estimators {name}: predict fails: {one_line(error)}") from error
    if found.shape != (len(states),):
        raise UserError(
            f"--estimators {name}: predict gave the shape {found.shape} for {len(states)} states; one number each"
        )
    return found


def fitted(name: str, estimator: ValueEstimator, rollouts: Rollouts, bench: Bench) -> float:
    """Fit an estimator; returns the seconds that took."""
    start = time.perf_counter()
    try:
        estimator.fit(rollouts, bench)
    except UserError:
        raise
    except Exception as error:
        if ".py:" not in name:
            raise
        raise UserError(f"--estimators {name}: fit fails: {one_line(error)}") from error
    return time.perf_counter() - start


def score_estimator(
    name: str,
    estimator: ValueEstimator,
    tests: Sequence[TestSet],
    pools: Pools | None,
    resamples: int,
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Everything that is asked of one fitted estimator, and its predictions by test set."""
    predicted, seconds, states = dict[str, Floats](), 0.0, 0
    tokens = estimator.extra_tokens
    for test in tests:
        start = time.perf_counter()
        predicted[test.name] = predictions(name, estimator, test.states)
        seconds, states = seconds + time.perf_counter() - start, states + len(test.states)
    cost = {
        "seconds_per_state": seconds / max(1, states),
        "tokens_per_state": (estimator.extra_tokens - tokens) / max(1, states),
        "kept_bytes": estimator.size_bytes(),
        "peak_bytes": peak_bytes(name, estimator, tests[0].states),
    }
    sets = {test.name: measured_set(predicted[test.name], test, resamples) for test in tests}
    row = {
        "level": estimator.level,
        "sees_response": bool(estimator.sees_response),
        "about": BUILT_IN.get(name.partition(":")[0]) or (type(estimator).__doc__ or "").strip().partition("\n")[0],
        "cost": cost,
        "sets": sets,
        "ranking": ranking(name, estimator, pools, resamples),
    }
    return row, predicted


def measured_set(predicted_N: Floats, test: TestSet, resamples: int) -> dict[str, Any]:
    """Metrics with intervals for each part of a test set; calibration over all its states."""
    found: dict[str, Any] = {}
    for part, rows in parts_of(test).items():
        target, some_N = test.target.take(rows), predicted_N[rows]
        samples = resampled_rows(target.prompt_N, resamples)
        found[part] = {
            "states": len(rows),
            "predicted": int(np.isfinite(some_N).sum()),
            "metrics": {key: asdict(value) for key, value in measured(some_N, target, samples).items()},
            "mse_penalised": mse_penalised(some_N, target),
        }
    curve = calibration(predicted_N, test.target)
    found["calibration"] = {
        "predicted": curve.predicted_C.tolist(), "mean": curve.mean_C.tolist(), "count": curve.count_C.tolist(),
    }  # fmt: skip
    found["outcome"] = against_outcome(predicted_N, test)
    return found


def against_outcome(predicted_N: Floats, test: TestSet) -> dict[str, float]:
    """What the value is worth as a baseline of its own rollout: 1 − Var(reward − value)/Var(reward), prompts and all states."""
    reward_N = test.states.rollouts.reward_B[test.states.rollout_N]
    found = {}
    for part, rows in parts_of(test).items():
        r, v = reward_N[rows], predicted_N[rows]
        known = np.isfinite(r) & np.isfinite(v)
        spread = float(r[known].var()) if known.any() else 0.0
        found[part] = 1 - float((r[known] - v[known]).var()) / spread if spread > 0 else float("nan")
    return found


def ranking(name: str, estimator: ValueEstimator, pools: Pools | None, resamples: int) -> list[dict[str, Any]]:
    """Top-1 ranking of next steps by pool size; empty for what says one number for a whole response."""
    if pools is None or estimator.level == "response" or estimator.sees_response:
        return []
    predicted_N = predictions(name, estimator, pools.states)
    numbers = range(len(pools.prompts))
    rows = [np.flatnonzero(pools.pool_N == i) for i in numbers]
    found = [
        ranked(
            [predicted_N[r] for r in rows], [pools.truth_N[r] for r in rows], pools.prompts, size, resamples=resamples
        )
        for size in SIZES
    ]
    return [asdict(one) for one in found if one is not None]


class _Ledger(Ledger):  # type: ignore[no-untyped-call]
    """Counts the storages of a real computation, in which questions for a value have answers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `Ledger`."""
        if func in QUESTIONS:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def peak_bytes(name: str, estimator: ValueEstimator, states: States) -> int | None:
    """Bytes of tensors that predicting a few states makes and holds at the same time; None where that can not be said."""
    few, tokens, ledger = states.few(MEMORY_STATES), estimator.extra_tokens, _Ledger()
    try:
        with ledger:
            predictions(name, estimator, few)
    except (RuntimeError, NotImplementedError):
        return None
    finally:
        estimator.extra_tokens = tokens
    return ledger.peak


def differences(
    predicted: Mapping[str, Mapping[str, Floats]], tests: Sequence[TestSet], resamples: int
) -> list[dict[str, Any]]:
    """Paired difference in noise-corrected squared error of every estimator to the best, by test set, over all states."""
    rows = []
    for test in tests:
        errors = {name: mse_corrected(found[test.name], test.target) for name, found in predicted.items()}
        known = {name: error for name, error in errors.items() if np.isfinite(error)}
        if not known:
            continue
        best = min(known, key=lambda name: known[name])
        samples = resampled_rows(test.target.prompt_N, resamples)
        for name, found in predicted.items():
            if name != best and name in known:
                change: Interval = paired(
                    mse_corrected, found[test.name], predicted[best][test.name], test.target, samples
                )
                rows.append({"set": test.name, "estimator": name, "best": best, **asdict(change)})
    return rows
