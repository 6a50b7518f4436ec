"""The page's parts on P3 (probe against critic) and P4 (what the probe needs), from results/p3-*.json and p4-*.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

Found = Mapping[str, Any]
PAPER = {"probe": (0.141, 0.870), "critic": (0.262, 0.676)}
"""Qwen3-4B on DAPO-Math: absolute error and correlation, Table 2."""
NAMES = {
    "poise": "probe, other rollout", "poise_prompt": "probe, prompt alone", "sequence": "critic of policy size",
    "leave_one_out": "the other rollout's reward", "constant": "constant",
}  # fmt: skip


def lab() -> list[str]:
    """P3 and P4, as far as they have been measured."""
    worlds = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("p3-*.json"), key=_order)]
    grids = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("p4-*.json"), key=_order)]
    return [*(p3(worlds) if worlds else []), *(line for grid in grids for line in p4(grid))]


def _order(path: Path) -> tuple[bool, str]:
    """`sums` first, then by name."""
    return ("-sums" not in path.stem, path.stem)


def number(value: float | None, form: str = "{:.3f}") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return form.format(value).replace("-", "−")


def interval(metric: Found, signed: bool = False) -> str:
    form = "{:+.3f}" if signed else "{:.3f}"
    return f"{number(metric['mean'], form)} [{number(metric['low'], form)}, {number(metric['high'], form)}]"


def policy_of(found: Found) -> str:
    steps = found["trained_steps"]
    return f"`{found['world']}`" + (f", {steps} steps of POISE later" if steps else "")


def p3(worlds: Sequence[Found]) -> list[str]:
    first, settings = worlds[0], worlds[0]["settings"]
    lines = [
        "# P3: the probe is as good as a critic of the policy's size (POISE Figure 1, Tables 2 and 7)",
        "",
        "**Scale.** The embedded policy of each world (0.8 million parameters), at rest;",
        f"{settings['train_rollouts']:,} training rollouts, two a prompt, for all; {settings['prompts']} held-out prompts,",
        f"each read from two rollouts; truth Avg@{settings['continuations']} (the paper's is Avg@8); seed {settings['seed']}.",
        "The critic reads the prompt alone; its learning rate and epochs are the best of six pairs on held-back prompts.",
        "The probe reads a rollout of the prompt too.",
        "Squared error and r are without the noise of the truth; intervals are a bootstrap over prompts. `benchmarks/p3.py`.",
        "",
        "| world (mean value) | estimate | absolute error | squared error | r | r, noise left in |",
        "|---|---|---|---|---|---|",
    ]
    for found in worlds:
        for name, said in NAMES.items():
            row = found["estimators"][name]
            lines.append(
                f"| {policy_of(found)} ({found['set']['mean']:.2f}) | {said} | {interval(row['mae'])} | "
                f"{interval(row['mse_corrected'])} | {interval(row['pearson_corrected'])} | {number(row['pearson']['mean'])} |"
            )
    return [*lines, "", *p3_claims(worlds, first), ""]


def p3_claims(worlds: Sequence[Found], first: Found) -> list[str]:
    """Probe − critic, world by world, and what that says."""
    lines = [
        "| claim | paper | ours, probe − critic | verdict |",
        "|---|---|---|---|",
    ]
    for found in worlds:
        error, r = (change(found, "poise", "sequence", metric) for metric in ("mae", "pearson_corrected"))
        probe, critic = PAPER["probe"], PAPER["critic"]
        paper = (
            f"MAE {probe[0]:.3f} against {critic[0]:.3f}, r {probe[1]:.3f} against {critic[1]:.3f}"
            if found is first
            else "as above"
        )
        lines.append(
            f"| as good as the critic, {policy_of(found)} | {paper} | MAE {interval(error, True)}, r {interval(r, True)} | "
            f"{said(error, r)} |"
        )
    for found in worlds:
        r = change(found, "poise_prompt", "sequence", "pearson_corrected")
        error = change(found, "poise_prompt", "sequence", "mae")
        lines.append(
            f"| the same with the prompt alone, {policy_of(found)} | – | MAE {interval(error, True)}, r {interval(r, True)} | "
            f"{said(error, r)} |"
        )
    return lines


def change(found: Found, one: str, other: str, metric: str) -> Found:
    return next(d for d in found["differences"] if (d["one"], d["other"], d["metric"]) == (one, other, metric))


def said(error: Found, r: Found) -> str:
    """In words: better only where the intervals say so."""
    better = [word for word, flag in (("error", error["high"] < 0), ("r", (r["low"] or -1) > 0)) if flag]
    worse = [word for word, flag in (("error", error["low"] > 0), ("r", (r["high"] or 1) < 0)) if flag]
    if better and not worse:
        return f"probe better in {' and '.join(better)}"
    if worse and not better:
        return f"probe worse in {' and '.join(worse)}"
    return "no difference seen" if not better else f"better in {better[0]}, worse in {worse[0]}"


def p4(found: Found) -> list[str]:
    grid, settings = found["grid"], found["settings"]
    rows = {(r["features"], r["layer"], r["window"], r["regressor"]): r for r in grid["rows"]}
    usual = grid["regressors"][0]
    layer, window = best_place(found)
    half = [
        f"# P4 on `{found['world']}`: what the probe needs (POISE Tables 3 and 8-12)",
        "",
        f"**Scale.** As P3: `tiny`, {settings['train_rollouts']:,} rollouts, {settings['prompts']} prompts, truth "
        f"Avg@{settings['continuations']}; {len(rows)} combinations, one fit each.",
        f"Where one thing varies, the others stay at layer {layer}, window {window}, `{usual}`, all features:",
        "the layer with the best r at the paper's window of 10.",
        "MAE against the noisy truth, r without its noise, intervals over prompts. `benchmarks/p4.py`.",
        "",
    ]

    def line(label: str, at: tuple[str, int, int, str], paper: str = "–") -> str:
        row = rows[at]
        return f"| {label} | {interval(row['mae'])} | {interval(row['pearson_corrected'])} | {paper} |"

    paper_features = {
        "prompt": ".234 / .569", "response": ".132 / .821", "entropy": ".152 / .780", "length": ".251 / .494",
        "full": ".126 / .838",
    }  # fmt: skip
    head = ["| MAE | r | paper, Qwen3-4B (MAE / r) |", "|---|---|---|---|"]
    table = [f"| features {head[0]}", head[1]]
    table += [line(name, (name, layer, window, usual), paper_features[name]) for name in grid["features"]]
    table += ["", f"| layer {head[0]}", head[1]]
    table += [line(str(k), ("full", k, window, usual)) for k in grid["layers"]]
    table += ["", f"| window {head[0]}", head[1]]
    paper_windows = {5: ".127 / .822", 10: ".124 / .834", 15: ".124 / .833"}
    table += [line(str(w), ("full", layer, w, usual), paper_windows.get(w, "–")) for w in grid["windows"]]
    table += ["", f"| regressor {head[0]}", head[1]]
    table += [line(f"`{name}`", ("full", layer, window, name), regressors(name)) for name in grid["regressors"]]
    return [*half, *table, "", *p4_claims(found, rows, (layer, window, usual)), ""]


def regressors(name: str) -> str:
    return {"ridge-0.01": ".124 / .834", "mlp-1x64": ".154 / .778 (1×512)", "mlp-3x64": ".123 / .780 (3×512)"}.get(
        name, "–"
    )


def best_place(found: Found) -> tuple[int, int]:
    grid = found["grid"]
    window = 10 if 10 in grid["windows"] else grid["windows"][0]
    rows = [
        r for r in grid["rows"]
        if r["features"] == "full" and r["window"] == window and r["regressor"] == grid["regressors"][0]
    ]  # fmt: skip
    return max(rows, key=lambda r: r["pearson"]["mean"] or -1.0)["layer"], window


def p4_claims(found: Found, rows: Mapping[Any, Found], at: tuple[int, int, str]) -> list[str]:
    """The paper's four conclusions against ours; intervals are not paired, so only clear gaps count."""
    layer, window, usual = at
    grid = found["grid"]

    def r(features: str = "full", k: int = layer, w: int = window, name: str = usual) -> Found:
        metric: Found = rows[features, k, w, name]["pearson_corrected"]
        return metric

    spread = [r(k=k)["mean"] for k in grid["layers"] if r(k=k)["mean"] is not None]
    windows = [r(w=w)["mean"] for w in grid["windows"] if w >= 5]
    networks = {name: r(name=name) for name in grid["regressors"] if name.startswith("mlp")}
    best = max(networks.values(), key=lambda m: m["mean"] or -1.0)
    return [
        "| claim | paper | ours | verdict |",
        "|---|---|---|---|",
        "| trajectory states carry most of the signal | r .821 against .569 of the prompt's | "
        f"{interval(r('response'))} against {interval(r('prompt'))} | {apart(r('response'), r('prompt'))} |",
        f"| length adds nothing | r .494 alone | {interval(r('length'))} alone, all features {interval(r())} | "
        f"{apart(r(), r('length'))} |",
        f"| flat over layers | r .807 to .834 | {number(min(spread))} to {number(max(spread))} | "
        f"{'flat' if max(spread) - min(spread) < 0.05 else 'not flat'} |",
        f"| insensitive to the window from 5 on | r .822 to .834 | {number(min(windows))} to {number(max(windows))} | "
        f"{'holds here' if max(windows) - min(windows) < 0.05 else 'does not hold here'} |",
        f"| linear is as good as a network in r | .834 against .813 at best | {interval(r())} against {interval(best)} | "
        f"{apart(r(), best)} |",
    ]  # fmt: skip


def apart(one: Found, other: Found) -> str:
    """Which of two is larger, where their intervals do not meet."""
    if one["low"] > other["high"]:
        return "the first is larger"
    if other["low"] > one["high"]:
        return "the second is larger"
    return "intervals overlap"
