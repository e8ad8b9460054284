"""The report's plots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edge_sdk.drawing import COLOURS, INK, LINE, MARKERS, label_points, svg
from edge_sdk.evaluate.evaluation import Evaluation, Row
from edge_sdk.manifest import FLOAT32

_DASHES = {"teacher": (0, (6, 2)), "rival": (0, (1, 1.5)), "copy": "-", "flow": "-", "delta": "-"}
# Of lines that show engines, beside those of the float32 graphs.
_BUILT_ALPHA = 0.5

_PURPOSE = "the evaluation report"
_PERIODS_SHOWN = 6
_LOG_FROM_RATIO = 30.0


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

    def drawn(function: Callable[[Any, Evaluation], None], figure: Any) -> None:
        function(figure.add_subplot(), evaluation)

    return {name: svg(name, partial(drawn, function), _PURPOSE) for name, function in draw.items()}


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
        style = {"color": COLOURS[row.variant], "linewidth": 1.6, "linestyle": _DASHES[row.variant]}
        style["alpha"] = 1.0 if row.engine == FLOAT32 else _BUILT_ALPHA
        level = headline(row, evaluation)
        if row.interval == 1 and level is not None:
            axes.plot([0, farthest - 1], [level, level], label=row.name, **style)
        elif row.interval == farthest:
            values = [at.labels if labelled else at.agreement for at in row.by_distance]
            shown = [np.nan if value is None else value for value in values]
            name = row.variant if row.engine == FLOAT32 else f"{row.variant} {row.engine}"
            axes.plot(range(farthest), shown, marker=MARKERS[row.variant], markersize=4, label=name, **style)
    axes.set_xlabel("frames since the keyframe")
    axes.set_ylabel(accuracy_name(evaluation))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best")


def _draw_tradeoff(axes: Any, evaluation: Evaluation) -> None:
    points = {row.name: (row.timing.mean_ms.median, headline(row, evaluation)) for row in evaluation.rows}
    for row in evaluation.rows:
        x, y = points[row.name]
        if y is not None:
            style = {"color": COLOURS[row.variant], "marker": MARKERS[row.variant]}
            axes.errorbar(x, y, xerr=row.timing.mean_ms.iqr / 2, markersize=6, capsize=2, **style)
    series = dict.fromkeys((row.variant, row.engine) for row in evaluation.rows if row.interval > 1)
    for variant, engine in series:
        line = [points[row.name] for row in evaluation.rows if (row.variant, row.engine) == (variant, engine)]
        if all(y is not None for _, y in line):
            axes.plot(*zip(*line, strict=True), color=COLOURS[variant], linewidth=1, alpha=0.5)
    means = [x for x, _ in points.values()]
    axes.margins(x=0.16, y=0.12)
    if max(means) / min(means) > _LOG_FROM_RATIO:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    label_points(axes, {name: (x, y) for name, (x, y) in points.items() if y is not None})
    axes.set_xlabel("mean milliseconds a frame")
    axes.set_ylabel(accuracy_name(evaluation))


def _draw_timeline(axes: Any, evaluation: Evaluation) -> None:
    interval = max(row.interval for row in evaluation.rows)
    rows = [row for row in evaluation.rows if row.interval in (1, interval)]
    frames = min(evaluation.source.frames, _PERIODS_SHOWN * interval)
    for keyframe in range(0, frames, interval):
        axes.axvline(keyframe, color=LINE, linewidth=3, zorder=0)
    for row in rows:
        axes.plot(
            row.timing.per_frame_ms()[:frames],
            color=COLOURS[row.variant],
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
        colour = COLOURS[row.variant]
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
        axes.plot(p99, place, marker="x", color=INK, markersize=5, zorder=3)
        axes.plot(
            row.timing.mean_ms.median,
            place,
            marker=MARKERS[row.variant],
            color=colour,
            markersize=6,
            zorder=4,
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a frame (ticks: percentiles 1 to 99; symbol: mean; cross: p99)")
