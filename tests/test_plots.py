from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vantage.page import change, figure, inline_svg
from vantage.plots import learning_curve_figure, moving_average, number, points, run_plots, save_png
from vantage.plots.dots import draw_interval, name_dots
from vantage.plots.style import Plot, new_figure


def metric_rows(steps: int = 20, **fixed: float) -> list[dict[str, Any]]:
    """Rows with an evaluation every fifth step and a reward and a value error at every step but 0."""
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        row: dict[str, Any] = {"step": step}
        if step % 5 == 0:
            accuracy = 0.4 + step / 100
            row |= {"eval/accuracy": accuracy, "eval/accuracy_low": accuracy - 0.03}
            row |= {"eval/accuracy_high": accuracy + 0.03}
        if step:
            row |= {"reward/mean": 0.4 + 0.01 * step, "value/mae": 0.5 - 0.01 * step, **fixed}
        rows.append(row)
    return rows


def plot_of(rows: list[dict[str, Any]], name: str) -> Any:
    return next(plot for plot in run_plots([("run", rows)]) if plot.name == name)


def lines_with_data(axes: Any) -> list[Any]:
    return [line for line in axes.lines if len(line.get_xdata())]


def test_number_takes_finite_numbers_only() -> None:
    assert [number(value) for value in (1, 0.5, -2)] == [1.0, 0.5, -2.0]
    assert [number(value) for value in (None, math.nan, math.inf, True, "1", [1])] == [None] * 6


def test_points_skip_null_and_absent_values() -> None:
    rows = [{"step": 0}, {"step": 1, "x": None}, {"step": 2, "x": 0.5}, {"step": 3, "x": math.nan}, {"x": 1.0}]
    assert points(rows, "x") == ([2.0], [0.5])


def test_moving_average_is_centred_and_uses_what_there_is_at_the_ends() -> None:
    assert moving_average([0.0, 3.0, 6.0, 0.0], 3) == pytest.approx([1.5, 3.0, 3.0, 3.0])
    assert moving_average([5.0], 7) == [5.0]


def test_only_metrics_that_were_logged_are_drawn() -> None:
    assert [plot.name for plot in run_plots([("run", metric_rows())])] == ["learning_curve", "reward", "value_error"]


@pytest.mark.parametrize(
    "rows", [[], [{"step": 0, "eval/accuracy": 0.4}], [{"step": 0}, {"step": 1, "reward/mean": 1}]]
)
def test_a_single_point_is_no_curve(rows: list[dict[str, Any]]) -> None:
    assert run_plots([("run", rows)]) == []


def test_a_metric_that_is_always_null_gives_no_axes() -> None:
    rows = [{**row, "value/pearson": None} for row in metric_rows()]
    assert "value_correlation" not in [plot.name for plot in run_plots([("run", rows)])]


def test_every_axis_is_labelled_with_its_unit() -> None:
    for plot in run_plots([("run", metric_rows(**{"policy/entropy": 0.4, "time/rollout": 1.0}))]):
        for axes in plot.figure.axes:
            assert axes.get_xlabel() == "training step"
            assert axes.get_ylabel()


def test_noisy_metrics_have_a_raw_line_and_a_bold_average() -> None:
    rows = [{"step": step, "reward/mean": float(step % 2)} for step in range(1, 101)]
    raw, smooth = plot_of(rows, "reward").figure.axes[0].lines
    assert list(raw.get_ydata()) == [float(step % 2) for step in range(1, 101)]
    assert smooth.get_linewidth() > raw.get_linewidth()
    assert np.ptp(smooth.get_ydata()[10:-10]) < 0.2  # the raw line swings between 0 and 1


def test_long_runs_are_thinned_without_losing_spikes() -> None:
    rows = [{"step": step, "reward/mean": 9.0 if step == 7777 else 0.5} for step in range(1, 10_001)]
    raw, smooth = plot_of(rows, "reward").figure.axes[0].lines
    assert len(raw.get_xdata()) <= 800
    assert len(smooth.get_xdata()) <= 801
    assert max(raw.get_ydata()) == 9.0


