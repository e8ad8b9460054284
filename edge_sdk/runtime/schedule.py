"""Schedules decide, frame by frame: keyframe, delta or skip.

The settings are what a recipe or a manifest holds; ``start()`` makes a fresh schedule for one stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from edge_sdk.runtime.drift import DriftSchedule
from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import Settings


class Schedule(Protocol):
    """One stream's decisions; it sees every frame of the stream once, in order."""

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        """Decide for one frame.

        Args:
            image: (H, W, 3) uint8 BGR.
            age: frames since the last keyframe, this one counted (1 right after it); None where a keyframe is
                needed whatever the schedule says (first frame, frames lost, requested).
        """
        ...

    def lost(self, frames: int) -> bool:
        """Frames were lost between the last one and the next; whether the state still serves.

        Args:
            frames: how many, at least 1.
        """
        ...

    def reset(self) -> None:
        """Forget everything seen."""
        ...


class _Unforgiving:
    """A state rests on every frame before: where one is lost, it serves no more."""

    def lost(self, frames: int) -> bool:
        return False


class AlwaysSchedule(Settings):
    """Every frame is a keyframe."""

    kind: Literal["always"] = "always"

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return False

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _Always()


class EverySchedule(Settings):
    """A keyframe every ``interval`` frames.

    Frame 0 is a keyframe because there is no state yet; then frame i is one where ``i % interval == phase``.
    Frames are counted as they arrive. A keyframe that was forced in between does not move the grid, so
    streams that share a device can be kept apart by their phases.

    Args:
        interval: frames from keyframe to keyframe, at least 1.
        phase: 0 to ``interval - 1``.
        between: what the other frames are.
    """

    kind: Literal["every"] = "every"
    interval: int = Field(ge=1)
    phase: int = Field(default=0, ge=0)
    between: Literal["delta", "skip"] = "delta"

    @model_validator(mode="after")
    def _phase_below_interval(self) -> EverySchedule:
        if self.phase >= self.interval:
            raise ValueError(f"phase must be below interval ({self.interval}), it is {self.phase}")
        return self

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return self.interval > 1 and self.between == "delta"

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _Every(self)


