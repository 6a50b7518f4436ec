"""Which pictures does a run give? Figures from rows of `metrics.jsonl`, for the report, PNG files and documents.

pyplot and its global figures are not used, matplotlib is imported only when a figure is drawn, and its settings are put
back afterwards. Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]
"""Rows of one run's `metrics.jsonl`."""
LabelledRuns = Sequence[tuple[str, Metrics]]

SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID, OTHER = "#1c2024", "#62686f", "#e3e5e8", "#a9aeb4"
THEME_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    OTHER: "--other",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES_COLOURS)},
}
"""Colours of the figures and the CSS variables that replace them in a page, so that a figure follows its theme."""

SHARED_PREFIXES = frozenset(
    {"time", "tokens", "throughput", "mem", "reward", "groups", "completion", "policy", "loss", "value", "eval"}
)
"""First parts of the metric keys that all algorithms have; any other first part belongs to one algorithm."""

_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))
_PHASES = (
    ("time/rollout", "rollout", SERIES_COLOURS[0]),
    ("time/reward", "reward", SERIES_COLOURS[2]),
    ("time/value", "value estimate", SERIES_COLOURS[1]),
    ("time/forward_backward", "forward and backward", SERIES_COLOURS[5]),
    ("time/value_update", "value update", SERIES_COLOURS[4]),
    ("time/checkpoint", "checkpoint", SERIES_COLOURS[3]),
)
"""Phases of a step in their order, with their colours: blue for the policy's own work, red and orange for the value's."""
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.parse_math": False,  # names of runs and metrics are text, also where they hold a dollar sign
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.edgecolor": OTHER,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "xtick.major.width": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "svg.fonttype": "none",  # real text: the page's own font, selectable
}


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


@dataclass(frozen=True)
class Plot:
    """A finished figure and the words that go with it."""

    name: str
    section: str
    title: str
    caption: str
    figure: Figure
    legend: tuple[str, ...] = ()
    """Runs drawn, if the figure itself does not name them."""
    wide: bool = False

    def save_png(self, path: Path) -> None:
        """Write the figure to `path` on white, with its title and a legend, so that it stands alone."""
        save_png(self.figure, path, title=self.title, legend=self.legend)


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
        "Above 0, the estimate tells prompts that will be solved from those that will not; 0 is no information.",
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
)  # fmt: skip


def figure_style(**settings: Any) -> AbstractContextManager[None]:
    """Vantage's look for figures that are made, or saved, inside the `with` block; `settings` are rcParams on top."""
    import matplotlib

    return matplotlib.rc_context({**_STYLE, **settings})


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
        figure, (axes,) = _figure(*size)
        for index, (label, seeds) in enumerate(groups.items()):
            _draw_seeds(axes, [_against(rows, key, x) for rows in seeds], label, index, len(groups))
        names = {"step": "training step", "tokens": "generated tokens", "seconds": "training time (seconds)"}
        _label_axes(axes, unit, names[x])
        if x == "tokens":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        if len(groups) > 1:
            axes.legend(handles=_legend_lines(list(groups)), loc="best")
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=10)
    return figure


