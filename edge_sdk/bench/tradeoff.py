"""The bench report's plot of accuracy against latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.figures import Estimate, Figures
from edge_sdk.bench.plots import EXACT, PURPOSE, WIDE_INCHES, Plot, legend_above
from edge_sdk.bench.series import front
from edge_sdk.bench.wording import accuracy_of
from edge_sdk.drawing import COLOURS, INK, MARKERS, label_points, svg

_TITLE = "Accuracy against latency"
_HEIGHT_INCHES = 4.4
# Variants that are drawn as another report's.
_DRAWN_AS = {"pair": "delta"}
# Rows whose names come first where there is little room.
_NAMED_FIRST = (SUBJECT, "teacher", "copy", "flow", "rival")
_LOG_FROM_RATIO = 30.0


@dataclass(frozen=True)
class _Point:
    row: Row
    mean_ms: Estimate
    accuracy: float

    @property
    def place(self) -> tuple[float, float]:
        return self.mean_ms.value, self.accuracy


def accuracy(document: BenchDocument, figures: Figures, chosen: str | None = None) -> Plot:
    """Every row's accuracy against its mean latency, with those that no other beats joined.

    Args:
        document: the run.
        figures: its figures.
        chosen: name of a row to mark.
    """
    named = accuracy_of(document)
    if named is None:
        return Plot(
            _TITLE, None, "Not measured: no row of this run was scored, which needs a clip of frames."
        )
    measure, value_of = named
    points = {}
    for row in document.rows:
        found = figures.row(row.name, "saturated") or figures.row(row.name, "camera")
        latency = None if found is None else found.latency()
        value = value_of(row)
        if latency is not None and value is not None:
            points[row.name] = _Point(row, latency.mean_ms, value)
    if not points:
        return Plot(_TITLE, None, "Not measured: no row has both an accuracy and a latency.")
    best = front({name: point.place for name, point in points.items()})
    unnamed: list[str] = []

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        _draw_points(axes, points, best, chosen)
        axes.set_ylabel(measure)
        figure.draw_without_rendering()  # settles the layout, which decides where names have room
        first = [name for name in points if name == chosen or name in _NAMED_FIRST]
        order = dict.fromkeys((*first, *best, *points))
        places = {name: points[name].place for name in order}
        unnamed.extend(label_points(axes, places, may_lack=set(order) - {SUBJECT, chosen}))

    drawn = svg("accuracy", draw, PURPOSE, size_inches=(WIDE_INCHES, _HEIGHT_INCHES), settings=EXACT)
    left_out = [row.name for row in document.rows if row.name not in points]
    notes = (
        "Filled: no other row is at once as fast and more accurate. Whiskers: 95 % interval of the mean.",
        f"Without room for a name, but in the table: {', '.join(unnamed)}." if unnamed else "",
        f"Not scored: {', '.join(left_out)}." if left_out else "",
    )
    return Plot(_TITLE, drawn, " ".join(filter(None, notes)))


def _draw_points(axes: Any, points: dict[str, _Point], best: tuple[str, ...], chosen: str | None) -> None:
    seen: set[str] = set()
    for name, point in points.items():
        variant = point.row.variant
        colour, marker = (of[_DRAWN_AS.get(variant, variant)] for of in (COLOURS, MARKERS))
        low, high = point.mean_ms.low, point.mean_ms.high
        if low is not None and high is not None:
            axes.plot([low, high], [point.accuracy] * 2, color=colour, linewidth=1.2)
        style = {"color": colour, "markerfacecolor": colour if name in best else "none", "markersize": 6.5}
        axes.plot(*point.place, marker, label=None if variant in seen else variant, zorder=3, **style)
        seen.add(variant)
        if name == chosen:
            axes.plot(*point.place, "o", color=INK, markerfacecolor="none", markersize=13, label="chosen")
    means = [point.mean_ms.value for point in points.values()]
    axes.margins(x=0.14, y=0.14)
    if min(means) > 0 and max(means) / min(means) > _LOG_FROM_RATIO:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    if len(best) > 1:
        x, y = zip(*(points[name].place for name in best))
        axes.step(x, y, where="post", color=INK, linewidth=1, alpha=0.6, zorder=1, label="none is better")
    axes.set_xlabel("mean milliseconds a frame")
    legend_above(axes)
