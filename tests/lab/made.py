"""What lab.json holds, made up: long names, missing numbers, two test sets, ranking, a grid."""

from __future__ import annotations

from typing import Any

from vantage.lab.metrics import METRICS

NAMES = ("constant", "poise_self", "poise_token", "some/where/mine.py:AnEstimateWithARatherLongName", "genac")


def about(mean: float | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": mean, "low": 0.8 * mean, "high": 1.3 * mean}


def part(place: int, states: int) -> dict[str, Any]:
    metrics = {key: about(None if key.startswith("pearson") and place == 0 else 0.1 + 0.03 * place) for key in METRICS}
    return {"states": states, "predicted": states - place, "metrics": metrics, "mse_penalised": 0.2}


def entry(place: int, name: str) -> dict[str, Any]:
    sets = {
        test: {
            "all": part(place, 60), "prompt": part(place, 20), "step": part(place, 40),
            "calibration": {"predicted": [0.1, 0.5, 0.9], "mean": [0.2, 0.4, 0.95], "count": [10, 30, 20]},
            "outcome": {"all": 0.1, "prompt": 0.2, "step": None},
        }
        for test in ("held-out", "sums:more-terms")
    }  # fmt: skip
    ranking = [
        {"size": size, "states": 8, "credit": [0.5, 0.3, 0.7], "chance": 1 / size, "pairwise": [0.6, 0.5, 0.7],
         "regret": [0.1, 0.0, 0.2]}
        for size in (2, 4, 8)
    ]  # fmt: skip
    cost = {
        "seconds_per_state": 0.001 * (1 + place), "tokens_per_state": 10.0 * place, "kept_bytes": 10**place,
        "peak_bytes": None if place == 4 else 10**6, "fit_seconds": 2.0,
    }  # fmt: skip
    return {
        "level": "token", "sees_response": name == "poise_self", "about": f"what {name} is", "cost": cost, "sets": sets,
        "ranking": ranking if place > 1 else [],
    }  # fmt: skip


def made_lab() -> dict[str, Any]:
    """As `vantage.lab.command.run_lab` gives it."""
    grid_row = {
        name: about(0.7) for name in ("mae", "mse_corrected", "pearson", "pearson_corrected", "explained_variance")
    }
    grid = {
        "layers": [0, 2, 4], "windows": [1, 10], "regressors": ["ridge", "mlp-2x64"], "features": ["prompt", "full"],
        "rows": [
            {"features": f, "layer": k, "window": w, "regressor": r, "columns": 3, **grid_row}
            for f in ("prompt", "full") for k in (0, 2, 4) for w in (1, 10) for r in ("ridge", "mlp-2x64")
        ],
    }  # fmt: skip
    about_set = {
        "states": 60, "prompts": 20, "rollouts": 40, "mean": 0.4, "noise": 0.003, "variance_of_values": 0.06, "tokens": 12_345,
        "accuracy": 0.41,
    }  # fmt: skip
    sets = [{"name": "held-out", **about_set}, {"name": "sums:more-terms", **about_set, "variance_of_values": 0.0}]
    differences = [{"set": "held-out", "estimator": name, "best": NAMES[1], **about(0.02)} for name in NAMES[2:]]
    return {
        "kind": "lab", "model": "tiny", "task": "sums", "quick": True, "seed": 0, "configuration": {"continuations": 16},
        "reward_range": [0.0, 1.0], "train_mean": 0.4, "train_rollouts": 512, "max_new_tokens": 124, "sets": sets,
        "pools": {"states": 8, "candidates": 60, "continuations": 16, "tokens": 999},
        "estimators": {name: entry(place, name) for place, name in enumerate(NAMES)}, "differences": differences,
        "ablation": grid, "seconds": 100.0, "versions": {"vantage": "0.1.0"}, "git_commit": None,
        "machine": {"cores": 2, "gpu": None},
    }  # fmt: skip
