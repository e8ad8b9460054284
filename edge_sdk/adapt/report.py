"""What online distillation gained and cost over a recorded stream: the table that its paper gives, and its course."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from edge_sdk.adapt.cost import PUBLISHED, Cost, CostModel
from edge_sdk.adapt.replay import LessonRecord
from edge_sdk.adapt.score import ScoreFigures
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.settings import Result, Settings
from edge_sdk.tasks import TaskSpec

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "adapt.json"
REPORT_NAME = "report.html"

Kind = Literal["online", "copy", "flow", "chained", "offline", "frozen"]
Placed = Literal["same", "evenly"]
PLACED: tuple[Placed, ...] = ("same", "evenly")


class StreamFacts(Settings):
    """The frames, and what stands for the truth: the teacher's answer to every one of them.

    Args:
        uri: where they came from, without password.
        frames, height, width, fps: of the stream.
        teacher: ``"bundle"`` where the bundle's keyframe step was run on every frame, ``"recorded"`` where masks were.
        teacher_ms: mean time of the teacher on a frame, in milliseconds; None where its answers were recorded.
        parts: frames at which a new clip begins, by its name; empty for a stream of one piece.
    """

    uri: str
    frames: int = Field(ge=1)
    height: int
    width: int
    fps: float
    teacher: Literal["bundle", "recorded"]
    teacher_ms: float | None = None
    parts: dict[str, int] = Field(default_factory=dict)


class ReportRow(Settings):
    """One way to answer the stream.

    Args:
        name: unique in its report.
        kind: ``online`` learned on the stream; ``copy``, ``flow`` and ``chained`` repeat or move the teacher's last
            mask; ``offline`` was trained on the whole stream beforehand; ``frozen`` is the student as it began.
        threshold: of ``online``; of a baseline, that of the run whose share of teacher frames it has.
        placed: of a baseline, whether its teacher frames are the ``same`` as that run's or as many ``evenly`` spread.
        score: over all frames, those of the teacher too.
        student: over the frames that the teacher did not answer; None where that is every frame or none.
        teacher_frames: how many the teacher answered.
        share: part of the frames, 0 to 1.
        updates: optimiser steps.
        model: cost by the published model; None where it knows none.
        clock: cost by the times measured; None where the teacher's is not known.
        parts: score of each part of the stream, by name.
        note: what a reader must know about this row.
    """

    name: str
    kind: Kind
    threshold: float | None = None
    placed: Placed | None = None
    score: ScoreFigures
    student: ScoreFigures | None = None
    teacher_frames: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    updates: int = 0
    model: Cost | None = None
    clock: Cost | None = None
    parts: dict[str, ScoreFigures] = Field(default_factory=dict)
    note: str = ""


class Course(Settings):
    """How a run went, frame by frame.

    Args:
        row: name of its row.
        settings: of the adaptation.
        agreement: per frame, of the answer with the teacher, 0 to 1; of a teacher frame that of its answer too.
        teacher_at: indices of the teacher frames.
        lessons: what was learned from.
        wall_s: the run, in seconds.
        student_ms: mean time of a frame that the student answered, in milliseconds.
    """

    row: str
    settings: AdaptSettings
    agreement: tuple[float, ...]
    teacher_at: tuple[int, ...]
    lessons: tuple[LessonRecord, ...]
    wall_s: float
    student_ms: float | None


class AdaptReport(Result):
    """Rows, the course of each run that learned, and everything needed to judge them."""

    _what: ClassVar[str] = "report of an adaptation"

    schema_version: Literal[1] = 1
    rows: tuple[ReportRow, ...] = Field(min_length=1)
    courses: tuple[Course, ...] = ()
    stream: StreamFacts
    task: TaskSpec
    background: bool = False
    cost_model: CostModel = PUBLISHED
    bundle: BundleFacts | None = None
    conditions: Conditions

    @model_validator(mode="after")
    def _consistent(self) -> AdaptReport:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError("each row needs a name of its own")
        for course in self.courses:
            if course.row not in names:
                raise ValueError(f"a course is of '{course.row}', which is no row")
            if len(course.agreement) != self.stream.frames:
                raise ValueError(f"the course of '{course.row}' has not one figure a frame")
        return self

    def row(self, name: str) -> ReportRow:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        return self.row_named(self.rows, name)

    def table(self) -> Table:
        """The rows as a rich table, for a terminal."""
        from edge_sdk.adapt.table import rich_table

        return rich_table(self)

    def write(self, folder: str | Path) -> Path:
        """Write ``adapt.json`` and the self-contained ``report.html`` into ``folder``.

        Returns:
            The HTML file.

        Raises:
            DependencyError: jinja2 or matplotlib is not installed.
            OutputError: nothing can be written there.
        """
        from edge_sdk.adapt.page import render

        return self.write_beside(folder, render(self), report=REPORT_NAME, json_name=JSON_NAME)
