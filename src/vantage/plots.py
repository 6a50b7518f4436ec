"""Which pictures does a run give? Figures from rows of `metrics.jsonl`, for the report, for PNG files and for documents.

Nothing here touches pyplot or any other global state of matplotlib, which is imported only when a figure is drawn.
Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    "time tokens throughput mem reward groups completion policy loss value eval step epoch".split()
)
"""First parts of the metric keys that all algorithms have; any other first part belongs to one algorithm."""

_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))
_PHASES = (
    ("time/rollout", "rollout"),
    ("time/reward", "reward"),
    ("time/value", "value estimate"),
    ("time/forward_backward", "forward and backward"),
    ("time/value_update", "value update"),
    ("time/checkpoint", "checkpoint"),
)
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
    low: float | None = None
    """Lower end of the axis if the data stay above it, and the lowest end if they do not."""
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

    def svg(self) -> str:
        """The figure as an `<svg>` element to put inside HTML; colours and font are the page's CSS variables."""
        return figure_svg(self.figure, self.name)

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
        "It should rise with accuracy; rising alone, it means that the reward is being gamed or the problems memorised.",
    ),
    Curve(
        "value_error", "value", "Value error", "value/mae", "mean absolute error (reward)",
        "Lower is better: how far the value estimate is from the reward that its rollout then got.", low=0.0,
    ),
    Curve(
        "value_correlation", "value", "Value correlation", "value/pearson", "Pearson correlation",
        "Above 0, the estimate tells prompts that will be solved from those that will not; 0 is no information.",
        reference=0.0, low=-1.0,
    ),
    Curve(
        "variance_reduction", "value", "Variance removed by the value", "value/variance_reduction", "share of variance",
        "Above 0, subtracting the value makes the gradient less noisy; below 0, no baseline at all would be better.",
        reference=0.0, low=-1.0,
    ),
    Curve(
        "zero_advantage", "value", "Groups without a signal", "groups/zero_advantage", "share of groups",
        "Prompts whose rollouts all have advantage 0 cost generation and teach nothing; look for a share that grows.",
        low=0.0,
    ),
    Curve(
        "grad_norm", "policy", "Gradient norm", "policy/grad_norm", "L2 norm before clipping",
        "It should stay level: a steady climb or lone spikes call for a lower learning rate.", low=0.0, log=True,
    ),
    Curve(
        "entropy", "policy", "Policy entropy", "policy/entropy", "nats per token",
        "A slow decline is learning; a fall towards 0 is collapse, after which nothing new is explored.", low=0.0,
    ),
    Curve(
        "kl_ref", "policy", "Distance from the reference", "policy/kl_ref", "KL (nats per token)",
        "How far the policy has moved from its reference model; look for sudden jumps.", low=0.0,
    ),
    Curve(
        "clip_fraction", "policy", "Clipped importance ratios", "policy/clip_fraction", "share of tokens",
        "Share of tokens whose update was clipped; more than a few per cent means steps too large for one batch.",
        low=0.0,
    ),
    Curve(
        "completion_length", "completions", "Completion length", "completion/length_mean", "tokens per completion",
        "Growth should come with accuracy; length without accuracy is padding.", low=0.0,
    ),
    Curve(
        "truncated", "completions", "Truncated completions", "completion/truncated", "share of completions",
        "Completions cut at the token limit; where this rises, raise --max-new-tokens or expect rewards to suffer.",
        low=0.0,
    ),
)  # fmt: skip


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
    plots = []
    for curve in CURVES:
        if _has_curve(runs, curve.key):
            caption = curve.caption
            if curve.low is not None and curve.low < 0 and min(_values(runs, curve.key)) < curve.low:
                caption += f" Values below {curve.low:g} lie outside the axis."
            figure = _curve_figure(runs, curve)
            plots.append(Plot(curve.name, curve.section, curve.title, caption, figure, labels))
    if (time_plot := _time_plot(runs)) is not None:
        plots.append(time_plot)
    return plots + _algorithm_plots(runs, labels)


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

    def draw() -> Figure:
        figure, (axes,) = _figure(*size)
        for index, (label, seeds) in enumerate(groups.items()):
            _draw_seeds(axes, [_against(rows, key, x) for rows in seeds], label, index)
        names = {"step": "training step", "tokens": "generated tokens", "seconds": "training time (seconds)"}
        _label_axes(axes, unit, names[x])
        if len(groups) > 1:
            axes.legend(handles=_legend_lines(list(groups)), loc="best")
        if title:
            axes.set_title(title, loc="left", fontsize=11, fontweight="semibold", color=INK, pad=10)
        return figure

    return _styled(draw)
