"""The report's plots, as SVG that takes its colours from the page and so reads in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk.evaluate.evaluation import Evaluation, Row
from edge_sdk.manifest import FLOAT32
from edge_sdk.optional import require

# Stand-ins that matplotlib draws with; each becomes a colour of the page's style sheet.
_INK, _LINE = "#010101", "#020202"
_SERIES = {"teacher": "#0301a1", "rival": "#0302a2", "copy": "#0303a3", "flow": "#0304a4", "delta": "#0305a5"}
_TO_CSS = {_INK: "currentColor", _LINE: "var(--line)"} | {
    colour: f"var(--{name})" for name, colour in _SERIES.items()
}
_MARKERS = {"teacher": "s", "rival": "D", "copy": "v", "flow": "^", "delta": "o"}
_DASHES = {"teacher": (0, (6, 2)), "rival": (0, (1, 1.5)), "copy": "-", "flow": "-", "delta": "-"}
# Of lines that show engines, beside those of the float32 graphs.
_BUILT_ALPHA = 0.5

_RC = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_SIZE_INCHES = (6.2, 3.7)
_PERIODS_SHOWN = 6
_LOG_FROM_RATIO = 30.0
_DECADES_FROM_RATIO = 300.0


def all_plots(evaluation: Evaluation) -> dict[str, str]:
    """SVG by name: ``distance``, ``tradeoff``, ``timeline``, ``distribution``.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    draw: dict[str, Callable[[Any, Evaluation], None]] = {
        "distance": _draw_distance,
        "tradeoff": _draw_tradeoff,
        "timeline": _draw_timeline,
        "distribution": _draw_distribution,
    }
    return {name: _svg(name, function, evaluation) for name, function in draw.items()}


def headline(row: Row, evaluation: Evaluation) -> float | None:
    """What "accuracy" means in this evaluation: against labels where there are any, else agreement."""
    return row.labels if evaluation.source.labelled else row.agreement


def accuracy_name(evaluation: Evaluation) -> str:
    """Name of :func:`headline` on an axis."""
    return "mIoU against labels" if evaluation.source.labelled else "agreement with teacher (mIoU)"


def _draw_distance(axes: Any, evaluation: Evaluation) -> None:
    labelled = evaluation.source.labelled
    farthest = max(row.interval for row in evaluation.rows)
    for row in evaluation.rows:
        style = {"color": _SERIES[row.variant], "linewidth": 1.6, "linestyle": _DASHES[row.variant]}
        style["alpha"] = 1.0 if row.engine == FLOAT32 else _BUILT_ALPHA
        level = headline(row, evaluation)
        if row.interval == 1 and level is not None:
            axes.plot([0, farthest - 1], [level, level], label=row.name, **style)
        elif row.interval == farthest:
            values = [at.labels if labelled else at.agreement for at in row.by_distance]
            shown = [np.nan if value is None else value for value in values]
            name = row.variant if row.engine == FLOAT32 else f"{row.variant} {row.engine}"
            axes.plot(range(farthest), shown, marker=_MARKERS[row.variant], markersize=4, label=name, **style)
    axes.set_xlabel("frames since the keyframe")
    axes.set_ylabel(accuracy_name(evaluation))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _draw_tradeoff(axes: Any, evaluation: Evaluation) -> None:
    points = {row.name: (row.timing.mean_ms.median, headline(row, evaluation)) for row in evaluation.rows}
    for row in evaluation.rows:
        x, y = points[row.name]
        if y is not None:
            style = {"color": _SERIES[row.variant], "marker": _MARKERS[row.variant]}
            axes.errorbar(x, y, xerr=row.timing.mean_ms.iqr / 2, markersize=6, capsize=2, **style)
    series = dict.fromkeys((row.variant, row.engine) for row in evaluation.rows if row.interval > 1)
    for variant, engine in series:
        line = [points[row.name] for row in evaluation.rows if (row.variant, row.engine) == (variant, engine)]
        if all(y is not None for _, y in line):
            axes.plot(*zip(*line, strict=True), color=_SERIES[variant], linewidth=1, alpha=0.5)
    means = [x for x, _ in points.values()]
    axes.margins(x=0.16, y=0.12)
    if max(means) / min(means) > _LOG_FROM_RATIO:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    _label_points(axes, {name: (x, y) for name, (x, y) in points.items() if y is not None})
    axes.set_xlabel("mean milliseconds a frame")
    axes.set_ylabel(accuracy_name(evaluation))


