"""Which row of a bench to run: the one that meets a user's limits, chosen by rules that can be read here.

A row keeps a time limit where the upper end of its 95 % interval does: a figure that the next run may break is none to
rely on. Of the rows that keep all limits the fastest is chosen where accuracy is limited, and the most accurate where
only time is. Two rows tie where the difference between them, round by round in the same run, is within its 95 %
interval, or where their scores differ by less than the three places that are shown. Of rows that tie in the one the
better in the other is chosen, and of rows that tie in both the simpler: it has fewer parts that can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import Field

from edge_sdk.bench.document import BenchDocument, Row, Variant
from edge_sdk.bench.figures import ALL, Estimate, RowFigures
from edge_sdk.bench.intervals import half_width
from edge_sdk.bench.series import front
from edge_sdk.errors import RecipeError
from edge_sdk.manifest import FLOAT32
from edge_sdk.settings import Settings

# Scores are shown with three places.
SAME_SCORE = 0.0005
# What a row is made of, from the simplest: one network; its answers kept; two networks and a state between them.
_PARTS: dict[Variant, int] = {"teacher": 0, "rival": 0, "copy": 1, "flow": 2, "pair": 3}
_RULES = {"always": 0, "every": 1, "sample": 2, "external": 3, "change": 4, "drift": 5}


class Limits(Settings):
    """What the user asks for; None where it is no matter.

    Args:
        max_ms: mean time of a frame, milliseconds.
        max_p99_ms: 99th percentile of the time of a frame, milliseconds.
        min_miou: score, 0-1: mean intersection over union with the labels, or with the float32 teacher's answers where
            the clip has no labels.
        max_loss: how much less than the float32 teacher's the score may be, 0-1.
    """

    max_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_p99_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_miou: float | None = Field(default=None, ge=0, le=1)
    max_loss: float | None = Field(default=None, ge=0, le=1)

    @property
    def given(self) -> dict[str, float]:
        """What is asked for, by name."""
        values = {name: getattr(self, name) for name in Limits.model_fields}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def accuracy(self) -> bool:
        """Whether accuracy is limited."""
        return self.min_miou is not None or self.max_loss is not None


class Point(Settings):
    """What a row is judged by.

    Args:
        row: its name.
        score: against the labels, or the float32 teacher's answers where there are none, 0-1.
        loss: the float32 teacher's score less this one.
        mean_ms, p99_ms: time of a frame, saturated.
        rounds_ms, rounds_p99_ms: the same of each round; rounds at one place were measured side by side.
        parts: how it is made, from the simplest: network, engine, schedule, background keyframes, interval.
        runs: whether :class:`edge_sdk.EdgeRunner` can run it; optical flow it cannot.
    """

    row: str
    score: float
    loss: float
    mean_ms: Estimate
    p99_ms: Estimate
    rounds_ms: tuple[float, ...]
    rounds_p99_ms: tuple[float, ...]
    parts: tuple[int, ...] = ()
    runs: bool = True


class Choice(Settings):
    """What was chosen.

    Args:
        row: name of the row; None where no row keeps the limits, or none were given.
        why: one sentence.
        unmet: where nothing was chosen for the limits, one sentence for each that fails, with how much.
        front: rows that no other beats in time and accuracy, the fastest first.
    """

    row: str | None
    why: str
    unmet: tuple[str, ...] = ()
    front: tuple[str, ...] = ()


def choose(points: Sequence[Point], limits: Limits) -> Choice:
    """The row to run.

    Args:
        points: every row that was measured, at least one of which can be run.
        limits: what the user asks for.
    """
    best = front({point.row: (point.mean_ms.value, point.score) for point in points})
    runnable = [point for point in points if point.runs]
    if not limits.given:
        return Choice(row=None, why="no limits were given, so nothing is chosen", front=best)
    allowed = [point for point in runnable if not excesses(point, limits)]
    if not allowed:
        why = f"none of the {len(runnable)} rows that can be run keeps every limit"
        return Choice(row=None, why=why, unmet=_unmet(runnable, limits), front=best)
    chosen, tied = _best(allowed, limits)
    p99 = _by_p99(limits)
    found = chosen.p99_ms if p99 else chosen.mean_ms
    why = (
        f"{chosen.row}: {_praise(chosen, allowed, limits)} of {len(allowed)} rows that keep every limit, "
        f"{found.value:.2f} ms {'at p99' if p99 else 'a frame'}, "
        f"score {chosen.score:.3f}, {_distance(chosen.loss)} the float32 teacher's"
    )
    if tied:
        why += f"; {', '.join(point.row for point in tied)} tie with it and are not simpler"
    return Choice(row=chosen.row, why=why, front=best)


def excesses(point: Point, limits: Limits) -> dict[str, float]:
    """By which limits a row breaks, by name: milliseconds or score."""
    found = {
        "max_ms": _over(_upper(point.mean_ms), limits.max_ms),
        "max_p99_ms": _over(_upper(point.p99_ms), limits.max_p99_ms),
        "min_miou": None if limits.min_miou is None else limits.min_miou - point.score,
        "max_loss": _over(point.loss, limits.max_loss),
    }
    return {name: excess for name, excess in found.items() if excess is not None and excess > 0}


def points_of(document: BenchDocument, intervals: Mapping[str, float] | None = None) -> tuple[Point, ...]:
    """What the rows of a bench are judged by; rows without a score or a time are left out.

    Args:
        document: with scores.
        intervals: frames a keyframe over the clip, by row, for schedules that look at pictures or steps: a block of the
            bench sees part of the clip, and its mean is weighed with the clip's own share of keyframes.

    Raises:
        RecipeError: no row has a score.
    """
    rows = [row for row in document.rows if row.agreement is not None]
    if not rows:
        raise RecipeError(
            "accuracy: no row of this bench has a score.", hint="Name a source of frames that is no camera."
        )
    labelled = all(row.labels is not None for row in rows)
    scores = {row.name: float((row.labels if labelled else row.agreement) or 0.0) for row in rows}
    best = _teachers_score(rows, scores) if labelled else 1.0
    figures = document.figures
    found = []
    for row in rows:
        measured = figures.row(row.name, "saturated")
        if measured is not None:
            interval = (intervals or {}).get(row.name)
            found.append(_point(document, row, measured, interval, scores[row.name], best))
    return tuple(found)


def _teachers_score(rows: Sequence[Row], scores: Mapping[str, float]) -> float:
    teachers = [row for row in rows if row.variant == "teacher"] or list(rows)
    exact = [row for row in teachers if row.engine.endswith(FLOAT32)] or teachers
    return max(scores[row.name] for row in exact)


def _point(
    document: BenchDocument, row: Row, figures: RowFigures, interval: float | None, score: float, best: float
) -> Point:
    latency = figures.stages["total"]
    # With keyframes beside the frames one frame of a stream is a keyframe in turn, its first; here each block has one.
    counted = "delta" if row.background and "delta" in latency else ALL
    rounds: dict[int, list[float]] = {}
    for block in document.blocks:
        if (block.row, block.mode) == (row.name, "saturated"):
            kinds, times = block.frames.kinds, block.frames.total_ms
            found = [ms for kind, ms in zip(kinds, times, strict=True) if kind == "d" or counted == ALL]
            if found:
                rounds.setdefault(block.round, []).extend(found)
    by_round = [rounds[index] for index in sorted(rounds)]
    mean, factor = latency[counted].mean_ms, 1.0
    if counted == ALL and interval is not None and {"keyframe", "delta"} <= latency.keys():
        keyframe, delta = latency["keyframe"].mean_ms.value, latency["delta"].mean_ms.value
        factor = (keyframe / interval + delta * (1 - 1 / interval)) / mean.value
    return Point(
        row=row.name,
        score=score,
        loss=best - score,
        mean_ms=_scaled(mean, factor),
        p99_ms=latency[counted].p99_ms,
        rounds_ms=tuple(float(np.mean(times)) * factor for times in by_round),
        rounds_p99_ms=tuple(float(np.percentile(times, 99)) for times in by_round),
        parts=parts_of(row),
        runs=row.variant != "flow",
    )


def parts_of(row: Row) -> tuple[int, ...]:
    """How a row is made, to be compared: the simpler is the smaller."""
    return (
        _PARTS[row.variant],
        0 if row.engine == FLOAT32 else 1,
        _RULES[row.schedule.kind],
        int(row.background),
        getattr(row.schedule, "interval", 0),
    )


def _best(allowed: Sequence[Point], limits: Limits) -> tuple[Point, list[Point]]:
    """The best of the allowed rows, and those that tie with it."""
    p99 = _by_p99(limits)

    def fastest(points: Sequence[Point]) -> list[Point]:
        first = min(points, key=lambda point: (point.p99_ms if p99 else point.mean_ms).value)
        return [point for point in points if not slower(point, first, p99=p99)]

    def most_accurate(points: Sequence[Point]) -> list[Point]:
        top = max(point.score for point in points)
        return [point for point in points if point.score > top - SAME_SCORE]

    by: tuple[Callable[[Sequence[Point]], list[Point]], ...] = (fastest, most_accurate)
    left: Sequence[Point] = allowed
    for keep in by if limits.accuracy else by[::-1]:
        left = keep(left)
    chosen = min(left, key=lambda point: point.parts)
    return chosen, [point for point in left if point is not chosen]


def slower(point: Point, other: Point, *, p99: bool = False) -> bool:
    """Whether ``point`` is slower than ``other`` beyond the noise between rounds."""
    mine, theirs = (
        np.log(found.rounds_p99_ms if p99 else found.rounds_ms) for found in (point, other)
    )  # what disturbs a time multiplies it
    if len(mine) != len(theirs) or len(mine) < 2:
        value, lowest = (found.p99_ms if p99 else found.mean_ms for found in (point, other))
        return value.value > _upper(lowest)
    difference = mine - theirs
    return float(difference.mean()) > half_width(difference)


def _by_p99(limits: Limits) -> bool:
    return limits.max_p99_ms is not None and limits.max_ms is None


def _unmet(points: Sequence[Point], limits: Limits) -> tuple[str, ...]:
    """A sentence for each limit that no row keeps; where some row keeps each, for those that the nearest breaks."""
    given = limits.given
    nearest = {name: min(points, key=lambda p: _excess_of(p, limits, name)) for name in given}
    alone = [name for name in given if excesses(nearest[name], limits).get(name)]
    if alone:
        return tuple(_sentence(name, given[name], nearest[name], limits, "the nearest row") for name in alone)
    closest = min(
        points, key=lambda p: max(excess / (given[name] or 1) for name, excess in excesses(p, limits).items())
    )
    return tuple(
        _sentence(name, given[name], closest, limits, "the row nearest to all limits")
        for name in excesses(closest, limits)
    )


def _excess_of(point: Point, limits: Limits, name: str) -> float:
    """How far a row is over a limit; a row that keeps it counts as 0."""
    return excesses(point, limits).get(name, 0.0)


def _sentence(name: str, limit: float, point: Point, limits: Limits, who: str) -> str:
    option, excess = f"--{name.replace('_', '-')}", excesses(point, limits)[name]
    if name in ("max_ms", "max_p99_ms"):
        time = point.mean_ms if name == "max_ms" else point.p99_ms
        upper = "" if time.high is None else f", up to {time.high:.2f} ms in its 95 % interval"
        return f"{option} {limit:g} ms: {who}, {point.row}, takes {time.value:.2f} ms{upper}: {excess:.2f} ms too much"
    if name == "min_miou":
        return f"{option} {limit:g}: {who}, {point.row}, scores {point.score:.3f}: {excess:.3f} too little"
    return f"{option} {limit:g}: {who}, {point.row}, loses {point.loss:.3f}: {excess:.3f} too much"


def _over(value: float, limit: float | None) -> float | None:
    return None if limit is None else value - limit


def _upper(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    low, high = (None if end is None else end * factor for end in (estimate.low, estimate.high))
    return Estimate(value=estimate.value * factor, low=low, high=high)


def _praise(chosen: Point, allowed: Sequence[Point], limits: Limits) -> str:
    """What the chosen row is among the allowed ones."""
    if not limits.accuracy:
        return "the most accurate"
    p99 = _by_p99(limits)
    times = {point.row: (point.p99_ms if p99 else point.mean_ms).value for point in allowed}
    first = min(times, key=lambda name: times[name])
    if first == chosen.row:
        return "of the lowest p99" if p99 else "the fastest"
    return f"within noise as fast as {first}, the fastest"


def _distance(loss: float) -> str:
    if abs(loss) < SAME_SCORE:
        return "as"
    return f"{abs(loss):.3f} {'below' if loss > 0 else 'above'}"