class ChangeSchedule(Settings):
    """A keyframe where the picture has changed since the last one.

    The change is the mean absolute difference of luma, in grey levels, over every ``stride``-th pixel of
    every ``stride``-th row. With ``between: skip`` this is a gate for whole frames: a quiet frame costs nothing.

    Args:
        threshold: change above which a frame is a keyframe, in grey levels (0-255).
        min_interval: frames from keyframe to keyframe at least, whatever the change.
        max_interval: frames from keyframe to keyframe at most; None for no limit.
        stride: pixels from sample to sample.
        between: what the other frames are.
    """

    kind: Literal["change"] = "change"
    threshold: float = Field(ge=0, le=255)
    min_interval: int = Field(default=1, ge=1)
    max_interval: int | None = Field(default=None, ge=1)
    stride: int = Field(default=32, ge=1)
    between: Literal["delta", "skip"] = "delta"

    @model_validator(mode="after")
    def _ordered(self) -> ChangeSchedule:
        if self.max_interval is not None and self.max_interval < self.min_interval:
            raise ValueError(f"max_interval {self.max_interval} is below min_interval {self.min_interval}")
        return self

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return self.max_interval != 1 and self.between == "delta"

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _Change(self)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an answer about a clip covers: its latency, as far as that is not computing.

    Args:
        frames, seconds: that it covers at most.
        every_frames, every_s: from a new answer to the next, at most; frames between repeat the last one.
        from_start: it covers the clip so far, from its beginning; otherwise the last frames, whichever these are.
    """

    frames: int
    seconds: float
    every_frames: int
    every_s: float
    from_start: bool

    def __str__(self) -> str:
        what = "the clip so far, at most" if self.from_start else "the last"
        unit = "frame" if self.every_frames == 1 else f"{self.every_frames} frames"
        return (
            f"answers cover {what} {self.frames} frames ({self.seconds:.3g} s), "
            f"a new one every {unit} ({self.every_s:.2g} s)"
        )


class SampleSchedule(Settings):
    """A few frames of each clip are seen, those between are skipped: the first by the keyframe step, which begins the
    clip's state, the others by the delta step, which adds to it.

    Of each ``length`` frames the frames ``i * length // samples`` are seen, as with uniform sampling of a clip. Where a
    keyframe is needed (first frame, requested, or as many frames lost as lie between two samples), a new clip begins.
    Where fewer are lost the clip goes on, and a sample that was among them is taken from the next frame.

    Args:
        length: frames of a clip.
        samples: of which so many are seen, at most ``length``.
        restart: begin a new clip after ``length`` frames; without, the state runs on, as for a sliding window.
    """

    kind: Literal["sample"] = "sample"
    length: int = Field(ge=1)
    samples: int = Field(ge=1)
    restart: bool = True

    @model_validator(mode="after")
    def _not_more_than_there_are(self) -> SampleSchedule:
        if self.samples > self.length:
            raise ValueError(f"samples must be at most length ({self.length}), it is {self.samples}")
        return self

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return self.samples > 1 or not self.restart

    @property
    def seen(self) -> tuple[int, ...]:
        """Places of the frames of a clip that are seen, ascending; the first is 0."""
        return tuple(index * self.length // self.samples for index in range(self.samples))

    def coverage(self, fps: float) -> Coverage:
        """What an answer covers and how often there is a new one, at ``fps`` frames a second."""
        seen = (*self.seen, self.length)
        longest = max(after - before for before, after in pairwise(seen))
        return Coverage(self.length, self.length / fps, longest, longest / fps, self.restart)

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _Sample(self)


class ExternalSchedule(Settings):
    """A keyframe where the application asks for one (``EdgeRunner.request_keyframe``).

    Args:
        max_interval: frames from keyframe to keyframe at most; None for no limit.
    """

    kind: Literal["external"] = "external"
    max_interval: int | None = Field(default=None, ge=1)

    @property
    def uses_delta(self) -> bool:
        """Whether a delta step may be asked for."""
        return self.max_interval != 1

    def start(self) -> Schedule:
        """A fresh schedule for one stream."""
        return _External(self.max_interval)


ScheduleSettings = Annotated[
    AlwaysSchedule | EverySchedule | ChangeSchedule | DriftSchedule | SampleSchedule | ExternalSchedule,
    Field(discriminator="kind"),
]
SCHEDULES = (AlwaysSchedule, EverySchedule, ChangeSchedule, DriftSchedule, SampleSchedule, ExternalSchedule)


class _Always(_Unforgiving):
    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        return StepKind.KEYFRAME

    def reset(self) -> None:
        """Nothing is remembered."""


class _Every(_Unforgiving):
    def __init__(self, settings: EverySchedule) -> None:
        self._interval = settings.interval
        self._phase = settings.phase
        self._between = StepKind(settings.between)
        self._index = -1

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        self._index += 1
        due = self._index % self._interval == self._phase
        return StepKind.KEYFRAME if due or age is None else self._between

    def reset(self) -> None:
        self._index = -1


class _Change(_Unforgiving):
    def __init__(self, settings: ChangeSchedule) -> None:
        self._settings = settings
        self._reference: np.ndarray | None = None

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        luma = sampled_luma(image, self._settings.stride)
        if self._is_due(luma, age):
            self._reference = luma
            return StepKind.KEYFRAME
        return StepKind(self._settings.between)

    def _is_due(self, luma: np.ndarray, age: int | None) -> bool:
        settings = self._settings
        if age is None or self._reference is None:
            return True
        if age < settings.min_interval:
            return False
        if settings.max_interval is not None and age >= settings.max_interval:
            return True
        return bool(np.abs(luma - self._reference).mean() > settings.threshold)

    def reset(self) -> None:
        self._reference = None


class _Sample:
    def __init__(self, settings: SampleSchedule) -> None:
        self._restart, self._length = settings.restart, settings.length
        self._seen = frozenset(settings.seen)
        # Frames from one that is seen to the next, at least.
        self._bearable = settings.length // settings.samples
        self._index = -1
        self._late = False  # a sample was among the lost frames
        self._begins = False  # the next clip's first frame was

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        late, begins, index = self._late, self._begins, (self._index + 1) % self._length
        self._late = self._begins = False
        self._index = 0 if age is None else index
        if age is None or (self._restart and (begins or index == 0)):
            return StepKind.KEYFRAME
        return StepKind.DELTA if late or index in self._seen else StepKind.SKIP

    def lost(self, frames: int) -> bool:
        """A clip bears the loss of fewer frames than lie between two samples; a sample among them is taken late."""
        if frames >= self._bearable:
            return False
        for _ in range(frames):
            self._index = (self._index + 1) % self._length
            self._late |= self._index in self._seen
            self._begins |= self._index == 0
        return True

    def reset(self) -> None:
        self._index = -1
        self._late = self._begins = False


class _External(_Unforgiving):
    def __init__(self, max_interval: int | None) -> None:
        self._max_interval = max_interval

    def decide(self, image: np.ndarray, age: int | None) -> StepKind:
        due = age is None or (self._max_interval is not None and age >= self._max_interval)
        return StepKind.KEYFRAME if due else StepKind.DELTA

    def reset(self) -> None:
        """Nothing is remembered."""


# ITU-R BT.601 luma of (blue, green, red).
_LUMA = np.array((0.114, 0.587, 0.299), np.float32)


def sampled_luma(image: np.ndarray, stride: int) -> np.ndarray:
    """Luma, in grey levels, float32, of every ``stride``-th pixel of every ``stride``-th row of (H, W, 3) uint8 BGR."""
    height, width = image.shape[:2]
    # Samples sit in the middle of their cells; a frame smaller than one cell has one sample, in its middle.
    top, left = min(stride, height) // 2, min(stride, width) // 2
    return image[top::stride, left::stride].astype(np.float32) @ _LUMA
