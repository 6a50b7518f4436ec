"""How do Vantage's figures look? Colours, fonts, axes, and writing a figure to a file.

pyplot and its global figures are not used, matplotlib is imported only when a figure is drawn, and its settings are put
back afterwards. Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID, OTHER = "#1c2024", "#62686f", "#e3e5e8", "#a9aeb4"
GROUND = "#fffffe"
"""Of what is empty inside, such as a ring; in a page the colour of the card that it lies on."""
THEME_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    OTHER: "--other",
    GROUND: "--card",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES_COLOURS)},
}
"""Colours of the figures and the CSS variables that replace them in a page, so that a figure follows its theme."""

_DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)))
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

    def save(self, path: Path) -> None:
        """Write the figure to `path`.png and `path`.svg on white, with its title and a legend, so that it stands alone."""
        _save(self.figure, path, ("png", "svg"), self.title, self.legend)


def figure_style(**settings: Any) -> AbstractContextManager[None]:
    """Vantage's look for figures that are made, or saved, inside the `with` block; `settings` are rcParams on top."""
    import matplotlib

    return matplotlib.rc_context({**_STYLE, **settings})


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, panels: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with the first `panels` of rows × columns axes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.1)
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def save_png(figure: Figure, path: Path, *, title: str | None = None, legend: Sequence[str] = ()) -> None:
    """Write `figure` to `path` on a white ground, with a headline and a legend of runs if they are given."""
    _save(figure, path.with_suffix(""), ("png",), title, legend)


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Places the parts of `figure` once for all that is written inside; to write lays out and draws twice otherwise."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def _save(figure: Figure, stem: Path, kinds: Sequence[str], title: str | None, legend: Sequence[str]) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    width, height = figure.get_size_inches()
    columns = max(1, int(width / 1.7))
    with figure_style(**{"svg.hashsalt": stem.name}):
        figure.set_size_inches(width, height + 0.22 * math.ceil(len(legend) / columns) + (0.25 if title else 0))
        headline = figure.suptitle(title or "", x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)
        headline.set_in_layout(bool(title))
        key = None
        if legend:
            key = figure.legend(handles=legend_lines(legend), loc="outside lower left", ncols=columns)
        with laid_out(figure):
            for kind in kinds:
                # Nothing that changes from one writing to the next.
                unnamed: dict[str, None] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
                figure.savefig(stem.with_name(f"{stem.name}.{kind}"), format=kind, dpi=180, metadata=unnamed)
        headline.set_text("")  # the figure stays as it was: its page has headline and legend of its own
        headline.set_in_layout(False)
        if key is not None:
            key.remove()
        figure.set_size_inches(width, height)


def line_look(index: int) -> dict[str, Any]:
    """Colour, dash and width of the line number `index`."""
    dash = _DASHES[index // len(SERIES_COLOURS) % len(_DASHES)]
    return {"color": SERIES_COLOURS[index % len(SERIES_COLOURS)], "linestyle": dash, "linewidth": 2.0}


def legend_lines(labels: Sequence[str]) -> list[Any]:
    """Handles of a legend for lines 0, 1, … with these labels."""
    from matplotlib.lines import Line2D

    # A leading underscore would tell matplotlib to hide the entry.
    shown = [f"\N{THIN SPACE}{label}" if label.startswith("_") else label for label in labels]
    return [Line2D([], [], label=label, **line_look(index)) for index, label in enumerate(shown)]


def label_axes(axes: Axes, unit: str, x_label: str) -> None:
    """Labels, and few round ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(unit)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)


def from_zero(axes: Axes) -> None:
    """A y axis from 0 with room above the largest value, of which a small range of large values has hardly any."""
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.05 * float(axes.dataLim.ymax)))


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
