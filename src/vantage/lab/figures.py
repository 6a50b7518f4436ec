"""Which pictures does a lab give? Errors with intervals, calibration, shifts, ranking, cost, the grid of probes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vantage.plots import Plot, figure_style, number
from vantage.plots.dots import draw_interval, name_dots, name_rows, reference_line
from vantage.plots.style import MUTED, OTHER, label_axes, line_look, new_figure

Found = Mapping[str, Any]
"""What lab.json holds."""
PARTS = {"prompt": "prompts", "step": "starts of later steps"}
DASHED: Any = (0, (4, 3))
HEAT = "cividis"
"""A colour map that reads the same to colour-blind eyes, and in grey."""
LEAST_POOLS = 3
"""States with pools of a size from which on that size is drawn."""
ERROR_CAPTION = (
    "To the true value, the noise of the truth taken out. Further left is better. A dot left of the dashed line (the constant "
    "predictor) has learned something; where intervals overlap, look at the paired differences below."
)
CORRELATION_CAPTION = (
    "With the true value, the noise of the truth taken out. Further right is better; 1 orders states as the true values do. It "
    "forgives an offset, so compare with the squared error. Above 1 is noise. No dot: all its numbers are equal. A mean of all "
    "other rollouts (batch_mean) is a little lower where one's own rewards are high: its negative number is no mistake."
)
PLACES_CAPTION = (
    "Correlation with the truth at prompts, all features. Look for a plateau, not for the single best cell: cells differ by "
    "chance too."
)
KINDS_CAPTION = (
    "Correlation with the truth at prompts, at the best place of the map beside. A row that is as good as the full one needs "
    "nothing else; a network that is no better than ridge is not needed. Empty: all its numbers are equal."
)


def lab_plots(found: Found) -> list[Plot]:
    """Every plot that the results allow, in reading order."""
    with figure_style():
        plots = [
            _dots(found, "mse_corrected", "squared error (reward²)", "error", "Squared error", ERROR_CAPTION),
            _dots(found, "pearson_corrected", "correlation", "correlation", "Correlation", CORRELATION_CAPTION),
            _calibration(found),
        ]
        plots += _shifts(found) + _ranking(found) + _cost(found)
        plots += _grids(found["ablation"]) if found["ablation"] else []
    return plots


def shown_names(found: Found) -> list[str]:
    """Estimators in the order in which they were asked for; their place is their colour everywhere."""
    return list(found["estimators"])


def _metric(found: Found, name: str, key: str, part: str, which: int = 0) -> Found | None:
    """A metric with its interval on a test set; None where it was not measured."""
    sets = found["estimators"][name]["sets"]
    row = sets[found["sets"][which]["name"]].get(part)
    if row is None or number(row["metrics"][key]["mean"]) is None:
        return None
    metric: Found = row["metrics"][key]
    return metric


def _dots(found: Found, key: str, unit: str, name: str, title: str, caption: str) -> Plot:
    """One row an estimator, one panel for prompts and one for later steps."""
    names = shown_names(found)
    parts = [part for part in PARTS if any(_metric(found, n, key, part) for n in names)] or ["all"]
    figure, panels = new_figure(10.6, 0.9 + 0.27 * len(names), 1, len(parts), len(parts))
    for axes, part in zip(panels, parts):
        if key == "mse_corrected" and "constant" in names and (level := _metric(found, "constant", key, part)):
            reference_line(axes, level["mean"])
        for row, estimator in enumerate(names):
            metric = _metric(found, estimator, key, part)
            peeks = part == "step" and found["estimators"][estimator]["sees_response"]
            if metric is not None:
                draw_interval(axes, row, metric, line_look(row)["color"], hollow=peeks)
        name_rows(axes, [visible_name(n) for n in names] if axes is panels[0] else [""] * len(names))
        axes.set_xlabel(f"{unit}: {PARTS.get(part, 'all states')}")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    caption += " Rings look at how the response goes on, so what they say of later steps is no estimate of a state."
    return Plot(name, "quality", title, caption, figure, wide=True)


def visible_name(name: str) -> str:
    """`FILE.py:CLASS` is shown as its class."""
    return name.rpartition(":")[2] if ".py:" in name else name


def _calibration(found: Found) -> Plot:
    names = [n for n in shown_names(found) if n not in ("constant", "batch_mean", "leave_one_out")]
    names = names or shown_names(found)
    columns = min(5, len(names))
    figure, panels = new_figure(
        10.6, 2.15 * math.ceil(len(names) / columns) + 0.2, math.ceil(len(names) / columns), columns, len(names)
    )
    order = shown_names(found)
    for axes, name in zip(panels, names):
        curve = found["estimators"][name]["sets"][found["sets"][0]["name"]]["calibration"]
        colour = line_look(order.index(name))["color"]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=DASHED, zorder=1)
        total = sum(curve["count"]) or 1
        axes.plot(curve["predicted"], curve["mean"], color=colour, linewidth=1.2, zorder=2)
        areas = [10 + 160 * count / total for count in curve["count"]]
        axes.scatter(curve["predicted"], curve["mean"], s=areas, color=colour, alpha=0.85, linewidths=0, zorder=3)
        axes.set_title(visible_name(name), fontsize=9, loc="left")
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xticks([0, 0.5, 1])
        axes.set_yticks([0, 0.5, 1])
    for i, axes in enumerate(panels):
        axes.set_xlabel("predicted (reward)" if i + columns >= len(names) else "")
        axes.set_ylabel("came (reward)" if i % columns == 0 else "")
    caption = (
        "Predictions in ten bins against the mean truth of their states; the area of a dot is its share of states. On the "
        "dashed diagonal a value means what it says; flatter than it: too sure of itself."
    )
    return Plot("calibration", "quality", "Calibration", caption, figure, wide=True)


def _shifts(found: Found) -> list[Plot]:
    sets = found["sets"]
    if len(sets) < 2:
        return []
    names = shown_names(found)
    figure, panels = new_figure(10.6, 0.9 + 0.27 * len(names), 1, len(sets), len(sets))
    for j, (axes, one) in enumerate(zip(panels, sets)):
        for row, name in enumerate(names):
            if (metric := _metric(found, name, "mse_corrected", "all", j)) is not None:
                draw_interval(axes, row, metric, line_look(row)["color"])
        name_rows(axes, [visible_name(n) for n in names] if j == 0 else [""] * len(names))
        axes.set_xlabel("squared error (reward²)")
        axes.set_title(f"{one['name']}, mean value {one['mean']:.2f}", fontsize=9, loc="left")
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    caption = (
        "From left to right: the problems it has learned on, then shifted ones. A value that only knows its training problems "
        "grows worse to the right; where the true values are all near 0, the error is how far it overrates."
    )
    return [Plot("shifts", "shifts", "Out of distribution", caption, figure, wide=True)]


def _ranking(found: Found) -> list[Plot]:
    names = shown_names(found)
    every = {name: found["estimators"][name]["ranking"] for name in names}
    rows = {name: kept for name, some in every.items() if (kept := [r for r in some if r["states"] >= LEAST_POOLS])}
    if not rows:
        return []
    figure, (axes,) = new_figure(5.2, 3.3)
    sizes = sorted({row["size"] for some in rows.values() for row in some})
    any_rows = next(iter(rows.values()))
    axes.plot(
        [row["size"] for row in any_rows], [row["chance"] for row in any_rows], color=MUTED, linewidth=0.9, linestyle=DASHED,
        marker="_",
    )  # fmt: skip
    for place, (name, some) in enumerate(rows.items()):
        look = line_look(names.index(name))
        xs = [row["size"] * (1 + 0.012 * (place - (len(rows) - 1) / 2)) for row in some]
        axes.plot(xs, [row["credit"][0] for row in some], marker="o", markersize=4, label=visible_name(name), **look)
        axes.vlines(
            xs,
            [row["credit"][1] for row in some],
            [row["credit"][2] for row in some],
            color=look["color"],
            linewidth=0.9,
        )
    label_axes(axes, "top-1 credit", "candidate next steps")
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    caption = (
        "How often the best next step is on top, ties counted as a guess among them. The dashed line is chance. The noise of "
        "the truth hides some of the best, so even the true value stays below 1."
    )
    axes.legend(fontsize=7.5, loc="lower left", ncols=2)
    return [Plot("ranking", "ranking", "Ranking of next steps", caption, figure)]


def _cost(found: Found) -> list[Plot]:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    names = shown_names(found)
    figure, (axes,) = new_figure(5.2, 3.3)
    dots = []
    for i, name in enumerate(names):
        metric = _metric(found, name, "mse_corrected", "all")
        seconds = number(found["estimators"][name]["cost"]["seconds_per_state"])
        if metric is not None and seconds is not None:
            x, y = max(1e-3, 1000 * seconds), metric["mean"]
            axes.plot([x], [y], marker="o", markersize=6, color=line_look(i)["color"], zorder=3)
            dots.append((visible_name(name), x, y))
    label_axes(axes, "squared error (reward²)", "milliseconds a state")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.16)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    name_dots(axes, dots)
    caption = (
        "Down and left is better. Time is that of a prediction by itself; in training a probe reads the forward pass that is "
        "made anyway. Continuations and a generative critic also generate tokens: see the table."
    )
    return [Plot("cost", "ranking", "Error and time", caption, figure)]


def _grids(grid: Found) -> list[Plot]:
    """Correlation by layer and window (the full features, first regressor), and by features and regressor (the best place)."""
    rows = grid["rows"]

    def at(**wanted: Any) -> float:
        found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
        value = number(found[0]["pearson"]["mean"]) if found else None
        return math.nan if value is None else value

    first = grid["regressors"][0]
    places = [
        [at(features="full", layer=k, window=w, regressor=first) for w in grid["windows"]] for k in grid["layers"]
    ]
    flat = [(value, k, w) for k, some in zip(grid["layers"], places) for w, value in zip(grid["windows"], some)]
    _, layer, window = max(
        (one for one in flat if math.isfinite(one[0])), default=(0.0, grid["layers"][0], grid["windows"][0])
    )
    kinds = [
        [at(features=f, layer=layer, window=window, regressor=r) for r in grid["regressors"]] for f in grid["features"]
    ]
    here = f"Features and regressor (layer {layer}, window {window})"
    ks, ws = [str(k) for k in grid["layers"]], [str(w) for w in grid["windows"]]
    return [
        _heat("grid_places", places, (ks, ws), ("layer (0 = embeddings)", "last tokens that are averaged"),
              f"Layer and window ({first})", PLACES_CAPTION),
        _heat("grid_kinds", kinds, (grid["features"], grid["regressors"]), ("features", "regressor"), here, KINDS_CAPTION),
    ]  # fmt: skip


def _heat(
    name: str,
    table: Sequence[Sequence[float]],
    names: tuple[Sequence[str], Sequence[str]],
    labels: tuple[str, str],
    title: str,
    caption: str,
) -> Plot:
    """A table of numbers as coloured cells with the numbers in them; `names` and `labels` are of rows, then of columns."""
    import matplotlib
    import numpy as np

    (rows, columns), values = names, np.array(table, dtype=float)
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    figure, (axes,) = new_figure(5.2, max(2.4, 1.0 + 0.34 * len(rows)))
    axes.pcolormesh(
        values, cmap=matplotlib.colormaps[HEAT], vmin=low, vmax=max(high, low + 1e-6), edgecolors=OTHER, linewidth=0.4
    )
    for i in range(len(rows)):
        for j in range(len(columns)):
            if math.isfinite(values[i, j]):
                dark = (values[i, j] - low) / max(high - low, 1e-6) < 0.55
                axes.text(j + 0.5, i + 0.5, f"{values[i, j]:.2f}".replace("-", "−"), ha="center", va="center", fontsize=8,
                          color="#ffffff" if dark else "#000000")  # fmt: skip
    axes.set_xticks([j + 0.5 for j in range(len(columns))], labels=list(columns))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], labels=list(rows))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel(labels[1])
    axes.set_ylabel(labels[0])
    return Plot(name, "ablation", title, caption, figure)
