"""The report's plots: accuracy over latency, one a precision."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from edge_sdk.drawing import COLOURS, INK, MARKERS, label_points, svg
from edge_sdk.evaluate.front.document import Front, FrontRow
from edge_sdk.evaluate.front.recovered import Point, envelope, rival_at

PURPOSE = "the front report"
_SIZE_INCHES = (7.4, 4.8)
_LEGEND_COLUMNS = 4
_LOG_FROM_RATIO = 10.0
# Points of the rival's line, which is straight in milliseconds and bent where these are drawn as logarithms.
_LINE_POINTS = 200
# Of pairs, in their order; with more pairs than colours the marks tell them apart.
_PAIR_COLOURS = ("delta", "keyframe", "rest", "skip")
_PAIR_MARKERS = ("o", "P", "X", "h", "*", "p", "<", ">")
_OF_KIND = {"teacher": "teacher", "net": "rival", "copy": "copy", "flow": "flow"}


def pair_styles(front: Front) -> dict[str, tuple[str, str]]:
    """The page's name of the colour, and the mark, of each pair by its name."""
    pairs = dict.fromkeys(row.who for row in front.rows if row.kind == "pair")
    return {
        name: (_PAIR_COLOURS[place % len(_PAIR_COLOURS)], _PAIR_MARKERS[place % len(_PAIR_MARKERS)])
        for place, name in enumerate(pairs)
    }


def colour_name(row: FrontRow, styles: dict[str, tuple[str, str]]) -> str:
    """The page's name of a row's colour."""
    return styles[row.who][0] if row.kind == "pair" else _OF_KIND[row.kind]


def panels(front: Front) -> dict[str, str]:
    """SVG by precision.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    engines = dict.fromkeys(row.engine for row in front.rows)
    return {
        engine: svg(f"front{place}", partial(_draw, front, engine), PURPOSE, size_inches=_SIZE_INCHES)
        for place, engine in enumerate(engines)
    }


def _draw(front: Front, engine: str, figure: Any) -> None:
    axes = figure.add_subplot()
    styles = pair_styles(front)
    rows = front.of(engine)
    _draw_rival(axes, front.of(engine, "net", "teacher"))
    for who in dict.fromkeys(row.who for row in rows):
        own = [row for row in rows if row.who == who]
        _draw_series(axes, own, colour_name(own[0], styles), styles.get(who, ("", ""))[1])
    means = [_place(row)[0] for row in rows]
    axes.margins(x=0.1, y=0.1)
    if max(means) / min(means) > _LOG_FROM_RATIO:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel("mean milliseconds a frame")
    axes.set_ylabel("mIoU against labels")
    figure.legend(loc="outside upper left", ncols=_LEGEND_COLUMNS)
    figure.draw_without_rendering()  # settles the layout, which decides where names have room
    named = sorted(rows, key=lambda row: ("pair", "teacher", "net", "copy", "flow").index(row.kind))
    texts: dict[str, tuple[float, float]] = {}
    for row in named:
        # Rows of one interval share a text; spaces, which do not show, keep the names apart.
        text = f"K={row.interval}" if row.interval > 1 else row.who
        while text in texts:
            text += " "
        texts[text] = _place(row)
    label_points(axes, texts, may_lack=texts)


def _draw_rival(axes: Any, rows: Iterable[FrontRow]) -> None:
    line = envelope([Point(row.name, *_place(row)) for row in rows])
    x = np.union1d(np.linspace(line[0].ms, line[-1].ms, _LINE_POINTS), [point.ms for point in line])
    y = [rival_at(line, float(ms))[0] for ms in x]
    axes.plot(x, y, color=COLOURS["rival"], linewidth=1.6, zorder=1, label="rival: networks on every frame")


def _draw_series(axes: Any, rows: list[FrontRow], colour: str, marker: str) -> None:
    """One way to answer frames, by interval; networks stand alone, those that do not count are hollow."""
    kind = rows[0].kind
    mark = marker or MARKERS["rival" if kind == "net" else kind]
    style = {"color": COLOURS[colour], "marker": mark, "markersize": 6.5, "zorder": 3}
    if any(row.note for row in rows):
        style["markerfacecolor"] = "none"
    x, y = zip(*(_place(row) for row in rows), strict=True)
    spread = [row.times.mean_ms.iqr / 2 for row in rows]
    axes.errorbar(x, y, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.6, capsize=2)
    label = None if kind in ("net", "teacher") else rows[0].who
    line = "-" if len(rows) > 1 else "none"
    axes.plot(x, y, linewidth=1.2 if kind == "pair" else 0.8, linestyle=line, label=label, **style)


def _place(row: FrontRow) -> tuple[float, float]:
    return row.times.mean_ms.median, row.labels
