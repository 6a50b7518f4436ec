"""Which pictures does an audit give? Bias, variance at equal rollouts and tokens, other allocations, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vantage.plots import Plot, figure_style
from vantage.plots.dots import draw_interval, name_rows, reference_line
from vantage.plots.style import MUTED, line_look, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
"""What audit.json holds."""


def audit_plots(found: Found) -> list[Plot]:
    """Every plot that the numbers allow, in reading order."""
    said = {name: (index, entry) for index, (name, entry) in enumerate(found["algorithms"].items()) if entry["noise"]}
    if not said:
        return []
    with figure_style():
        height = max(1.9, 0.9 + 0.3 * len(said))
        plots = [_bias_plot(found, said, height), _noise_plot(said, height), _allocation_plot(said)]
        if any(entry["layers"] for _, entry in said.values()):
            plots.append(_layer_plot(said))
    return plots


Said = Mapping[str, tuple[int, Found]]


def _scaled(interval: Found, factor: float) -> dict[str, float]:
    return {key: factor * interval[key] for key in ("mean", "low", "high")}


def _bias_plot(found: Found, said: Said, height: float) -> Plot:
    figure, (axes,) = new_figure(10.6, height)
    reference_line(axes, 100 * found["tolerance"])
    for row, (index, entry) in enumerate(said.values()):
        bias = entry["bias"]
        draw_interval(axes, row, _scaled(bias["share"], 100), line_look(index)["color"], hollow=not bias["found"])
    name_rows(axes, list(said))
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("bias (% of the gradient's norm)")
    caption = (
        "Look for filled dots: there a bias was found. Rings are estimates that the noise explains, and the right end of "
        f"a line is the largest bias that is not excluded. The dashed line is the tolerance of {100 * found['tolerance']:g} %."
    )
    return Plot("bias", "bias", "Bias beyond a factor", caption, figure, wide=True)


def _noise_plot(said: Said, height: float) -> Plot:
    figure, (axes,) = new_figure(5.2, height)
    reference_line(axes, 1)
    for row, (index, entry) in enumerate(said.values()):
        colour = line_look(index)["color"]
        draw_interval(axes, row - 0.14, entry["noise"]["at_equal_rollouts"], colour)
        draw_interval(axes, row + 0.14, entry["noise"]["at_equal_tokens"], colour, hollow=True)
    name_rows(axes, list(said))
    axes.set_xlim(left=0)
    axes.set_xlabel("variance / that of the reference")
    caption = (
        "Further to the left is less noise for the same length of gradient. Dots compare at equal rollouts, rings at equal "
        "tokens, those generated for values counted: a ring far to the right of its dot pays for its values with tokens."
    )
    return Plot("noise", "noise", "Variance at equal rollouts and at equal tokens", caption, figure)


def _allocation_plot(said: Said) -> Plot:
    figure, (axes,) = new_figure(5.2, 3.1)
    drawn = []
    for name, (index, entry) in said.items():
        points = entry["noise"]["predicted"]
        if not points:
            continue
        drawn.append(name)
        base = entry["noise"]["at_equal_rollouts"]["mean"]
        members = [point["members"] for point in points]
        axes.plot(members, [base * point["mean"] for point in points], **line_look(index))
        axes.plot([entry["members"]], [base], marker="o", markersize=6.5, color=line_look(index)["color"], linestyle="")
        for point in points:
            if point.get("enumerated") is not None:
                axes.plot([point["members"]], [base * point["enumerated"]], marker="x", color=line_look(index)["color"])
    _doubling_axis(axes, [1, 2, 4, 8, 16])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rollouts of a prompt, m")
    axes.set_ylabel("variance / that of the reference")
    caption = (
        "Look at the slope: a line that rises says that more prompts would serve better than more rollouts of each "
        "(Proposition 1 of POISE), if the baseline stayed as good as it is. Dots are what was measured, crosses what was "
        "enumerated: a cross far below its line is a baseline that more siblings improve."
    )
    return Plot("allocations", "noise", "Other numbers of rollouts a prompt", caption, figure, tuple(drawn))


def _doubling_axis(axes: Axes, ticks: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", visible=False)


def _layer_plot(said: Said) -> Plot:
    figure, (axes,) = new_figure(10.6, 3.4)
    names = [layer["name"] for layer in next(iter(said.values()))[1]["layers"]]
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    step = 0.7 / max(1, len(said))
    for row, (index, entry) in enumerate(said.values()):
        for place, layer in enumerate(entry["layers"]):
            if layer["noise"] is None:
                continue
            at, ratio = place - 0.35 + (row + 0.5) * step, layer["noise"]["at_equal_rollouts"]
            colour = line_look(index)["color"]
            axes.plot([at, at], [ratio["low"], ratio["high"]], color=colour, linewidth=2.0)
            axes.plot([at], [ratio["mean"]], marker="o", markersize=5, color=colour, linestyle="")
    axes.set_xticks(range(len(names)), labels=names)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer of the policy")
    axes.set_ylabel("variance / that of the reference")
    caption = (
        "Look for layers in which an algorithm differs from what it does as a whole. Lines are intervals; a layer whose "
        "gradient does not stand out of its noise has no dot."
    )
    return Plot("layers", "layers", "Variance by layer at equal rollouts", caption, figure, tuple(said), wide=True)