def _label_points(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, on the side where no earlier name stands."""
    taken: list[tuple[float, float, float]] = []  # left, right, height of the middle; in points (1/72 inch)
    scale = 72 / axes.figure.dpi
    for name, point in points.items():
        x, y = axes.transData.transform(point) * scale
        width = 5.0 * len(name)
        for side, rise in ((1, 7), (1, -7), (-1, 7), (-1, -7), (1, 18), (1, -18)):
            left, height = (x + 7 if side > 0 else x - 7 - width), y + rise
            clear = all(left > b or left + width < a or abs(height - h) > 10 for a, b, h in taken)
            if clear:
                break
        taken.append((left, left + width, height))
        axes.annotate(
            name,
            point,
            xytext=(7 * side, rise),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8.5,
        )


def _draw_timeline(axes: Any, evaluation: Evaluation) -> None:
    interval = max(row.interval for row in evaluation.rows)
    rows = [row for row in evaluation.rows if row.interval in (1, interval)]
    frames = min(evaluation.source.frames, _PERIODS_SHOWN * interval)
    for keyframe in range(0, frames, interval):
        axes.axvline(keyframe, color=_LINE, linewidth=3, zorder=0)
    for row in rows:
        axes.plot(
            row.timing.per_frame_ms()[:frames],
            color=_SERIES[row.variant],
            linestyle=_DASHES[row.variant],
            linewidth=1.3,
            label=row.name,
        )
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(f"frame (bars: keyframes at K={interval})")
    axes.set_ylabel("milliseconds, median of runs")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(rows), columnspacing=1.2, handlelength=1.6
    )


def _draw_distribution(axes: Any, evaluation: Evaluation) -> None:
    rows = evaluation.rows
    for place, row in enumerate(rows):
        times = np.array(row.timing.frames_ms)
        flags = np.array(row.timing.keyframes)
        colour = _SERIES[row.variant]
        for values, height in ((times[:, flags], 7), (times[:, ~flags], 11)):
            if values.size:
                ticks = np.percentile(values, np.arange(1, 100, 2))
                axes.plot(
                    ticks,
                    np.full(ticks.shape, place),
                    "|",
                    color=colour,
                    alpha=0.55,
                    markersize=height,
                    zorder=2,
                )
        p99 = row.timing.p99_ms.median
        axes.plot(p99, place, marker="x", color=_INK, markersize=5, zorder=3)
        axes.plot(
            row.timing.mean_ms.median,
            place,
            marker=_MARKERS[row.variant],
            color=colour,
            markersize=6,
            zorder=4,
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a frame (ticks: percentiles 1 to 99; symbol: mean; cross: p99)")


def _svg(name: str, draw: Callable[[Any, Evaluation], None], evaluation: Evaluation) -> str:
    matplotlib = require("matplotlib", "the evaluation report")
    figure_module = require("matplotlib.figure", "the evaluation report")
    with matplotlib.rc_context(_RC | {"svg.hashsalt": name}):
        figure = figure_module.Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, evaluation)
        _plain_numbers(axes)
        buffer = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=empty)
    return to_inline(buffer.getvalue(), name)


def _plain_numbers(axes: Any) -> None:
    """Write 20, not 2x10^1: mathematical text is drawn as shapes, which a reader can neither select nor scale."""
    ticker = require("matplotlib.ticker", "the evaluation report")
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(
                ticker.LogLocator(subs=(1,) if high / low > _DECADES_FROM_RATIO else (1, 2, 5))
            )
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
