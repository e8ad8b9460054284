"""Runs over a recorded stream whose answers are kept, so that they can be scored against the teacher on every frame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from edge_sdk.adapt.score import Keyframes, PackedMasks
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import RecipeError, VideoError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule
from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.runtime.engine import Backend
    from edge_sdk.runtime.result import Result
    from edge_sdk.video.frame import Frame

# Called with the number of frames done.
Tick = Callable[[int], None]


class LessonRecord(Settings):
    """One teacher frame that was learned from.

    Args:
        seq: the frame's number.
        stride: frames to the next teacher frame, as decided after it.
        before, after: agreement before the first and after the last update, 0 to 1.
        updates: optimiser steps.
        took_ms: the lesson, tests included, in milliseconds.
        taken: whether the new weights came into use; false where they were refused.
    """

    seq: int
    stride: int
    before: float
    after: float
    updates: int
    took_ms: float
    taken: bool = True


class RunRecord(Settings):
    """One run over a stream but for its masks.

    Args:
        settings: of the adaptation; None where nothing learned.
        frames: how many there were.
        teacher_at: indices of the frames that the teacher answered.
        lessons: what was learned from; empty where nothing was.
        student_ms: mean time of a frame that the student answered, in milliseconds; None where it answered none.
        wall_s: the whole run, in seconds.
    """

    settings: AdaptSettings | None
    frames: int = Field(ge=1)
    teacher_at: tuple[int, ...]
    lessons: tuple[LessonRecord, ...] = ()
    student_ms: float | None = None
    wall_s: float = 0.0

    @property
    def keyframes(self) -> Keyframes:
        """The teacher frames, checked."""
        return Keyframes(self.frames, self.teacher_at)

    @property
    def updates(self) -> int:
        """Optimiser steps in all."""
        return sum(lesson.updates for lesson in self.lessons)

    @property
    def lessons_ms(self) -> float:
        """Time of all lessons, in milliseconds."""
        return sum(lesson.took_ms for lesson in self.lessons)


@dataclass
class Answers:
    """Collects what a runner answers to a recorded stream, frame by frame."""

    masks: PackedMasks = field(default_factory=PackedMasks)
    teacher_at: list[int] = field(default_factory=list)
    _student_ms: list[float] = field(default_factory=list)
    _began_s: float = field(default_factory=time.perf_counter)

    def add(self, result: Result) -> None:
        """Keep one answer.

        Raises:
            VideoError: frames were lost on the way: every frame has to be scored.
        """
        index = len(self.masks)
        if result.seq != index:
            raise VideoError(
                f"frame {result.seq} came where {index} was due; scoring needs every frame.",
                hint="Record the stream to a file and score that.",
            )
        self.masks.append(result.mask)
        if result.kind is StepKind.KEYFRAME:
            self.teacher_at.append(index)
        else:
            self._student_ms.append(result.times.total_ms)

    def record(
        self, settings: AdaptSettings | None = None, lessons: Iterable[LessonRecord] = ()
    ) -> RunRecord:
        """What was collected, with what was learned.

        Raises:
            RecipeError: no frame was answered.
        """
        if not len(self.masks):
            raise RecipeError("run: expected at least one frame, the source had none.")
        return RunRecord(
            settings=settings,
            frames=len(self.masks),
            teacher_at=tuple(self.teacher_at),
            lessons=tuple(lessons),
            student_ms=float(np.mean(self._student_ms)) if self._student_ms else None,
            wall_s=time.perf_counter() - self._began_s,
        )


@dataclass(frozen=True)
class TeacherAnswers:
    """The teacher on every frame.

    Args:
        masks: per frame, (H, W) uint8.
        frame_ms: mean time of a frame, in milliseconds; None where the masks were recorded.
    """

    masks: PackedMasks
    frame_ms: float | None


def ask_teacher(
    bundle: Bundle,
    frames: Iterable[Frame],
    *,
    backend: str | Backend = "onnxruntime",
    threads: int | None = None,
    tick: Tick | None = None,
) -> TeacherAnswers:
    """Run the bundle's teacher, its keyframe step, on every frame."""
    from edge_sdk.runtime.runner import EdgeRunner

    masks, times = PackedMasks(), []
    with EdgeRunner(bundle, backend=backend, schedule=AlwaysSchedule(), threads=threads) as runner:
        for frame in frames:
            result = runner(frame)
            masks.append(result.mask)
            times.append(result.times.total_ms)
            if tick is not None:
                tick(len(masks))
    return TeacherAnswers(masks, float(np.mean(times)) if times else None)


def labels_of(frames: Iterable[Frame], tick: Tick | None = None) -> TeacherAnswers:
    """The labels that the source carries, as the teacher's.

    Raises:
        RecipeError: a frame has none.
    """
    masks = PackedMasks()
    for frame in frames:
        mask = None if frame.truth is None else frame.truth.mask
        if mask is None:
            raise RecipeError(
                f"frame {frame.seq}: the source has no labels for it that could stand in for a teacher.",
                hint="Give a folder with images/ and labels/, or a folder of recorded masks.",
            )
        masks.append(mask)
        if tick is not None:
            tick(len(masks))
    return TeacherAnswers(masks, None)