def test_evaluations_are_drawn_unsmoothed_inside_their_interval() -> None:
    axes = plot_of(metric_rows(), "learning_curve").figure.axes[0]
    (line,) = axes.lines
    assert list(line.get_ydata()) == pytest.approx([0.4, 0.45, 0.5, 0.55, 0.6])
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.37)
    assert corners[:, 1].max() == pytest.approx(0.63)


def test_values_far_below_the_axis_are_cut_off_and_the_caption_says_so() -> None:
    rows = [{"step": step, "value/variance_reduction": -40.0 if step == 1 else 0.2} for step in range(1, 31)]
    plot = plot_of(rows, "variance_reduction")
    assert plot.figure.axes[0].get_ylim()[0] == -1
    assert "below −1" in plot.caption
    assert "below −1" not in plot_of(rows[1:], "variance_reduction").caption


def test_a_gradient_spike_switches_to_a_logarithmic_axis() -> None:
    rows = [{"step": step, "policy/grad_norm": 1.0} for step in range(1, 31)]
    assert plot_of(rows, "grad_norm").figure.axes[0].get_yscale() == "linear"
    rows[9]["policy/grad_norm"] = 50.0
    assert plot_of(rows, "grad_norm").figure.axes[0].get_yscale() == "log"


def test_runs_share_axes_and_differ_in_colour_then_in_dash() -> None:
    runs = [(f"run {index}", metric_rows()) for index in range(8)]
    plot = next(plot for plot in run_plots(runs) if plot.name == "learning_curve")
    looks = [(line.get_color(), line.get_linestyle()) for line in plot.figure.axes[0].lines]
    assert len(set(looks)) == 8
    assert len({colour for colour, _ in looks}) == 6
    assert plot.legend == tuple(label for label, _ in runs)


def test_time_is_stacked_and_what_no_phase_claims_is_other() -> None:
    phases = {"time/rollout": 1.0, "time/forward_backward": 0.5, "time/reward": 0.0}
    rows = [{"step": step, "time/step": 2.0, **phases} for step in range(1, 6)]
    axes = plot_of(rows, "time").figure.axes[0]
    assert [patch.get_label() for patch in axes.patches] == ["rollout", "forward and backward", "other"]
    assert [max(patch.get_data().values) for patch in axes.patches] == [1.0, 1.5, 2.0]


def test_time_of_several_runs_is_one_bar_each() -> None:
    runs = [(name, [{"step": 1, "time/rollout": seconds}]) for name, seconds in (("a", 1.0), ("b", 3.0))]
    (plot,) = run_plots(runs)
    axes = plot.figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0, 3.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]


def test_metrics_of_an_algorithm_are_small_multiples_of_their_own() -> None:
    rows = metric_rows(**{"poise/ridge": 1.0, "poise/buffer": 64.0, "my algo/x": 2.0, "loss/policy": 0.1})
    plots = {plot.name: plot for plot in run_plots([("run", rows)]) if plot.section == "algorithm"}
    assert list(plots) == ["algorithm_poise", "algorithm_my_algo"]
    titles = [axes.get_title(loc="left") for axes in plots["algorithm_poise"].figure.axes]
    assert titles == ["ridge", "buffer"]


