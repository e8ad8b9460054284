"""Settings of ``edge-sdk evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edge_sdk.manifest import FLOAT32
from edge_sdk.settings import Settings
from edge_sdk.video.uri import SourceText

# One second between keyframes even at 120 frames a second; beyond that nobody runs a delta.
MAX_INTERVAL = 120

Interval = Annotated[int, Field(ge=2, le=MAX_INTERVAL)]


class Compared(Settings):
    """How often variants are run beside each other, and over which keyframe intervals.

    Args:
        engines: engine sets, such as ``"onnxruntime-int8"``, that get rows beside the float32 graphs.
        intervals: frames from keyframe to keyframe; every interval is evaluated on its own.
        phases: ``"all"``: accuracy is counted over every alignment of the keyframes, so that each frame is seen
            at each distance from its keyframe; 1: only keyframes at frames 0, K, 2K, ...
        repeats: runs that the timing rests on.
        limit: most frames to read of a source; None for all.
        threads: threads of ONNX Runtime and of OpenCV; None leaves both as they are.
        out: folder for the JSON and the HTML report; None where only the table is wanted.
    """

    engines: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    intervals: tuple[Interval, ...] = Field(default=(5, 10), min_length=1)
    phases: Literal["all", 1] = "all"
    repeats: int = Field(default=5, ge=1, le=1000)
    limit: int | None = Field(default=None, ge=2)
    threads: int | None = Field(default=None, ge=1)
    out: Path | None = None

    @field_validator("intervals")
    @classmethod
    def _ascending(cls, intervals: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(intervals)) != len(intervals):
            raise ValueError("each interval once")
        return tuple(sorted(intervals))

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(engines)) != len(engines) or FLOAT32 in engines:
            raise ValueError(f"each engine once, and not {FLOAT32}, which is always there")
        return engines

    @model_validator(mode="after")
    def _enough_frames(self) -> Compared:
        if self.limit is not None and self.limit < max(self.intervals):
            raise ValueError(f"limit {self.limit} is below the largest interval {max(self.intervals)}")
        return self

    def phases_of(self, interval: int) -> range:
        """Phases that accuracy is counted over for one interval."""
        return range(interval if self.phases == "all" else 1)


class EvaluateRecipe(Compared):
    """What is compared, over which frames, and how often.

    Args:
        bundle: the pair to evaluate: a bundle with a keyframe and a delta step.
        source: URI of the frames, with labels or without.
        teacher: a per-frame bundle of the same teacher without the work of writing state; it is the row
            "teacher" and makes the keyframes of the baselines. None: the pair's own keyframe step.
        rival: a per-frame bundle to compare with, such as a narrower network distilled from the same teacher.
        engines: engine sets of the pair; the teacher's bundle gets a row for each that it has too.
    """

    bundle: Path
    source: SourceText
    teacher: Path | None = None
    rival: Path | None = None
