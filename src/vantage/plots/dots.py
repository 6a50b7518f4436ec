"""Dots with intervals, a row for each of several names: the plainest way to say what is told apart from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vantage.plots.style import MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_interval(axes: Axes, row: float, interval: Mapping[str, Any], colour: str, hollow: bool = False) -> None:
    """A mean as a dot (hollow: a ring), its interval, if there is one, as a line."""
    if interval["low"] is not None:
        axes.plot([interval["low"], interval["high"]], [row, row], color=colour, linewidth=2.0, zorder=2)
    inside = "white" if hollow else colour
    axes.plot(
        [interval["mean"]],
        [row],
        marker="o",
        markersize=6.5,
        color=colour,
        markerfacecolor=inside,
        linestyle="",
        zorder=3,
    )


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """The names of rows 0, 1, … from top to bottom."""
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def reference_line(axes: Axes, value: float) -> None:
    """A dashed vertical line at what is compared with."""
    axes.axvline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
