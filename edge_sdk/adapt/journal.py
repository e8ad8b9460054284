"""The log of online distillation: one event a line, as JSON."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from edge_sdk.adapt.drift import Alarm
from edge_sdk.errors import FileFormatError, MissingFileError
from edge_sdk.files import refusals_named
from edge_sdk.settings import Settings

Count = Annotated[int, Field(ge=0)]


class _Event(Settings):
    """One line of the log.

    Args:
        at: wall-clock time, seconds since 1970.
        seq: number of the frame that it is about.
    """

    # A poisoned lesson has losses that are no numbers, and the log is to say so.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    at: float = Field(default_factory=time.time)
    seq: Count | None = None


class Started(_Event):
    """Learning begins with the bundle's own weights."""

    kind: Literal["started"] = "started"
    source: str = ""


class Resumed(_Event):
    """Learning goes on from what was kept.

    Args:
        source: where frames come from now.
        version: of the weights.
        stride: frames from teacher frame to teacher frame.
    """

    kind: Literal["resumed"] = "resumed"
    source: str = ""
    version: Count
    stride: Count


class TeacherFrame(_Event):
    """The teacher answered a frame.

    Args:
        stride: at that frame.
        version: of the weights that the student has.
        lesson: whether it is learned from; a keyframe that comes while a lesson is under way is not.
    """

    kind: Literal["teacher_frame"] = "teacher_frame"
    stride: Count
    version: Count
    lesson: bool


class LessonLearned(_Event):
    """The trainer has learned from teacher frame ``seq``.

    Args:
        before, after: agreement before the first and after the last update.
        updates: optimiser steps made.
        losses: of each update.
        took_ms: the lesson, in milliseconds.
        stride: that follows from it.
        version: of the trainer's weights now.
    """

    kind: Literal["learned"] = "learned"
    before: float
    after: float
    updates: Count
    losses: tuple[float, ...] = ()
    took_ms: float
    stride: Count
    version: Count


class WeightsTaken(_Event):
    """From frame ``seq`` on, the weights ``version`` answer.

    Args:
        lesson: number of the teacher frame that they were learned from.
        version: of the weights.
        prepare_ms: from the trainer's report until the engine had passed the probe, in milliseconds.
        agreement: of the engine with the teacher on the last teacher frame.
        replaced: agreement there of the engine that it replaces.
    """

    kind: Literal["taken"] = "taken"
    lesson: Count
    version: Count
    prepare_ms: float
    agreement: float | None = None
    replaced: float | None = None


class WeightsRefused(_Event):
    """New weights were not taken; those of before stay.

    Args:
        version: of the weights refused.
        kept: of those that stay.
        reason: why, for people.
    """

    kind: Literal["refused"] = "refused"
    version: Count
    kept: Count
    reason: str


class TrainerRestarted(_Event):
    """The trainer's process ended, and is started again.

    Args:
        version: of the weights that it begins with.
        restarts: how often that has happened.
        reason: what is known about its end.
    """

    kind: Literal["restarted"] = "restarted"
    version: Count
    restarts: Count
    reason: str


class LearningStopped(_Event):
    """No more is learned; the stream goes on with the weights that it has."""

    kind: Literal["stopped"] = "stopped"
    reason: str


class AlarmRaised(_Event):
    """See :class:`~edge_sdk.adapt.drift.Alarm`."""

    kind: Literal["alarm"] = "alarm"
    alarm: Alarm


Event = Annotated[
    Started
    | Resumed
    | TeacherFrame
    | LessonLearned
    | WeightsTaken
    | WeightsRefused
    | TrainerRestarted
    | LearningStopped
    | AlarmRaised,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def read_log(path: str | Path) -> tuple[Event, ...]:
    """The events of a log, oldest first; a last line that a crash has cut short is left out.

    Raises:
        MissingFileError: no file there.
        FileFormatError: another line is no event.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"log: expected a file at {file}, found none.")
    lines = file.read_bytes().split(b"\n")
    events = []
    # What follows the last newline was not written to its end.
    for number, line in enumerate(lines[:-1], 1):
        try:
            events.append(_EVENT.validate_json(line))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise FileFormatError(
                f"{file}: line {number} is no event of online distillation ({what}).",
                hint="Remove the line, or read the log with the version of edge-sdk that wrote it.",
            ) from None
    return tuple(events)


class Journal:
    """Writes events to a log, each at once; several threads may write.

    Args:
        path: the log, which is appended to; a line that a crash has cut short is cut off.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        with refusals_named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self._path)
            self._file: BinaryIO | None = self._path.open("ab")

    def write(self, event: Event) -> None:
        """Append one event; after :meth:`close` nothing is written.

        Raises:
            OutputError: it cannot be written, for instance because the disk is full.
        """
        line = event.model_dump_json().encode() + b"\n"
        with self._lock, refusals_named(self._path):
            if self._file is not None:
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Close the log; closing twice does nothing."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last newline, so that the next event has a line of its own."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as file:
            file.truncate(whole)
