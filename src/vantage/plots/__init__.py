"""Figures from rows of `metrics.jsonl`: their look, curves over training, the plots of a run's report."""

from vantage.plots.curves import LabelledRuns, Metrics, learning_curve_figure, moving_average, number, points
from vantage.plots.run import run_plots
from vantage.plots.style import SERIES_COLOURS, THEME_VARIABLES, Plot, figure_style, save_png

__all__ = [
    "SERIES_COLOURS",
    "THEME_VARIABLES",
    "LabelledRuns",
    "Metrics",
    "Plot",
    "figure_style",
    "learning_curve_figure",
    "moving_average",
    "number",
    "points",
    "run_plots",
    "save_png",
]
