"""What an evaluation found: numbers with the conditions they hold under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts, ClipFacts
from edge_sdk.evaluate.recipe import EvaluateRecipe
from edge_sdk.evaluate.timing import Timing, disturbed
from edge_sdk.manifest import FLOAT32
from edge_sdk.settings import Result, Settings
from edge_sdk.tasks import TaskSpec

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "evaluation.json"
REPORT_NAME = "report.html"

Variant = Literal["teacher", "copy", "flow", "delta", "rival"]


class AtDistance(Settings):
    """Accuracy of the frames that lie ``distance`` frames after their keyframe.

    Args:
        distance: 0 is the keyframe.
        frames: how many were counted.
        labels: score against the labels, 0-1; None without labels.
        agreement: score against the teacher's masks, 0-1.
    """

    distance: int
    frames: int
    labels: float | None
    agreement: float | None


class Row(Settings):
    """One variant at one keyframe interval.

    Args:
        name: unique in its evaluation.
        variant: what makes the frames between keyframes.
        interval: frames from keyframe to keyframe; 1 for networks that run on every frame.
        engine: ``"float32"`` for the exported graphs, or the name of an engine set.
        labels: mean intersection over union with the labels, 0-1; None without labels.
        agreement: the same with the teacher's masks as truth.
        by_distance: the two by distance from the keyframe; one entry for interval 1.
        consistency: temporal consistency, 0-1; None where there was no pair of frames.
        macs: multiply-accumulates a frame, averaged over the keyframe period; None where nobody counted.
        state_bytes: what passes from frame to frame: the bundle's state, or the mask (and grey keyframe) that a
            baseline keeps.
        timing: how long it takes.
        note: what a reader must know about this row.
    """

    name: str
    variant: Variant
    interval: int = Field(ge=1)
    engine: str = FLOAT32
    labels: float | None
    agreement: float | None
    by_distance: tuple[AtDistance, ...]
    consistency: float | None
    macs: int | None
    state_bytes: int
    timing: Timing
    note: str = ""


class SourceFacts(ClipFacts):
    """The frames, and the labels' own consistency; None where no two frames in a row have labels."""

    label_consistency: float | None


class Panel(Settings):
    """One picture of an example: title and JPEG."""

    title: str
    jpeg: bytes


class Example(Settings):
    """One frame seen by every variant, as far from its keyframe as the largest interval goes."""

    index: int
    distance: int
    why: str
    panels: tuple[Panel, ...]


class Evaluation(Result):
    """Rows, and everything needed to judge them.

    ``examples`` are pictures for the report: they are not part of the JSON.
    """

    _what: ClassVar[str] = "evaluation"

    schema_version: Literal[1] = 1
    rows: tuple[Row, ...] = Field(min_length=1)
    methods: dict[str, str]
    task: TaskSpec
    source: SourceFacts
    bundles: tuple[BundleFacts, ...]
    recipe: EvaluateRecipe
    conditions: Conditions
    examples: tuple[Example, ...] = Field(default=(), exclude=True, repr=False)

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        return self.row_named(self.rows, name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against trusting the times."""
        return disturbed({row.name: row.timing.mean_ms for row in self.rows if row.timing.noisy})

    def table(self) -> Table:
        """The rows as a rich table, for a terminal."""
        from edge_sdk.evaluate.table import rich_table

        return rich_table(self)

    def write_report(self, folder: str | Path) -> Path:
        """Write ``evaluation.json`` and the self-contained ``report.html`` into ``folder``.

        Returns:
            The HTML file.

        Raises:
            DependencyError: jinja2 or matplotlib is not installed.
        """
        from edge_sdk.evaluate.report import render

        return self.write_beside(folder, render(self), report=REPORT_NAME, json_name=JSON_NAME)
