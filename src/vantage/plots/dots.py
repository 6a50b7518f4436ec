"""Dots with intervals, a row for each of several names: the plainest way to say what is told apart from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vantage.plots.style import GROUND, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_interval(axes: Axes, row: float, interval: Mapping[str, Any], colour: str, hollow: bool = False) -> None:
    """A mean as a dot (hollow: a ring), its interval, if there is one, as a line."""
    if interval["low"] is not None:
        axes.plot([interval["low"], interval["high"]], [row, row], color=colour, linewidth=2.0, zorder=2)
    inside = GROUND if hollow else colour
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


def name_dots(axes: Axes, dots: Sequence[tuple[str, float, float]], size: float = 7.5) -> None:
    """Names beside dots (name, x, y), none over another name or dot; to be called when limits and scales are final."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    scale = 72 / axes.figure.dpi
    at = [tuple(scale * axes.transData.transform((x, y))) for _, x, y in dots]
    right = scale * axes.bbox.x1
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
    for index in sorted(range(len(dots)), key=lambda i: -at[i][1]):
        name, x, y = dots[index]
        wide, high = 0.58 * size * len(name), 1.15 * size
        places = [(dx, dy) for dy in PLACES for dx in (5.0, -5.0 - wide) if at[index][0] + dx + wide <= right]
        boxes = [
            (at[index][0] + dx, at[index][1] + dy, at[index][0] + dx + wide, at[index][1] + dy + high)
            for dx, dy in places
        ]
        crossed = [sum(_cross(box, other) for other in taken) for box in boxes]
        best = crossed.index(min(crossed))
        taken.append(boxes[best])
        axes.annotate(name, (x, y), xytext=places[best], textcoords="offset points", fontsize=size, color=MUTED)


PLACES = (-4.0, 2.0, -10.0, 9.0, -17.0, 16.0, -24.0, 23.0)
"""Heights in points above a dot at which its name may begin, the best first."""


def _cross(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def reference_line(axes: Axes, value: float) -> None:
    """A dashed vertical line at what is compared with."""
    axes.axvline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
