"""What a front found: numbers with the conditions they hold under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.evaluation import AtDistance
from edge_sdk.evaluate.facts import BundleFacts, ClipFacts
from edge_sdk.evaluate.front.lineup import Kind
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.front.recovered import Recovered
from edge_sdk.evaluate.timing import Spread, Timing, disturbed
from edge_sdk.machine import MachineFacts
from edge_sdk.manifest import FLOAT32
from edge_sdk.settings import Result, Settings
from edge_sdk.tasks import TaskSpec

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "front.json"
REPORT_NAME = "report.html"


class Times(Settings):
    """How long a row takes; as :class:`edge_sdk.evaluate.timing.Timing`, without the time of every frame.

    Args:
        runs_ms: each run's mean over its frames.
        mean_ms, p99_ms: over the runs.
        fps: frames a second that the median mean allows.
        speedup: mean of the teacher in the same precision over this mean, within each run.
        keyframe_ms, between_ms: medians of the keyframes and of the other frames; None where there are none.
        runner_ms: mean time of a frame outside the graph; None where no runner ran.
        noisy: the runs' means spread by more than 10 % of their median.
    """

    runs_ms: tuple[float, ...] = Field(min_length=1)
    mean_ms: Spread
    p99_ms: Spread
    fps: float
    speedup: Spread
    keyframe_ms: float | None
    between_ms: float | None
    runner_ms: float | None
    noisy: bool

    @classmethod
    def of(cls, timing: Timing, teacher: Timing) -> Times:
        """What was measured, beside the teacher in the same precision."""
        runs, theirs = (np.array(found.frames_ms).mean(axis=1) for found in (timing, teacher))
        kept = {
            name: getattr(timing, name) for name in cls.model_fields if name not in ("runs_ms", "speedup")
        }
        return cls(runs_ms=tuple(runs.tolist()), speedup=Spread.of(theirs / runs), **kept)


class FrontRow(Settings):
    """One way to answer frames, at one keyframe interval, in one precision.

    Args:
        name: unique in its front.
        kind: what makes the frames between keyframes.
        who: the row's name without interval and precision; rows of one bundle share it.
        interval: frames from keyframe to keyframe; 1 for networks that run on every frame.
        engine: ``"float32"`` for the exported graphs, or the name of an engine set.
        labels: mean intersection over union with the labels, 0-1.
        agreement: the same with the float32 teacher's masks as truth.
        by_distance: the two by distance from the keyframe.
        at_interval: of the teacher and the networks, ``labels`` by keyframe interval, each frame counted as often as in
            the rows of that interval, which see a clip's first frames less often; empty where phases are not all.
        teacher: of other rows, the teacher's ``labels`` in the same precision over the frames that count there.
        macs: multiply-accumulates a frame, averaged over the keyframe period; None where nobody counted.
        state_bytes: what passes from frame to frame: the state, or the mask (and grey keyframe) that a baseline keeps.
        times: how long it takes.
        recovered: of a pair, what it gains over the networks.
        recovered_runs: of a pair, the share by the times of each run alone; None where there is none in that run.
        note: what a reader must know about this row.
    """

    name: str
    kind: Kind
    who: str
    interval: int = Field(ge=1)
    engine: str = FLOAT32
    labels: float
    agreement: float
    by_distance: tuple[AtDistance, ...]
    at_interval: dict[int, float] = Field(default_factory=dict)
    teacher: float | None = None
    macs: int | None
    state_bytes: int
    times: Times
    recovered: Recovered | None = None
    recovered_runs: tuple[float | None, ...] = ()
    note: str = ""

    def labels_at(self, interval: int) -> float:
        """``labels`` over the frames as the rows of that interval count them."""
        return self.at_interval.get(interval, self.labels)


class Front(Result):
    """Rows, and everything needed to judge them.

    Args:
        rows: precision by precision.
        methods: how it was measured, by subject.
        task: what the networks answer.
        sources: the clips.
        bundles: the teacher, the networks, the pairs.
        recipe: what was asked for.
        conditions: where, when and with what software.
        machines: the device that computed, by runtime.
    """

    _what: ClassVar[str] = "front"

    schema_version: Literal[1] = 1
    rows: tuple[FrontRow, ...] = Field(min_length=1)
    methods: dict[str, str]
    task: TaskSpec
    sources: tuple[ClipFacts, ...]
    bundles: tuple[BundleFacts, ...]
    recipe: FrontRecipe
    conditions: Conditions
    machines: dict[str, MachineFacts]

    def row(self, name: str) -> FrontRow:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        return self.row_named(self.rows, name)

    def of(self, engine: str, *kinds: Kind) -> tuple[FrontRow, ...]:
        """The rows of one precision, of some kinds or all."""
        return tuple(row for row in self.rows if row.engine == engine and (not kinds or row.kind in kinds))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against trusting the figures."""
        found = disturbed({row.name: row.times.mean_ms for row in self.rows if row.times.noisy})
        if len(self.rows[0].times.runs_ms) == 1:
            found += (
                "Every row was timed once: nothing tells how far the times would differ in another run.",
            )
        return found

    def table(self) -> Table:
        """The rows as a rich table, for a terminal."""
        from edge_sdk.evaluate.front.table import rich_table

        return rich_table(self)

    def write_report(self, folder: str | Path) -> Path:
        """Write ``front.json`` and the self-contained ``report.html`` into ``folder``.

        Returns:
            The HTML file.

        Raises:
            DependencyError: jinja2 or matplotlib is not installed.
        """
        from edge_sdk.evaluate.front.report import render

        return self.write_beside(folder, render(self), report=REPORT_NAME, json_name=JSON_NAME)
