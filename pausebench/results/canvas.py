"""The canvas of a chart: the looks of the series, and one drawing as SVG for the page, SVG file and PNG.

Invariant: the same numbers give the same bytes, and nothing in an SVG points outside it. Text stays text. In the page's
SVG ink and series colours become CSS variables, so that its light, dark and print styles colour the figures too; the
exported SVG and PNG keep the light colours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

from pausebench.results.statistics import report_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 4.6

PNG_DOTS_PER_INCH = 200

# The light theme; `_themed` turns each into its CSS variable. The series are Okabe and Ito's palette.
INK, GRID, PAPER = "#1b1f24", "#e3e6ea", "#fcfcfa"
CSS_OF = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)"}


@dataclass(frozen=True)
class Look:
    """How one series is drawn: colour, marker and hatch all differ, so that no reader depends on colour."""

    color: str
    marker: str
    hatch: str
    dash: str


GREY, ORANGE, GREEN, BLUE, PURPLE = "#6b7280", "#e69f00", "#009e73", "#0072b2", "#cc79a7"
CSS_OF |= {
    color: f"var(--{name})"
    for color, name in ((GREY, "grey"), (ORANGE, "orange"), (GREEN, "green"), (BLUE, "blue"), (PURPLE, "purple"))
}
LOOKS = {
    "StdPT_StdFT": Look(GREY, "o", "", ":"),
    "StdPT_PauseFT": Look(ORANGE, "s", "///", "--"),
    "PausePT_StdFT": Look(GREEN, "^", "\\\\", "-."),
    "PausePT_PauseFT": Look(BLUE, "D", "xx", "-"),
    "StdPT": Look(ORANGE, "s", "///", "--"),
    "PausePT": Look(BLUE, "D", "xx", "-"),
}
OTHER_LOOK = Look(PURPLE, "v", "--", "--")


@dataclass(frozen=True)
class Drawing:
    """One picture three times: `svg` for inside the page, `standalone` and `png` for files named `name`."""

    name: str
    svg: str
    standalone: str
    png: bytes


def look_of(name: str) -> Look:
    """The look of a variant or a kind of pretraining."""
    return LOOKS.get(name, OTHER_LOOK)


def draw(identifier: str, label: str, height_inches: float, paint: Callable[[Axes], None]) -> Drawing:
    """The picture of what `paint` puts on the axes, read aloud as `label`; `identifier` is unique on the page."""
    matplotlib = report_extra("matplotlib")
    figure_module = report_extra("matplotlib.figure")
    style: dict[str, Any] = {
        "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": identifier,
        "font.family": "sans-serif", "font.size": 10,
        "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.axisbelow": True,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "hatch.linewidth": 0.7, "lines.linewidth": 1.6,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = figure_module.Figure(figsize=(WIDTH_INCHES, height_inches), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        paint(axes)
        svg, png = StringIO(), BytesIO()
        # `savefig` would draw each picture twice and find its layout again.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        report_extra("matplotlib.backends.backend_svg").FigureCanvasSVG(figure).print_svg(svg, metadata=metadata)
        figure.set_layout_engine("none")
        figure.set_dpi(PNG_DOTS_PER_INCH)
        figure.patch.set(visible=True, facecolor=PAPER)
        canvas = report_extra("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
        canvas.print_png(png, metadata={"Software": None})
    slug = re.sub(r"[^a-z0-9]+", "-", identifier.lower()).strip("-")
    return Drawing(slug, _themed(svg.getvalue(), slug, label), _standalone(svg.getvalue(), label), png.getvalue())


def _standalone(svg: str, label: str) -> str:
    """A file of its own: a title for readers who cannot see it, a background, no name of an outside document."""
    svg = svg[svg.index("<svg") :]
    head, body = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    escaped = report_extra("markupsafe").escape(label)
    start = f'<?xml version="1.0" encoding="utf-8"?>\n{head}\n <title>{escaped}</title>'
    return f'{start}<rect width="100%" height="100%" fill="{PAPER}"/>{body}'


def _themed(svg: str, slug: str, label: str) -> str:
    """Cut matplotlib's file down to what may stand inside an HTML page beside its siblings."""
    slug = f"f-{slug}"
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{slug}-", svg)
    for color, css in CSS_OF.items():
        svg = svg.replace(color, css)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None, "matplotlib always writes a viewBox"
    escaped = report_extra("markupsafe").escape(label)
    body = svg[svg.index(">") + 1 :]
    return f'<svg {view_box.group(0)} role="img" aria-label="{escaped}">{body}'
