"""Plots as SVG that takes its colours from the page, and so reads in light and dark; every report draws with this."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from edge_sdk.optional import require

# Stand-ins that matplotlib draws with; each becomes a colour of the page's style sheet (page.css, or the page's own).
INK, LINE = "#010101", "#020202"
_NAMES = (
    *("teacher", "rival", "copy", "flow", "delta", "keyframe", "skip", "warn"),
    *("capture", "copy-in", "step", "copy-out", "decode", "rest"),
)
COLOURS = {name: f"#03{place:02x}{0xA0 + place:02x}" for place, name in enumerate(_NAMES, start=1)}
_TO_CSS = {INK: "currentColor", LINE: "var(--line)"} | {
    colour: f"var(--{name})" for name, colour in COLOURS.items()
}
# Of the ways to answer a frame, in plots that show several.
MARKERS = {"teacher": "s", "rival": "D", "copy": "v", "flow": "^", "delta": "o"}

_RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_SIZE_INCHES = (6.2, 3.7)
# Numbers that stand at an axis' ticks, within each decade, up to a ratio of its ends.
_TICKS = ((10.0, (1, 1.5, 2, 3, 4, 5, 7)), (300.0, (1, 2, 5)))
# Places of a label beside its point: side (1 right), and rise in points.
_PLACES = ((1, 7), (1, -7), (-1, 7), (-1, -7), (1, 18), (1, -18))
_FAR_PLACES = ((1, 0), (-1, 0), (-1, 18), (-1, -18))
# Points of width: half a mark, a letter on average, and where names must not touch in any font.
_MARK, _LETTER, _WIDE_LETTER = 5.0, 5.0, 5.6


def svg(
    name: str,
    draw: Callable[[Any], None],
    purpose: str,
    *,
    size_inches: tuple[float, float] = _SIZE_INCHES,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """What ``draw`` draws into a matplotlib figure, as an element of an HTML page.

    Args:
        name: of the plot, unique on its page.
        draw: is given the figure.
        purpose: for the message where matplotlib is missing.
        size_inches: width and height; the page scales it.
        settings: matplotlib's, beside the reports' own.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", purpose)
    figure_module = require("matplotlib.figure", purpose)
    with matplotlib.rc_context(_RC | {"svg.hashsalt": name} | dict(settings or {})):
        figure = figure_module.Figure(figsize=size_inches, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            _plain_numbers(axes, purpose)
        buffer = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return to_inline(buffer.getvalue(), name)


def label_points(
    axes: Any, points: Mapping[str, tuple[float, float]], may_lack: Collection[str] | None = None
) -> tuple[str, ...]:
    """Write each point's name beside it, on the side where no earlier name stands.

    Args:
        axes: with its limits set.
        points: position by name, the most important first.
        may_lack: names to leave out where there is no room for them; where it is given, names also keep within the
            axes and off other points. None where there are few.

    Returns:
        The names that were left out.
    """
    scale = 72 / axes.figure.dpi
    crowded = may_lack is not None
    at = {name: axes.transData.transform(point) * scale for name, point in points.items()}
    left_edge, right_edge = axes.bbox.x0 * scale, axes.bbox.x1 * scale
    # Left, right, height of the middle; in points (1/72 inch).
    taken: list[tuple[float, float, float]] = []
    marks = [(x - _MARK, x + _MARK, y) for x, y in at.values()] if crowded else []
    lacking = []
    for name, (x, y) in at.items():
        width = (_WIDE_LETTER if crowded else _LETTER) * len(name)
        others = [mark for mark in marks if mark != (x - _MARK, x + _MARK, y)]
        for side, rise in (*_PLACES, *(_FAR_PLACES if crowded else ())):
            left, height = (x + 7 if side > 0 else x - 7 - width), y + rise
            clear = all(left > b or left + width < a or abs(height - h) > 10 for a, b, h in (*taken, *others))
            clear &= not crowded or (left_edge <= left and left + width <= right_edge)
            if clear:
                break
        if not clear and may_lack is not None and name in may_lack:
            lacking.append(name)
            continue
        taken.append((left, left + width, height))
        axes.annotate(
            name,
            points[name],
            xytext=(7 * side, rise),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8.5,
        )
    return tuple(lacking)


def _plain_numbers(axes: Any, purpose: str) -> None:
    """Write 20, not 2x10^1: mathematical text is drawn as shapes, which a reader can neither select nor scale."""
    ticker = require("matplotlib.ticker", purpose)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            within = next((ticks for ratio, ticks in _TICKS if high / low <= ratio), (1,))
            axis.set_major_locator(ticker.LogLocator(subs=within))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())


def to_inline(svg: str, name: str) -> str:
    """An SVG document as an element of an HTML page.

    Declarations that only a document needs go, as do references to outside names; stand-in colours become the
    page's; identifiers get ``name`` in front, because several plots share one page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\b(id|href)="(#?)', rf'\1="\2{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for stand_in, colour in _TO_CSS.items():
        svg = svg.replace(stand_in, colour)
    # The page decides the width; the view box keeps the proportions.
    head, rest = svg.split(">", 1)
    return re.sub(r'\s(width|height)="[^"]*"', "", head) + ' role="img">' + rest