def save_png(figure: Figure, path: Path, *, title: str | None = None, legend: Sequence[str] = ()) -> None:
    """Write `figure` to `path` on a white ground, with a headline and a legend of runs if they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = figure.get_size_inches()
    columns = max(1, int(width / 1.7))
    with figure_style():
        figure.set_size_inches(width, height + 0.22 * math.ceil(len(legend) / columns) + (0.25 if title else 0))
        headline = figure.suptitle(title or "", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)
        headline.set_in_layout(bool(title))
        key = None
        if legend:
            key = figure.legend(handles=_legend_lines(legend), loc="outside lower left", ncols=columns)
        figure.savefig(path, format="png", dpi=180, metadata={"Software": None})
        headline.set_text("")  # the figure stays as it was: its page has headline and legend of its own
        headline.set_in_layout(False)
        if key is not None:
            key.remove()
        figure.set_size_inches(width, height)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, panels: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.1)
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


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
    figure, (axes,) = _figure(5.2, 2.9)
    values = _values(runs, curve.key)
    if curve.reference is not None:
        axes.axhline(curve.reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for index, (label, rows) in enumerate(runs):
        if curve.key.startswith("eval/"):
            _draw_seeds(axes, [_against(rows, curve.key, "step")], label, index, len(runs))
        else:
            _draw_noisy(axes, *points(rows, curve.key), index, len(runs))
    _label_axes(axes, curve.unit, "training step")
    if curve.log and min(values) > 0 and max(values) > 20 * sorted(values)[len(values) // 2]:
        _log_axis(axes)
    elif curve.from_zero and min(values) >= 0:
        axes.set_ylim(bottom=0)
    elif curve.floor is not None and min(values) < curve.floor:
        axes.set_ylim(bottom=curve.floor, top=max(axes.get_ylim()[1], curve.floor + 0.1))
    return figure


def _line(index: int) -> dict[str, Any]:
    dash = _DASHES[index // len(SERIES_COLOURS) % len(_DASHES)]
    return {"color": SERIES_COLOURS[index % len(SERIES_COLOURS)], "linestyle": dash, "linewidth": 2.0}


def _legend_lines(labels: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    # A leading underscore would tell matplotlib to hide the entry.
    shown = [f"\N{THIN SPACE}{label}" if label.startswith("_") else label for label in labels]
    return [Line2D([], [], label=label, **_line(index)) for index, label in enumerate(shown)]


def _draw_noisy(axes: Axes, steps: list[float], values: list[float], index: int, crowd: int) -> None:
    """Single steps thin, paler the larger the crowd of runs, their moving average bold; few points as they are."""
    line = _line(index)
    if len(values) < 10:
        axes.plot(steps, values, marker="o", markersize=4, **line)
        return
    window = max(3, len(values) // 20) | 1
    axes.plot(*_thinned(steps, values), color=line["color"], linewidth=0.8, alpha=max(0.12, 0.42 / crowd**0.6))
    stride = max(1, len(values) // 400)
    smooth = moving_average(moving_average(values, window), window)  # twice: weights fall off to both sides
    kept = sorted({*range(0, len(values), stride), len(values) - 1})
    axes.plot([steps[i] for i in kept], [smooth[i] for i in kept], zorder=3, **line)


def _thinned(steps: list[float], values: list[float], bins: int = 400) -> tuple[list[float], list[float]]:
    """At most two points a bin, its lowest and its highest, so that long runs keep their spikes in small pages."""
    if len(values) <= 2 * bins:
        return steps, values
    size = math.ceil(len(values) / bins)
    kept: list[int] = []
    for start in range(0, len(values), size):
        inside = range(start, min(start + size, len(values)))
        kept += sorted({min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)})
    return [steps[i] for i in kept], [values[i] for i in kept]


_Seed = tuple[list[float], list[float], list[float], list[float]]


def _against(rows: Metrics, key: str, x: str) -> _Seed:
    """Positions, values, and lower and upper ends of the interval (NaN where a row has none)."""
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


def _draw_seeds(axes: Axes, seeds: Sequence[_Seed], label: str, index: int, crowd: int) -> None:
    import numpy as np

    line = _line(index)
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


def _label_axes(axes: Axes, unit: str, x_label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(unit)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _time_plots(runs: LabelledRuns) -> list[Plot]:
    tables = [(label, table) for label, rows in runs if (table := _phase_table(rows))]
    if not tables:
        return []
    totals = {name: sum(sum(row[name] for row in table) for _, table in tables) for name in tables[0][1][0] if name}
    everything = sum(totals.values()) or 1.0
    shown = [name for name, total in totals.items() if total > (0.01 * everything if name == "other" else 0)]
    draw = _draw_time_by_step if len(runs) == 1 else _draw_time_by_run
    figure = draw(tables, shown)
    caption = "What the value costs is the share of value estimate and value update; rollouts usually take the most."
    return [Plot("time", "time", "Time by phase", caption, figure, wide=True)]


def _phase_table(rows: Metrics) -> list[dict[str, float]]:
    """Seconds by phase of every training step, with what no phase claims under `other` and the step under ``""``."""
    table = []
    for row in rows:
        step = number(row.get("step"))
        if not step or not any(number(row.get(key)) for key, _, _ in _PHASES):
            continue
        seconds = {name: max(0.0, number(row.get(key)) or 0.0) for key, name, _ in _PHASES}
        other = max(0.0, (number(row.get("time/step")) or 0.0) - sum(seconds.values()))
        table.append({**seconds, "other": other, "": step})
    return table


def _phase_colour(name: str) -> str:
    return next((colour for _, phase, colour in _PHASES if phase == name), OTHER)


def _draw_time_by_step(tables: list[tuple[str, list[dict[str, float]]]], phases: Sequence[str]) -> Figure:
    table = tables[0][1]
    figure, (axes,) = _figure(10.6, 3.1)
    size = math.ceil(len(table) / 200)
    bins = [table[start : start + size] for start in range(0, len(table), size)]
    edges = [rows[0][""] - 0.5 for rows in bins] + [table[-1][""] + 0.5]
    bottom = [0.0] * len(bins)
    for name in phases:
        top = [low + sum(row[name] for row in rows) / len(rows) for low, rows in zip(bottom, bins)]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=_phase_colour(name), label=name, linewidth=0)
        bottom = top
    _label_axes(axes, "seconds per step", "training step")
    axes.margins(x=0)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", reverse=True)
    return figure


def _draw_time_by_run(tables: list[tuple[str, list[dict[str, float]]]], phases: Sequence[str]) -> Figure:
    figure, (axes,) = _figure(10.6, 1.3 + 0.34 * len(tables))
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

    figure, panels = _figure(5.2 if columns == 1 else 10.6, 0.3 + 2.35 * lines, lines, columns, len(keys))
    for axes, key in zip(panels, keys):
        for index, (_, rows) in enumerate(runs):
            _draw_noisy(axes, *points(rows, key), index, len(runs))
        _label_axes(axes, "", "training step")
        axes.set_title(key.split("/", 1)[1], loc="left", fontsize=9.5, color=INK)
    caption = f"What only {prefix} reports; a drift here often explains a change in the value plots above."
    name = "algorithm_" + re.sub(r"\W+", "_", prefix, flags=re.ASCII)
    return Plot(name, "algorithm", f"Metrics of {prefix}", caption, figure, labels, wide=columns > 1)
