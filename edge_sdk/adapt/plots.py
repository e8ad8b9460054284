"""The report's plots: agreement, strides and updates over time, and accuracy against the share of teacher frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edge_sdk.adapt.report import AdaptReport, Course, Kind
from edge_sdk.drawing import COLOURS, INK, LINE, MARKERS, label_points, svg

_PURPOSE = "the report of edge-sdk adapt"
# Frames that a line of agreement is averaged over: single frames flicker.
_SMOOTHED = 25
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
# What other reports draw these as.
_DRAWN_AS: dict[Kind, str] = {
    "online": "delta", "copy": "copy", "flow": "flow", "chained": "flow", "offline": "rival", "frozen": "skip",
}  # fmt: skip
_MARKERS = MARKERS | {"skip": "X"}


def all_plots(report: AdaptReport) -> dict[str, str]:
    """SVG by name: ``shares``, and where something learned ``agreement``, ``strides`` and ``updates``.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    draw: dict[str, Callable[[Any, AdaptReport], None]] = {"shares": _draw_shares}
    if report.courses:
        draw |= {"agreement": _draw_agreement, "strides": _draw_strides, "updates": _draw_updates}

    def drawn(function: Callable[[Any, AdaptReport], None], figure: Any) -> None:
        function(figure.add_subplot(), report)

    return {name: svg(name, partial(drawn, function), _PURPOSE) for name, function in draw.items()}


def _dash(place: int) -> Any:
    return _DASHES[place % len(_DASHES)]


def _smooth(values: tuple[float, ...]) -> np.ndarray:
    """Mean over the frames around each, as many as there are."""
    width = min(_SMOOTHED, len(values))
    weights = np.ones(width)
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def _parts(axes: Any, report: AdaptReport) -> None:
    for begin in report.stream.parts.values():
        if begin:
            axes.axvline(begin, color=LINE, linewidth=2.5, zorder=0)
    axes.set_xlabel("frame" + (" (bars: a new clip begins)" if report.stream.parts else ""))
    axes.set_xlim(0, report.stream.frames)
    axes.grid(axis="x", visible=False)


def _legend(axes: Any, report: AdaptReport) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=min(len(report.courses), 4))


def _draw_agreement(axes: Any, report: AdaptReport) -> None:
    for place, course in enumerate(report.courses):
        axes.plot(
            _smooth(course.agreement),
            color=COLOURS["delta"],
            linestyle=_dash(place),
            linewidth=1.4,
            label=course.row,
        )
        for begin in course.teacher_at:
            axes.plot(begin, -0.03 - 0.025 * place, "|", color=COLOURS["keyframe"], markersize=3.5)
    axes.set_ylim(top=1.0)
    axes.set_ylabel(f"agreement, mean of {_SMOOTHED} frames")
    _parts(axes, report)
    _legend(axes, report)


def _steps(course: Course, frames: int) -> tuple[list[int], list[int]]:
    at = [lesson.seq for lesson in course.lessons]
    strides = [lesson.stride for lesson in course.lessons]
    return [*at, frames], [*strides, strides[-1]] if strides else []


def _draw_strides(axes: Any, report: AdaptReport) -> None:
    for place, course in enumerate(report.courses):
        if course.lessons:
            at, strides = _steps(course, report.stream.frames)
            style = {"color": COLOURS["delta"], "linestyle": _dash(place), "linewidth": 1.4}
            axes.step(at, strides, where="post", label=course.row, **style)
    ladder = sorted({lesson.stride for course in report.courses for lesson in course.lessons})
    axes.set_ylim(bottom=0)
    if ladder:
        axes.set_yticks(ladder)
    axes.set_ylabel("stride, frames")
    _parts(axes, report)
    _legend(axes, report)


def _draw_updates(axes: Any, report: AdaptReport) -> None:
    for place, course in enumerate(report.courses):
        at = [0, *(lesson.seq for lesson in course.lessons), report.stream.frames]
        total = np.cumsum([0, *(lesson.updates for lesson in course.lessons), 0])
        style = {"color": COLOURS["delta"], "linestyle": _dash(place), "linewidth": 1.4}
        axes.step(at, total, where="post", label=course.row, **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("updates so far")
    _parts(axes, report)
    _legend(axes, report)


def _draw_shares(axes: Any, report: AdaptReport) -> None:
    points: dict[str, tuple[float, float]] = {}
    for row in report.rows:
        if row.score.mean is None:
            continue
        drawn = _DRAWN_AS[row.kind]
        hollow = row.placed == "evenly" or row.kind == "chained"
        axes.plot(
            100 * row.share,
            row.score.mean,
            marker=_MARKERS[drawn],
            color=COLOURS[drawn],
            markersize=6.5,
            fillstyle="none" if hollow else "full",
            linestyle="none",
        )
        if row.placed is None:
            points[row.name] = (100 * row.share, row.score.mean)
    axes.margins(x=0.18, y=0.14)
    label_points(axes, points)
    axes.axhline(1.0, color=INK, linewidth=0.6)
    axes.set_xlabel("frames that the teacher answers, %")
    axes.set_ylabel("mean IoU with the teacher")