def test_seeds_of_a_label_become_their_mean_and_a_band_over_the_common_range() -> None:
    seeds = [
        [{"step": 0, "eval/accuracy": 0.2}, {"step": 10, "eval/accuracy": 0.4}, {"step": 20, "eval/accuracy": 0.9}],
        [{"step": 0, "eval/accuracy": 0.4}, {"step": 10, "eval/accuracy": 0.8}],
    ]
    figure = learning_curve_figure([("poise", seeds[0]), ("poise", seeds[1]), ("grpo", seeds[1])])
    axes = figure.axes[0]
    mean, single = lines_with_data(axes)
    assert list(mean.get_xdata()) == [0, 10]
    assert list(mean.get_ydata()) == pytest.approx([0.3, 0.6])
    assert list(single.get_ydata()) == [0.4, 0.8]
    corners = axes.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 6)) for x, y in corners} == {(0, 0.2), (0, 0.4), (10, 0.4), (10, 0.8)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["poise", "grpo"]


def test_a_learning_curve_can_be_drawn_against_what_was_spent() -> None:
    rows = [
        {"step": 0, "eval/accuracy": 0.2},
        {"step": 1, "tokens/generated": 100, "tokens/value_extra": 20, "time/step": 2.0},
        {"step": 2, "tokens/generated": 100, "time/step": 3.0, "eval/accuracy": 0.5},
    ]
    for x, spent in (("step", 2), ("tokens", 220), ("seconds", 5.0)):
        (line,) = lines_with_data(learning_curve_figure([("run", rows)], x=x).axes[0])
        assert list(line.get_xdata()) == [0, spent]


def test_a_learning_curve_without_its_metric_is_an_error() -> None:
    with pytest.raises(ValueError, match="eval/accuracy"):
        learning_curve_figure([("run", [{"step": 0}])])


def test_png_has_title_and_legend_and_the_figure_stays_as_it_was(tmp_path: Path) -> None:
    from PIL import Image

    figure = learning_curve_figure([("run", metric_rows())])
    before = tuple(figure.get_size_inches())
    save_png(figure, tmp_path / "plain.png")
    save_png(figure, tmp_path / "new" / "named.png", title="Accuracy of $1_000", legend=["_hidden", "a $ b", "c"])
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "new" / "named.png") as named:
        assert plain.width == named.width == round(before[0] * 180)
        assert named.height > plain.height >= 600
        assert len(set(plain.convert("L").tobytes())) > 20
    assert tuple(figure.get_size_inches()) == before
    assert not figure.legends


def test_drawing_leaves_matplotlib_settings_and_pyplot_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    run_plots([("run", metric_rows())])
    assert dict(matplotlib.rcParams) == before


def test_importing_report_and_plots_does_not_import_matplotlib() -> None:
    code = (
        "import sys, vantage.report; print([m for m in ('matplotlib', 'jinja2', 'numpy', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_an_axis_from_zero_leaves_room_above_a_small_range() -> None:
    rows = [{"step": step, "value/mae": 0.49 + 0.005 * step} for step in range(1, 4)]
    low, high = plot_of(rows, "value_error").figure.axes[0].get_ylim()
    assert low == 0
    assert high >= 1.04 * 0.505


def test_names_of_dots_that_lie_close_do_not_cover_each_other() -> None:
    made, (axes,) = new_figure(5.2, 3.3)
    dots = [(f"estimator_{i}", 1.0 + 0.02 * i, 0.1 + 0.001 * i) for i in range(5)]
    for _, x, y in dots:
        axes.plot([x], [y], marker="o")
    axes.set_xlim(0, 3)
    axes.set_ylim(0, 0.2)
    name_dots(axes, dots)
    made.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_a_ring_has_the_ground_of_the_card_inside_in_any_theme() -> None:
    made, (axes,) = new_figure(5.2, 2.0)
    draw_interval(axes, 0, {"mean": 1.0, "low": 0.5, "high": 1.5}, "#0072b2", hollow=True)
    text = inline_svg(Plot("rings", "section", "Rings", "caption", made))
    assert "fill: var(--card)" in text


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [figure(value, "{:.3f}") for value in (-0.0004, -0.0, -0.0006, 0.0004)] == [
        "0.000",
        "0.000",
        "−0.001",
        "0.000",
    ]


def test_a_change_of_a_count_has_a_sign_unless_it_rounds_to_nothing():
    values = (335_400.0, -2_690_058.0, 21.4, -0.3, 0.0, None)
    assert [change(value) for value in values] == ["+335 k", "−2.69 M", "+21", "0", "0", "–"]
