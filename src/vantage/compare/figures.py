"""Which pictures does a comparison give? Curves over training with a band over seeds, final accuracy, differences, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vantage.compare.results import finished
from vantage.plots import Plot, figure_style, moving_average
from vantage.plots.curves import Seed, draw_seeds
from vantage.plots.dots import draw_interval, name_rows, reference_line
from vantage.plots.run import PHASES, draw_time_by_run
from vantage.plots.style import MUTED, from_zero, label_axes, line_look, log_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
"""What comparison.json holds."""
AXES = {"step": "training step", "tokens": "generated tokens", "seconds": "training time (seconds)"}
BAND = "Lines are means over seeds, bands reach from the lowest to the highest seed."
SINGLE = "Bands are the 95 % interval of each evaluation: one seed says nothing about the spread over seeds."


@dataclass(frozen=True)
class Course:
    """A metric whose course over training is compared."""

    key: str
    name: str
    section: str
    title: str
    unit: str
    caption: str
    reference: float | None = None
    floor: float | None = None
    from_zero: bool = False


COURSES = (
    Course(
        "value/variance_reduction", "variance_reduction", "value", "Variance removed by the value", "share of variance",
        "1 − Var(outcome − value) / Var(outcome), before any scaling. Above 0 the value makes the gradient less noisy; "
        "POISE's paper reports about 0.3.", reference=0.0, floor=-0.5,
    ),
    Course(
        "value/mae", "value_error", "value", "Value error", "mean absolute error (reward)",
        "Lower is better, but a perfect value does not reach 0: outcomes are random around it.", from_zero=True,
    ),
    Course(
        "policy/grad_norm", "grad_norm", "policy", "Gradient norm", "L2 norm before clipping",
        "Lower and steadier is what POISE's paper claims against DAPO. Levels depend on how advantages are scaled "
        "(dividing by a group's deviation enlarges them), so compare steadiness first: the table has the spread over "
        "the mean.", from_zero=True,
    ),
    Course(
        "policy/entropy", "entropy", "policy", "Policy entropy", "nats per token",
        "Accuracy that is paid for with a fall towards 0 will not go on rising.", from_zero=True,
    ),
)  # fmt: skip


def comparison_plots(found: Found) -> list[Plot]:
    """Every plot that the finished runs allow, in reading order."""
    groups = {name: runs for name in found["algorithms_compared"] if (runs := finished(found["cells"], name))}
    if not groups:
        return []
    with figure_style():
        plots = [_accuracy_plot(found, groups, unit) for unit in AXES]
        pairs = [
            (f"{d['ours']} − {d['theirs']}", d["final_accuracy"]) for d in found["differences"] if d["final_accuracy"]
        ]
        height = max(1.9, 0.9 + 0.3 * max(len(groups), len(pairs)))
        plots.append(_final_plot(groups, found["algorithms"], height))
        plots += [_difference_plot(pairs, height)] if pairs else []
        plots += [_course_plot(groups, course) for course in COURSES if _drawable(groups, course.key)]
        plots += _time_plot(groups)
    return plots


def _bands(groups: Mapping[str, Sequence[Found]]) -> str:
    return BAND if max(map(len, groups.values())) > 1 else SINGLE


def _accuracy_plot(found: Found, groups: Mapping[str, Sequence[Found]], unit: str) -> Plot:
    figure, (axes,) = new_figure(*((10.6, 3.6) if unit == "step" else (5.2, 3.2)))
    target = found["target"]["accuracy"]
    if target is not None:
        axes.axhline(target, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for index, (name, runs) in enumerate(groups.items()):
        draw_seeds(axes, [_evaluated(run, unit) for run in runs], name, index, len(groups))
    label_axes(axes, "accuracy (share solved)", AXES[unit])
    if unit == "tokens":
        _count_axis(axes)
    look_for = {
        "step": f"Look for bands that part: where they overlap, the algorithms are not told apart. {_bands(groups)} "
        "The dashed line is the target.",
        "tokens": "The same accuracy further to the left costs fewer generated tokens (tokens for values and thrown-away "
        "groups count). A line ends with the first of its seeds.",
        "seconds": "The same accuracy further to the left costs less time; evaluations and checkpoints are not "
        "counted. A line ends with the first of its seeds.",
    }[unit]
    title = {"step": "Accuracy by step", "tokens": "Accuracy by tokens", "seconds": "Accuracy by time"}[unit]
    return Plot(f"accuracy_{unit}", "accuracy", title, look_for, figure, tuple(groups), wide=unit == "step")


def _evaluated(run: Found, unit: str) -> Seed:
    points = run["evaluations"]
    nan = math.nan
    return (
        [p[unit] for p in points],
        [p["accuracy"] for p in points],
        [nan if p["low"] is None else p["low"] for p in points],
        [nan if p["high"] is None else p["high"] for p in points],
    )


def _count_axis(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _final_plot(groups: Mapping[str, Sequence[Found]], algorithms: Mapping[str, Any], height: float) -> Plot:
    figure, (axes,) = new_figure(5.2, height)
    for row, (name, runs) in enumerate(groups.items()):
        look = line_look(row)["color"]
        axes.scatter(
            [run["final_accuracy"] for run in runs], [row] * len(runs), s=26, facecolors="none", edgecolors=look
        )
        draw_interval(axes, row, algorithms[name]["means"]["final_accuracy"], look)
    name_rows(axes, list(groups))
    axes.set_xlabel("final accuracy (share solved)")
    caption = (
        "Rings are seeds, dots their mean, lines its 95 % interval (Student's t over seeds): few seeds, wide lines."
    )
    return Plot("final_accuracy", "accuracy", "Final accuracy", caption, figure)


def _difference_plot(pairs: Sequence[tuple[str, Found]], height: float) -> Plot:
    figure, (axes,) = new_figure(5.2, height)
    reference_line(axes, 0)
    for row, (_, difference) in enumerate(pairs):
        draw_interval(axes, row, difference, line_look(0)["color"])
    name_rows(axes, [label for label, _ in pairs])
    axes.set_xlabel("difference in final accuracy")
    caption = (
        "To the right of 0 the first of the pair is better. A line that crosses 0 leaves open which one is; "
        f"of {len(pairs)} lines, one in twenty misses the truth by chance."
    )
    return Plot("differences", "accuracy", "Paired differences over the same seeds", caption, figure)


def _drawable(groups: Mapping[str, Sequence[Found]], key: str) -> bool:
    return any(len(_course(run, key)[0]) > 1 for runs in groups.values() for run in runs)


def _course(run: Found, key: str) -> tuple[list[float], list[float]]:
    """Steps and values, moving averages of a twentieth of the run."""
    values = run["curves"].get(key, [])
    kept = [(float(step), value) for step, value in zip(run["curves"]["step"], values) if value is not None]
    window = max(1, len(kept) // 20) | 1 if len(kept) >= 10 else 1
    smooth = moving_average(moving_average([value for _, value in kept], window), window)
    return [step for step, _ in kept], smooth


def _course_plot(groups: Mapping[str, Sequence[Found]], course: Course) -> Plot:
    figure, (axes,) = new_figure(5.2, 3.1)
    if course.reference is not None:
        axes.axhline(course.reference, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    lowest, largest = math.inf, []
    for index, (name, runs) in enumerate(groups.items()):
        seeds = [
            (xs, ys, [math.nan] * len(xs), [math.nan] * len(xs))
            for run in runs
            for xs, ys in [_course(run, course.key)]
            if xs
        ]
        if seeds:
            draw_seeds(axes, seeds, name, index, len(groups))
            lowest = min(lowest, *(y for seed in seeds for y in seed[1]))
            largest.append(max(y for seed in seeds for y in seed[1]))
    label_axes(axes, course.unit, "training step")
    caption = course.caption
    if course.from_zero and lowest > 0 and max(largest) > 20 * min(largest):
        log_axis(axes)
    elif course.from_zero and lowest >= 0:
        from_zero(axes)
    elif course.floor is not None and lowest < course.floor:
        axes.set_ylim(bottom=course.floor, top=max(axes.get_ylim()[1], course.floor + 0.1))
        caption += f" Values below {course.floor:g} lie outside the axis.".replace("-", "−")
    return Plot(course.name, course.section, course.title, f"{caption} {_smooth(groups)}", figure, tuple(groups))


def _smooth(groups: Mapping[str, Sequence[Found]]) -> str:
    seeds = max(map(len, groups.values()))
    return "Moving averages; means and ranges over seeds." if seeds > 1 else "Moving averages of one seed."


def _time_plot(groups: Mapping[str, Sequence[Found]]) -> list[Plot]:
    """Seconds a step by phase, as the report of several runs has it."""
    named = [(key.removeprefix("time/"), name) for key, name, _ in PHASES if key != "time/checkpoint"]
    tables = []
    for name, runs in groups.items():
        rows = [
            {label: run[f"time/{phase}"] / run["steps"] for phase, label in named}
            | {"other": run["time/other"] / run["steps"]}
            for run in runs
        ]
        tables.append((name, rows))
    totals = {
        label: sum(row[label] for _, rows in tables for row in rows) for label in [n for _, n in named] + ["other"]
    }
    everything = sum(totals.values())
    shown = [label for label, total in totals.items() if total > (0.01 * everything if label == "other" else 0)]
    if not shown:
        return []
    caption = "Where a step's time goes: what a value costs is the share of value estimate and value update."
    return [Plot("time", "cost", "Time by phase", caption, draw_time_by_run(tables, shown), wide=True)]
