"""Which pictures does a run give? Figures from rows of `metrics.jsonl`, for the report and PNG files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vantage.plots.curves import LabelledRuns, Metrics, against, draw_noisy, draw_seeds, number, points
from vantage.plots.style import (
    INK,
    MUTED,
    OTHER,
    SERIES_COLOURS,
    Plot,
    figure_style,
    from_zero,
    label_axes,
    log_axis,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARED_PREFIXES = frozenset(
    {
        "time", "tokens", "throughput", "mem", "reward", "rewards", "custom", "groups", "completion", "policy", "loss",
        "value", "eval",
    }
)  # fmt: skip
"""First parts of the metric keys that all algorithms have; any other first part belongs to one algorithm."""
PHASES = (
    ("time/rollout", "rollout", SERIES_COLOURS[0]),
    ("time/reward", "reward", SERIES_COLOURS[2]),
    ("time/value", "value estimate", SERIES_COLOURS[1]),
    ("time/forward_backward", "forward and backward", SERIES_COLOURS[5]),
    ("time/value_update", "value update", SERIES_COLOURS[4]),
    ("time/checkpoint", "checkpoint", SERIES_COLOURS[3]),
)
"""Phases of a step in their order, with their colours: blue for the policy's own work, red and orange for the value's."""


@dataclass(frozen=True)
class Curve:
    """A metric drawn against training steps: where it goes, what it is measured in and what to look for."""

    name: str
    section: str
    title: str
    key: str
    unit: str
    caption: str
    reference: float | None = None
    """A value that means something, drawn as a dashed line."""
    from_zero: bool = False
    """Start the axis at 0."""
    floor: float | None = None
    """Cut the axis off below this."""
    log: bool = False
    """Use a logarithmic axis if single steps stand far out."""


CURVES = (
    Curve(
        "learning_curve", "learning", "Held-out accuracy", "eval/accuracy", "accuracy (share solved)",
        "Look for a rise that leaves the band of the first evaluation behind: bands are 95 % intervals.",
    ),
    Curve(
        "reward", "learning", "Reward of rollouts", "reward/mean", "mean reward",
        "It should rise with accuracy; rising alone, it means a reward that is gamed or problems that are memorised.",
    ),
    Curve(
        "value_error", "value", "Value error", "value/mae", "mean absolute error (reward)",
        "Lower is better: how far the value estimate is from the reward that its rollout then got.", from_zero=True,
    ),
    Curve(
        "value_correlation", "value", "Value correlation", "value/pearson", "Pearson correlation",
        "Above 0, the estimate tells prompts that will be solved from those that will not; 0 is no information. "
        "A mean of the other rollouts (as in reinforce) gives −1: it is a little lower where the own reward is high.",
        reference=0.0, floor=-1.0,
    ),
    Curve(
        "variance_reduction", "value", "Variance removed by the value", "value/variance_reduction", "share of variance",
        "Above 0, subtracting the value makes the gradient less noisy; below 0, no baseline at all would be better.",
        reference=0.0, floor=-1.0,
    ),
    Curve(
        "zero_advantage", "value", "Groups without a signal", "groups/zero_advantage", "share of groups",
        "Prompts whose rollouts all have advantage 0 cost generation and teach nothing; look for a share that grows.",
        from_zero=True,
    ),
    Curve(
        "grad_norm", "policy", "Gradient norm", "policy/grad_norm", "L2 norm before clipping",
        "It should stay level: a steady climb or lone spikes call for a lower learning rate.", from_zero=True, log=True,
    ),
    Curve(
        "entropy", "policy", "Policy entropy", "policy/entropy", "nats per token",
        "A slow decline is learning; a fall towards 0 is collapse, after which nothing new is explored.",
        from_zero=True,
    ),
    Curve(
        "kl_ref", "policy", "Distance from the reference", "policy/kl_ref", "KL (nats per token)",
        "How far the policy has moved from its reference model; look for sudden jumps.", from_zero=True,
    ),
    Curve(
        "clip_fraction", "policy", "Clipped importance ratios", "policy/clip_fraction", "share of tokens",
        "Share of tokens whose update was clipped; more than a few per cent means steps too large for one batch.",
        from_zero=True,
    ),
    Curve(
        "completion_length", "completions", "Completion length", "completion/length_mean", "tokens per completion",
        "Growth should come with accuracy; length without accuracy is padding.", from_zero=True,
    ),
    Curve(
        "truncated", "completions", "Truncated completions", "completion/truncated", "share of completions",
        "Completions cut at the token limit; where this rises, raise --max-new-tokens or expect rewards to suffer.",
        from_zero=True,
    ),
)  # fmt: skip  # fmt: skip


def run_plots(runs: LabelledRuns) -> list[Plot]:
    """Every plot that the metrics of `runs` allow, in reading order; runs share axes, each in its colour.

    Args:
        runs: (label, rows of metrics.jsonl) of each run.

    Returns:
        Plots without empty axes: a metric that no run has at two steps or more is left out.
    """
    labels = tuple(label for label, _ in runs) if len(runs) > 1 else ()
    with figure_style():
        plots = [_curve_plot(runs, labels, curve) for curve in CURVES if _has_curve(runs, curve.key)]
        return plots + _time_plots(runs) + _algorithm_plots(runs, labels)


def _has_curve(runs: LabelledRuns, key: str) -> bool:
    return any(len(points(rows, key)[0]) > 1 for _, rows in runs)


def _values(runs: LabelledRuns, key: str) -> list[float]:
    return [value for _, rows in runs for value in points(rows, key)[1]]


def _curve_plot(runs: LabelledRuns, labels: tuple[str, ...], curve: Curve) -> Plot:
    caption = curve.caption
    if curve.floor is not None and min(_values(runs, curve.key)) < curve.floor:
        caption += f" Values below {curve.floor:g} lie outside the axis.".replace("-", "−")
    return Plot(curve.name, curve.section, curve.title, caption, _curve_figure(runs, curve), labels)


def _curve_figure(runs: LabelledRuns, curve: Curve) -> Figure:
    figure, (axes,) = new_figure(5.2, 2.9)
    values = _values(runs, curve.key)
    if curve.reference is not None:
        axes.axhline(curve.reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for index, (label, rows) in enumerate(runs):
        if curve.key.startswith("eval/"):
            draw_seeds(axes, [against(rows, curve.key, "step")], label, index, len(runs))
        else:
            draw_noisy(axes, *points(rows, curve.key), index, len(runs))
    label_axes(axes, curve.unit, "training step")
    if curve.log and min(values) > 0 and max(values) > 20 * sorted(values)[len(values) // 2]:
        log_axis(axes)
    elif curve.from_zero and min(values) >= 0:
        from_zero(axes)
    elif curve.floor is not None and min(values) < curve.floor:
        axes.set_ylim(bottom=curve.floor, top=max(axes.get_ylim()[1], curve.floor + 0.1))
    return figure


def _time_plots(runs: LabelledRuns) -> list[Plot]:
    tables = [(label, table) for label, rows in runs if (table := phase_table(rows))]
    if not tables:
        return []
    totals = {name: sum(sum(row[name] for row in table) for _, table in tables) for name in tables[0][1][0] if name}
    everything = sum(totals.values()) or 1.0
    shown = [name for name, total in totals.items() if total > (0.01 * everything if name == "other" else 0)]
    draw = _draw_time_by_step if len(runs) == 1 else draw_time_by_run
    figure = draw(tables, shown)
    caption = "What the value costs is the share of value estimate and value update; rollouts of long responses take the most."
    return [Plot("time", "time", "Time by phase", caption, figure, wide=True)]


def phase_table(rows: Metrics) -> list[dict[str, float]]:
    """Seconds by phase of every training step, with what no phase claims under `other` and the step under ``""``."""
    table = []
    for row in rows:
        step = number(row.get("step"))
        if not step or not any(number(row.get(key)) for key, _, _ in PHASES):
            continue
        seconds = {name: max(0.0, number(row.get(key)) or 0.0) for key, name, _ in PHASES}
        other = max(0.0, (number(row.get("time/step")) or 0.0) - sum(seconds.values()))
        table.append({**seconds, "other": other, "": step})
    return table


def _phase_colour(name: str) -> str:
    return next((colour for _, phase, colour in PHASES if phase == name), OTHER)


def _draw_time_by_step(tables: list[tuple[str, list[dict[str, float]]]], phases: Sequence[str]) -> Figure:
    table = tables[0][1]
    figure, (axes,) = new_figure(10.6, 3.1)
    size = math.ceil(len(table) / 200)
    bins = [table[start : start + size] for start in range(0, len(table), size)]
    edges = [rows[0][""] - 0.5 for rows in bins] + [table[-1][""] + 0.5]
    bottom = [0.0] * len(bins)
    for name in phases:
        top = [low + sum(row[name] for row in rows) / len(rows) for low, rows in zip(bottom, bins)]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=_phase_colour(name), label=name, linewidth=0)
        bottom = top
    label_axes(axes, "seconds per step", "training step")
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", reverse=True)
    return figure


def draw_time_by_run(tables: list[tuple[str, list[dict[str, float]]]], phases: Sequence[str]) -> Figure:
    """A bar for each label: mean seconds of each phase over the rows of its table."""
    figure, (axes,) = new_figure(10.6, 1.3 + 0.34 * len(tables))
    left = [0.0] * len(tables)
    for name in phases:
        width = [sum(row[name] for row in table) / len(table) for _, table in tables]
        axes.barh(range(len(tables)), width, left=left, height=0.62, color=_phase_colour(name), label=name)
        left = [start + seconds for start, seconds in zip(left, width)]
    axes.set_yticks(range(len(tables)), labels=[label for label, _ in tables])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean seconds per step")
    figure.legend(loc="outside right upper")
    return figure


def _algorithm_plots(runs: LabelledRuns, labels: tuple[str, ...]) -> list[Plot]:
    """One figure of small multiples for each algorithm that logged metrics of its own."""
    keys = dict.fromkeys(key for _, rows in runs for row in rows for key in row if "/" in key)
    by_algorithm: dict[str, list[str]] = {}
    for key in keys:
        prefix = key.split("/", 1)[0]
        if prefix not in SHARED_PREFIXES and _has_curve(runs, key):
            by_algorithm.setdefault(prefix, []).append(key)
    return [_multiples(runs, labels, prefix, found) for prefix, found in by_algorithm.items()]


def _multiples(runs: LabelledRuns, labels: tuple[str, ...], prefix: str, keys: Sequence[str]) -> Plot:
    columns = len(keys) if len(keys) < 3 else 2 if len(keys) == 4 else 3
    lines = math.ceil(len(keys) / columns)

    figure, panels = new_figure(5.2 if columns == 1 else 10.6, 0.3 + 2.35 * lines, lines, columns, len(keys))
    for axes, key in zip(panels, keys):
        for index, (_, rows) in enumerate(runs):
            draw_noisy(axes, *points(rows, key), index, len(runs))
        label_axes(axes, "", "training step")
        axes.set_title(key.split("/", 1)[1], loc="left", fontsize=9.5, color=INK)
    caption = f"What only {prefix} reports; a drift here often explains a change in the value plots above."
    name = "algorithm_" + re.sub(r"\W+", "_", prefix, flags=re.ASCII)
    return Plot(name, "algorithm", f"Metrics of {prefix}", caption, figure, labels, wide=columns > 1)
