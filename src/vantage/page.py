"""How does a finished page come about? Templates, numbers as people read them, and plots that follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vantage.plots import SERIES_COLOURS, THEME_VARIABLES, Plot, figure_style, number
from vantage.plots.style import laid_out


def render(template: str, **context: Any) -> str:
    """A template of the package as HTML; everything in `context` that is text is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("vantage"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=duration,
        count=count,
        decimal=lambda value: figure(value, "{:.3f}"),
        signed=lambda value: figure(value, "{:+.3f}"),
        svg=lambda plot: Markup(inline_svg(plot)),  # drawn here, every label in it escaped by matplotlib
    )
    environment.globals.update(colours=len(SERIES_COLOURS), dashes=("none", "6 2", "1.5 2"))
    return environment.get_template(template).render(**context)


_INVISIBLE = {
    code: f"[U+{code:04X}]"
    for span in ((0, 9), (11, 32), (0x7F, 0xA0), (0x200E, 0x2010), (0x202A, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000))
    for code in range(*span)
}
"""Control characters, direction marks and lone surrogates, and how they are written out."""


def visible(text: str) -> str:
    """Text in which characters that hide or reorder others are written out: models emit all of them."""
    return text.translate(_INVISIBLE)


def figure(value: Any, template: str) -> str:
    """A number through a format template, with a real minus sign; a dash where there is none."""
    found = number(value)
    if found is None:
        return "–"
    text = template.format(found)
    if text.startswith("-") and not any(digit in text for digit in "123456789"):
        text = text[1:]  # what rounds to 0 has no sign
    return text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float | None) -> str:
    """`950`, `12.3 k`, `1.25 M`."""
    if value is None:
        return "–"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def change(value: float | None) -> str:
    """A count with its sign: `+950`, `−12.3 k`, `0`."""
    sign = "" if value is None or round(value) == 0 else "+" if value > 0 else "−"
    return sign + count(value if value is None else abs(value))


def write_page(folder: Path, page: str, plots: Sequence[Plot]) -> tuple[Path, tuple[Path, ...]]:
    """Write `report.html`, and each plot as `plots/NAME.png` and `.svg`; returns the page's path and those of the PNG files."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    images = tuple(folder / "plots" / f"{plot.name}.png" for plot in plots)
    for plot, image in zip(plots, images):
        plot.save(image.with_suffix(""))
    html = folder / "report.html"
    html.write_text(page, encoding="utf-8")
    return html, images


def inline_svg(plot: Plot) -> str:
    """The figure as an `<svg>` element of a page: its colours and font are CSS variables, its ids are the plot's own."""
    buffer = io.StringIO()
    with figure_style(**{"svg.hashsalt": plot.name}), laid_out(plot.figure):
        plot.figure.savefig(buffer, format="svg", facecolor="none")
    head, body = buffer.getvalue().split("<svg", 1)[1].split(">", 1)
    view_box = re.findall(r'viewBox="[-\d. ]+"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{plot.name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{plot.name}-', body).replace("url(#", f"url(#{plot.name}-")
    return f"<svg {view_box}>" + re.sub(r'style="[^"]*"', lambda style: _themed(style.group()), body).strip()


def _themed(style: str) -> str:
    for colour, variable in THEME_VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return re.sub(r'font: ((?:\w+ )*[\d.]+px) [^;"]+', r"font: \1 var(--sans)", style)
