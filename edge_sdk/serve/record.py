"""What a run has done so far: counts since its start, and its last frames one by one."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from edge_sdk.runtime.result import StepKind

if TYPE_CHECKING:
    from edge_sdk.runtime.result import Result

# Upper edges of the latency histogram, in milliseconds: from a small network on a GPU to a large one on a CPU.
BUCKETS_MS = (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
# The rate is counted over so long, so that it neither flickers nor remembers the start.
_RATE_S = 5.0


@dataclass(frozen=True, slots=True)
class Point:
    """One answered frame.

    Attributes:
        index: how many frames were answered before it.
        seq: the frame's number in its stream.
        kind: which step was run.
        total_ms: from call to result.
        state_age: frames since the keyframe that the answer rests on.
        delivered_s: when the result was ready, ``time.monotonic()``.
        trust: how much of the keyframe still held, 0 to 1; None where the step did not tell.
    """

    index: int
    seq: int
    kind: StepKind
    total_ms: float
    state_age: int
    delivered_s: float
    trust: float | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Latencies of one kind of step since the start.

    Attributes:
        cumulative: frames at or below each of ``BUCKETS_MS``.
        frames: all of them.
        sum_ms: their sum.
    """

    cumulative: tuple[int, ...]
    frames: int
    sum_ms: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The record at one moment.

    Attributes:
        points: the last frames, oldest first.
        histograms: by kind of step; kinds that did not occur are missing.
        missed: frames that are missing in ``seq``.
        errors: by where they happened.
        answer_age_ms: from capture to answer of the last frame; None where the source has no clock of this machine.
        frames_per_second: over the last seconds; None before two frames.
    """

    points: tuple[Point, ...]
    histograms: dict[StepKind, Histogram]
    missed: int
    errors: dict[str, int]
    answer_age_ms: float | None
    frames_per_second: float | None

    @property
    def frames(self) -> int:
        """Frames answered since the start."""
        return sum(histogram.frames for histogram in self.histograms.values())


class Record:
    """Counts results; safe from any thread, and quick for the one that infers.

    Args:
        history: frames that are kept one by one.
        live: frames carry this machine's clock, so that the age of an answer is known.
    """

    def __init__(self, history: int, live: bool) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=history)
        self._buckets: dict[StepKind, list[int]] = {}
        self._sum_ms: dict[StepKind, float] = {}
        self._errors: Counter[str] = Counter()
        self._frames = self._missed = 0
        self._answer_age_ms: float | None = None

    def add(self, result: Result) -> None:
        """Count one answer."""
        total_ms = result.times.total_ms
        with self._lock:
            if self._points:
                # A stream that begins anew counts from 0 again; that is no loss.
                self._missed += max(0, result.seq - self._points[-1].seq - 1)
            kind, age = result.kind, result.state_age
            point = Point(self._frames, result.seq, kind, total_ms, age, result.delivered_s, result.trust)
            self._points.append(point)
            self._frames += 1
            buckets = self._buckets.setdefault(result.kind, [0] * (len(BUCKETS_MS) + 1))
            buckets[bisect_left(BUCKETS_MS, total_ms)] += 1
            self._sum_ms[result.kind] = self._sum_ms.get(result.kind, 0.0) + total_ms
            if self._live:
                self._answer_age_ms = (result.delivered_s - result.captured_s) * 1e3

    def count_error(self, where: str) -> None:
        """Count an error; ``where`` is a word such as ``step`` or ``draw``."""
        with self._lock:
            self._errors[where] += 1

    @property
    def last_s(self) -> float | None:
        """When the last result was ready, ``time.monotonic()``; None before the first."""
        with self._lock:
            return self._points[-1].delivered_s if self._points else None

    def snapshot(self) -> Snapshot:
        """Everything so far."""
        with self._lock:
            points = tuple(self._points)
            counted = {kind: (list(self._buckets[kind]), self._sum_ms[kind]) for kind in self._buckets}
            missed, errors, age_ms = self._missed, dict(self._errors), self._answer_age_ms
        histograms = {
            kind: Histogram(tuple(islice(accumulate(buckets), len(BUCKETS_MS))), sum(buckets), sum_ms)
            for kind, (buckets, sum_ms) in counted.items()
        }
        return Snapshot(points, histograms, missed, errors, age_ms, _rate(points))


def _rate(points: tuple[Point, ...]) -> float | None:
    """Frames a second over the intervals between the last points."""
    if not points:
        return None
    last_s = points[-1].delivered_s
    recent = [point.delivered_s for point in points if point.delivered_s >= last_s - _RATE_S]
    spent_s = recent[-1] - recent[0]
    return (len(recent) - 1) / spent_s if spent_s > 0 else None
