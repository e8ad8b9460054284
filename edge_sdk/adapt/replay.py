"""Runs over a recorded stream whose answers are kept, so that they can be scored against the teacher on every frame."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from edge_sdk.adapt.recorded import RecordedMasks
from edge_sdk.adapt.score import Keyframes, PackedMasks
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import BundleError, RecipeError, VideoError
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import AlwaysSchedule, ExternalSchedule
from edge_sdk.settings import Settings

if TYPE_CHECKING:
    from edge_sdk.adapt.journal import Event, LessonLearned
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
        before, after: agreement before the first and after the last update, 0 to 1; None where it was no number.
        updates: optimiser steps.
        took_ms: the lesson, tests included, in milliseconds.
        taken: whether the new weights came into use; false where they were refused.
        prepare_ms: from the trainer's report until the engine had passed the probe, in milliseconds; None where nothing
            was prepared.
    """

    seq: int
    stride: int
    before: float | None
    after: float | None
    updates: int
    took_ms: float
    taken: bool = True
    prepare_ms: float | None = None


class LessonLog:
    """Collects lessons from the events of a run: ``EdgeRunner(..., on_adapt=log)``. Several threads may tell it."""

    def __init__(self) -> None:
        self._lessons: list[LessonLearned] = []
        self._refused: set[int] = set()
        self._prepare_ms: dict[int, float] = {}

    def __call__(self, event: Event) -> None:
        """One event; others than lessons are left aside."""
        if event.kind == "learned":
            self._lessons.append(event)
        elif event.kind == "refused":
            self._refused.add(event.version)
        elif event.kind == "taken":
            self._prepare_ms[event.lesson] = event.prepare_ms

    def records(self) -> tuple[LessonRecord, ...]:
        """What was learned so far."""
        return tuple(
            LessonRecord(
                seq=lesson.seq or 0,
                stride=lesson.stride,
                before=_number(lesson.before),
                after=_number(lesson.after),
                updates=lesson.updates,
                took_ms=lesson.took_ms,
                taken=not (lesson.updates and lesson.version in self._refused),
                prepare_ms=self._prepare_ms.get(lesson.seq or 0),
            )
            for lesson in tuple(self._lessons)
        )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
class FrameAnswers:
    """One network's answers to every frame of a stream.

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
) -> FrameAnswers:
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
    return FrameAnswers(masks, float(np.mean(times)) if times else None)


def ask_student(
    bundle: Bundle,
    frames: Iterable[Frame],
    *,
    backend: str | Backend = "onnxruntime",
    threads: int | None = None,
    tick: Tick | None = None,
) -> FrameAnswers:
    """Run the bundle's student, its delta step, on every frame, as it is; one without state.

    Raises:
        BundleError: there is none, or it has a state, which only a teacher's answer makes.
    """
    from edge_sdk.runtime.runner import EdgeRunner

    if bundle.manifest.state or bundle.manifest.steps.delta is None:
        raise BundleError(f"bundle {bundle.path}: expected a student that answers without a teacher's frame.")
    masks, times = PackedMasks(), []
    with EdgeRunner(bundle, backend=backend, schedule=ExternalSchedule(), threads=threads) as runner:
        for frame in frames:
            if not len(masks):
                runner(frame.image)  # a runner begins with a keyframe; the student answers this frame again
            result = runner(frame.image)
            masks.append(result.mask)
            times.append(result.times.total_ms)
            if tick is not None:
                tick(len(masks))
    return FrameAnswers(masks, float(np.mean(times)) if times else None)


def recorded_masks(
    folder: Path, size_hw: tuple[int, int], frames: int, tick: Tick | None = None
) -> FrameAnswers:
    """The masks of the first ``frames`` frames in a folder of recorded ones.

    Raises:
        MissingFileError: no such folder, or there are fewer.
        VideoError: one is no mask of (H, W) ``size_hw``.
    """
    recorded, masks = RecordedMasks(folder, size_hw), PackedMasks()
    for index in range(frames):
        masks.append(recorded.mask(index))
        if tick is not None:
            tick(index + 1)
    return FrameAnswers(masks, None)


def labels_of(frames: Iterable[Frame], tick: Tick | None = None) -> FrameAnswers:
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
    return FrameAnswers(masks, None)
