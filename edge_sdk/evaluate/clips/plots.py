"""Plots of the report on clip classifiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any

from edge_sdk.drawing import COLOURS, label_points, svg
from edge_sdk.evaluate.clips.evaluation import Answers, ClipEvaluation, ClipRow
from edge_sdk.evaluate.clips.table import METRICS
from edge_sdk.manifest import FLOAT32

_PURPOSE = "the evaluation report"
_OF_ROLE = {"teacher": "teacher", "student": "delta", "rival": "rival"}
_MARKERS = {"teacher": "s", "student": "o", "rival": "D", "other": "^"}
# Of engines, beside the float32 graphs.
_BUILT_ALPHA = 0.5


def colour_names(evaluation: ClipEvaluation) -> dict[str, str]:
    """The page's name of each row's colour; engines of a bundle share it."""
    spare = cycle(("copy", "flow", "keyframe", "skip"))
    found: dict[str, str] = {}
    for row in evaluation.rows:
        base = row.name.removesuffix(f" {row.engine}")
        found[row.name] = found.get(base) or _OF_ROLE.get(row.role) or next(spare)
    return found


def all_plots(evaluation: ClipEvaluation) -> dict[str, str]:
    """SVG by name: ``tradeoff``, ``frames``, and ``stream`` where clips were run as one stream.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    draw: dict[str, Callable[[Any, ClipEvaluation], None]] = {"tradeoff": _tradeoff, "frames": _frames}
    if any(row.streamed is not None for row in evaluation.rows):
        draw["stream"] = _stream

    def drawn(function: Callable[[Any, ClipEvaluation], None], figure: Any) -> None:
        function(figure.add_subplot(), evaluation)

    return {name: svg(name, partial(drawn, function), _PURPOSE) for name, function in draw.items()}


def _tradeoff(axes: Any, evaluation: ClipEvaluation) -> None:
    colours = colour_names(evaluation)
    points = {}
    for row in evaluation.rows:
        spent = row.timing.clip_ms
        points[row.name] = (spent.median, row.scores[evaluation.primary])
        style = {"color": COLOURS[colours[row.name]], "marker": _MARKERS[row.role]}
        axes.errorbar(*points[row.name], xerr=spent.iqr / 2, markersize=6, capsize=2, **style)
    axes.margins(x=0.16, y=0.12)
    axes.set_xlim(left=0)
    label_points(axes, points)
    axes.set_xlabel("milliseconds a clip")
    axes.set_ylabel(METRICS.get(evaluation.primary, (evaluation.primary,))[0])


def _frames(axes: Any, evaluation: ClipEvaluation) -> None:
    _curves(axes, evaluation, lambda row: row.answers)
    axes.set_xlabel("frames of the clip so far")


def _stream(axes: Any, evaluation: ClipEvaluation) -> None:
    _curves(axes, evaluation, lambda row: row.streamed)
    axes.set_xlabel("frames since another clip began")


def _curves(axes: Any, evaluation: ClipEvaluation, of: Callable[[ClipRow], Answers | None]) -> None:
    colours = colour_names(evaluation)
    for row in evaluation.rows:
        answers = of(row)
        if answers is not None:
            axes.step(
                range(1, len(answers.by_frame) + 1),
                answers.by_frame,
                where="post",
                color=COLOURS[colours[row.name]],
                alpha=1.0 if row.engine == FLOAT32 else _BUILT_ALPHA,
                linewidth=1.6,
                label=row.name,
            )
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of answers that are right")
    axes.legend(loc="best")
