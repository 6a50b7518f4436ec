"""How is a course over training drawn? One run's steps, thin and smoothed; several seeds as their mean and a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from vantage.plots.style import INK, figure_style, label_axes, legend_lines, line_look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]
"""Rows of one run's `metrics.jsonl`."""
LabelledRuns = Sequence[tuple[str, Metrics]]
Seed = tuple[list[float], list[float], list[float], list[float]]


def number(value: Any) -> float | None:
    """`value` as a finite float; None for null, NaN, infinities, truth values and whatever is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def points(rows: Metrics, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that hold a number under `key`."""
    found = [(step, y) for row in rows if (step := number(row.get("step"))) is not None
             and (y := number(row.get(key))) is not None]  # fmt: skip
    return [step for step, _ in found], [y for _, y in found]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values (odd), over fewer at both ends, so that nothing is shifted or lost."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(len(values)):
        low, high = max(0, index - half), min(len(values), index + half + 1)
        means.append((sums[high] - sums[low]) / (high - low))
    return means


def learning_curve_figure(
    runs: LabelledRuns,
    *,
    key: str = "eval/accuracy",
    unit: str = "accuracy (share solved)",
    x: Literal["step", "tokens", "seconds"] = "step",
    title: str | None = None,
    size: tuple[float, float] = (7.2, 4.0),
) -> Figure:
    """A learning curve for documents: one line per label, a band around it, a legend.

    Runs that share a label are seeds of one setting: the line is their mean and the band reaches from the lowest to
    the highest seed, over the part of the x axis that all of them cover (values between evaluations are interpolated).
    A label with a single run has that evaluation's 95 % interval as its band, where the rows hold `KEY_low` and
    `KEY_high`.

    Args:
        runs: (label, rows of metrics.jsonl) of each run.
        key: metric to draw.
        unit: what the y axis says.
        x: training steps, or what the run has spent by then: generated tokens (also those for values) or seconds.
        title: headline of the figure, if any.
        size: width and height in inches.

    Raises:
        ValueError: no run has `key`.
    """
    groups: dict[str, list[Metrics]] = {}
    for label, rows in runs:
        if points(rows, key)[0]:
            groups.setdefault(label, []).append(rows)
    if not groups:
        raise ValueError(f"no run has the metric {key!r}")
    from matplotlib.ticker import EngFormatter

    with figure_style():
        figure, (axes,) = new_figure(*size)
        for index, (label, seeds) in enumerate(groups.items()):
            draw_seeds(axes, [against(rows, key, x) for rows in seeds], label, index, len(groups))
        names = {"step": "training step", "tokens": "generated tokens", "seconds": "training time (seconds)"}
        label_axes(axes, unit, names[x])
        if x == "tokens":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        if len(groups) > 1:
            axes.legend(handles=legend_lines(list(groups)), loc="best")
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    return figure


def draw_noisy(axes: Axes, steps: list[float], values: list[float], index: int, crowd: int) -> None:
    """Single steps thin, paler the larger the crowd of runs, their moving average bold; few points as they are."""
    line = line_look(index)
    if len(values) < 10:
        axes.plot(steps, values, marker="o", markersize=4, **line)
        return
    window = max(3, len(values) // 20) | 1
    axes.plot(*thinned(steps, values), color=line["color"], linewidth=0.8, alpha=max(0.12, 0.42 / crowd**0.6))
    stride = max(1, len(values) // 400)
    smooth = moving_average(moving_average(values, window), window)  # twice: weights fall off to both sides
    kept = sorted({*range(0, len(values), stride), len(values) - 1})
    axes.plot([steps[i] for i in kept], [smooth[i] for i in kept], zorder=3, **line)


def thinned(steps: list[float], values: list[float], bins: int = 400) -> tuple[list[float], list[float]]:
    """At most two points a bin, its lowest and its highest, so that long runs keep their spikes in small pages."""
    if len(values) <= 2 * bins:
        return steps, values
    size = math.ceil(len(values) / bins)
    kept: list[int] = []
    for start in range(0, len(values), size):
        inside = range(start, min(start + size, len(values)))
        kept += sorted({min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)})
    return [steps[i] for i in kept], [values[i] for i in kept]


def against(rows: Metrics, key: str, x: str) -> Seed:
    """A run's curve: positions, values, and lower and upper ends of the interval (NaN where a row has none)."""
    spends = {"tokens": ("tokens/generated", "tokens/value_extra"), "seconds": ("time/step",)}.get(x, ())
    spent = 0.0
    xs, ys, lows, highs = [], [], [], []
    for row in rows:
        spent += sum(number(row.get(name)) or 0.0 for name in spends)
        at, value = (spent if spends else number(row.get("step"))), number(row.get(key))
        if at is not None and value is not None:
            low, high = number(row.get(f"{key}_low")), number(row.get(f"{key}_high"))
            xs.append(at)
            ys.append(value)
            lows.append(math.nan if low is None else low)
            highs.append(math.nan if high is None else high)
    return xs, ys, lows, highs


def draw_seeds(axes: Axes, seeds: Sequence[Seed], label: str, index: int, crowd: int) -> None:
    """Seeds of one setting: their mean, and a band from lowest to highest, or the interval that a single one has."""
    import numpy as np

    line = line_look(index)
    xs, ys, lows, highs = (np.asarray(column) for column in seeds[0])
    if len(seeds) > 1:
        start, stop = max(seed[0][0] for seed in seeds), min(seed[0][-1] for seed in seeds)
        xs = np.unique([x for seed in seeds for x in seed[0] if start <= x <= stop])
        table = np.stack([np.interp(xs, seed[0], seed[1]) for seed in seeds])
        ys, lows, highs = table.mean(axis=0), table.min(axis=0), table.max(axis=0)
    if len(xs) == 1:
        axes.vlines(xs, lows, highs, color=line["color"], linewidth=1.2)
    axes.fill_between(xs, lows, highs, color=line["color"], alpha=max(0.06, 0.17 / crowd**0.4), linewidth=0)
    measured = len(xs) <= len(seeds[0][0])  # seeds evaluated at different places would put dots side by side
    marker = "o" if measured and len(xs) <= 30 else ""
    axes.plot(xs, ys, label=label, marker=marker, markersize=4, zorder=3, **line)
