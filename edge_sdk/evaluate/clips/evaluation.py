"""What an evaluation of clip classifiers found: numbers with the conditions they hold under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe
from edge_sdk.evaluate.clips.timing import ClipTiming
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.manifest import FLOAT32
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Result, Settings
from edge_sdk.tasks import TaskSpec

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "evaluation.json"
REPORT_NAME = "report.html"


class Answers(Settings):
    """How the answer to a clip changes as its frames come: an answer is right where its best class is the clip's.

    Args:
        clips: how many were counted; of the first clip of a stream that begins within it, only the rest.
        right: share of right answers over all frames, 0-1.
        by_frame: the same after each frame of a clip, its first frame first.
        settled: frames of a clip after which its answer is right and stays right to the clip's end, median over clips;
            None where that is so in fewer than half of them.
    """

    clips: int = Field(ge=1)
    right: float
    by_frame: tuple[float, ...]
    settled: float | None


class ClipRow(Settings):
    """One bundle on one set of engines.

    Args:
        name: unique in its evaluation.
        role: what it is there for.
        engine: ``"float32"`` for the exported graphs, or the name of an engine set.
        schedule: which frames of a clip it sees.
        scores: of its answers at the ends of the clips, by metric, 0-1; the task's primary one first.
        agreement: share of the clips whose best class is the first row's.
        by_class: share of the clips of a class that are answered right, by class; classes without clips left out.
        answers: as the frames of a clip come, each clip begun with a fresh state.
        streamed: the same in one stream of clips that begins half a clip early, with nothing to tell where a clip
            begins; None where that was not asked for.
        seen: frames of a clip that a step was run for, mean over clips.
        macs: multiply-accumulates a clip, mean over clips; None where nobody counted.
        state_bytes: of the state that passes from frame to frame.
        timing: what a clip costs.
    """

    name: str
    role: Literal["teacher", "student", "rival", "other"]
    engine: str = FLOAT32
    schedule: ScheduleSettings
    scores: dict[str, float]
    agreement: float
    by_class: dict[str, float]
    answers: Answers
    streamed: Answers | None
    seen: float
    macs: int | None
    state_bytes: int
    timing: ClipTiming


class ClipsFacts(Settings):
    """The clips: where from, how many, frames of each, size and rate."""

    uri: str
    clips: int
    length: int
    height: int
    width: int
    fps: float


class ClipEvaluation(Result):
    """Rows, and everything needed to judge them."""

    _what: ClassVar[str] = "evaluation of clips"

    schema_version: Literal[1] = 1
    kind: Literal["clips"] = "clips"
    primary: str
    rows: tuple[ClipRow, ...] = Field(min_length=1)
    methods: dict[str, str]
    task: TaskSpec
    source: ClipsFacts
    bundles: tuple[BundleFacts, ...]
    recipe: ClipEvaluateRecipe
    conditions: Conditions

    def row(self, name: str) -> ClipRow:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        return self.row_named(self.rows, name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against trusting the times."""
        spreads = {row.name: row.timing.clip_ms for row in self.rows if row.timing.noisy}
        if not spreads:
            return ()
        most = max(spread.iqr / spread.median for spread in spreads.values())
        return (
            f"Timing was disturbed, by other work on this machine or by its clock: the runs of {', '.join(spreads)} "
            f"spread by more than 10 % of their median (at most {most:.0%}).",
        )

    def table(self) -> Table:
        """The rows as a rich table, for a terminal."""
        from edge_sdk.evaluate.clips.table import rich_table

        return rich_table(self)

    def write_report(self, folder: str | Path) -> Path:
        """Write ``evaluation.json`` and the self-contained ``report.html`` into ``folder``.

        Returns:
            The HTML file.

        Raises:
            DependencyError: jinja2 or matplotlib is not installed.
        """
        from edge_sdk.evaluate.clips.report import render

        return self.write_beside(folder, render(self), report=REPORT_NAME, json_name=JSON_NAME)
