"""``edge-sdk tune``: precision x keyframe interval x schedule on this device, and the point that meets the limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.bench.accuracy import Score, require_scored, scores_of, with_score
from edge_sdk.bench.choice import Choice, Limits, Point, choose, points_of
from edge_sdk.bench.document import SUBJECT, BenchDocument, Row
from edge_sdk.bench.figures import RowFigures
from edge_sdk.bench.grid import ScheduleName, engines_for, grid
from edge_sdk.bench.lineup import Lineup
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.scorebook import Scorebook, basis_of
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.clip import read_clip
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import Backend, backend_named
from edge_sdk.runtime.recipe import RunRecipe
from edge_sdk.video import open_source

# Length of the check of what was chosen at the camera's pace.
_CHECK_S, _CHECK_ROUNDS = 12.0, 2


class TuneRecipe(Limits):
    """What is tried, on which frames, and what is asked of it; limits are those of :class:`Limits`.

    Args:
        bundle: the bundle to tune.
        source: URI of the frames, with or without labels; no camera, because accuracy needs the same frames again.
        backend: name of the runtime.
        engines: engine sets to try; ``all`` for one of each precision that the bundle has for the backend.
        intervals: mean frames from keyframe to keyframe.
        schedules: ``every`` K frames; on ``change`` and, where the delta step tells how much of its keyframe holds, on
            ``drift``, with thresholds found on the clip; every K frames in the ``background``.
        background: how keyframes run beside the frames.
        threads: CPU threads of one step; None for the backend's own choice.
        teacher: a per-frame bundle of the same teacher without the work of writing state; None: the keyframe step.
        rival: a per-frame bundle that competes, such as a distilled network.
        fps: rate of the camera; None for the source's own.
        limit: most frames of the source to use.
        seconds: time for measuring latency; scores take a pass over the clip for each frame of the largest interval,
            in each engine, in addition.
        rounds: how often every row is measured.
        check: measure what was chosen at the camera's pace too, for twelve seconds.
        out: folder for ``bench.json``, the HTML report and the scores, which a second run there need not measure again.
        write: run recipe to write for what was chosen.
    """

    bundle: Path
    source: Annotated[str, Field(min_length=1)]
    backend: str = "onnxruntime"
    engines: (
        Literal["all"] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    ) = "all"
    intervals: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (5, 10, 20)
    schedules: Annotated[tuple[ScheduleName, ...], Field(min_length=1)] = (
        "every",
        "change",
        "drift",
        "background",
    )
    background: BackgroundKeyframes = BackgroundKeyframes()
    threads: int | None = Field(default=None, ge=1)
    teacher: Path | None = None
    rival: Path | None = None
    fps: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    limit: int = Field(default=300, ge=2)
    seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    rounds: int = Field(default=4, ge=2, le=100)
    check: bool = True
    out: Path | None = None
    write: Path | None = None

    @model_validator(mode="after")
    def _fits(self) -> TuneRecipe:
        for name in ("engines", "intervals", "schedules"):
            values = getattr(self, name)
            if values != "all" and len(set(values)) != len(values):
                raise ValueError(f"expected each of '{name}' once")
        if self.limit <= max(self.intervals):
            raise ValueError(f"limit {self.limit} must be above the largest interval {max(self.intervals)}")
        if self.write is not None and not self.given:
            raise ValueError(
                f"write: the recipe is for what meets the limits, expected one of {', '.join(Limits.model_fields)}"
            )
        return self


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Attributes:
        recipe: what was asked.
        document: the bench with every row.
        points: the rows as they were judged, in the document's order.
        choice: which one, and why.
        run: how to run what was chosen; None where nothing was.
        paced: figures of what was chosen at the camera's pace; None where nothing was chosen or checked.
        notes: what was left out of the grid, and why.
    """

    recipe: TuneRecipe
    document: BenchDocument
    points: tuple[Point, ...]
    choice: Choice
    run: RunRecipe | None
    paced: RowFigures | None
    notes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether scores are against labels rather than the float32 teacher's answers."""
        return all(row.labels is not None for row in self.document.rows if row.agreement is not None)

    def lines(self) -> tuple[str, ...]:
        """What the choice rests on, a line each: for the head of the run recipe and for people."""
        found, verdict = self.document.conditions, self.document.verdict
        point = next((point for point in self.points if point.row == self.choice.row), None)
        lines = [
            f"on {found.machine}, {found.cpu}, {found.cores} cores, {self.document.recipe.backend}, {found.date}, "
            f"edge_sdk {found.sdk_version}, commit {found.commit or 'unknown'}",
            self.choice.why,
            *self.choice.unmet,
        ]
        if point is not None:
            against = "the labels" if self.labelled else "the float32 teacher's answers"
            lines.append(
                f"mean {point.mean_ms.value:.2f} ms, p99 {point.p99_ms.value:.2f} ms a frame, saturated; mIoU with "
                f"{against} {point.score:.3f} over {self.document.source.frames} frames of {self.document.source.uri}"
            )
        lines.append("; ".join((f"the figures are {verdict.grade}", *verdict.reasons)))
        if self.paced is not None and self.paced.deadline is not None:
            age, deadline = self.paced.stages["age"]["all"], self.paced.deadline
            lines.append(
                f"at {self.document.source.fps:g} frames/s: answers {age.p50_ms.value:.2f} ms old (p50), "
                f"{age.p99_ms.value:.2f} ms (p99); {deadline.miss_rate.value:.2%} of them later than "
                f"{deadline.deadline_ms:.1f} ms, or dropped"
            )
        return tuple(lines)

    def write(self, path: str | Path, command: str) -> None:
        """Write the run recipe of what was chosen, with what it rests on as comments.

        Args:
            path: the YAML file.
            command: what was run to find it.

        Raises:
            RecipeError: nothing was chosen.
            OutputError: nothing can be written there.
        """
        if self.run is None:
            raise RecipeError("tune: nothing was chosen, so there is no recipe to write.")
        self.run.write(path, "\n".join((f"Chosen by: {command}", *self.lines())))


def tune(recipe: TuneRecipe, *, backend: Backend | None = None, progress: Progress | None = None) -> Tuning:
    """Measure the grid and choose. Nothing is written but the scores in ``recipe.out``.

    Args:
        recipe: what is tried and asked.
        backend: an object instead of the recipe's named backend.
        progress: told how far each stage is.

    Raises:
        RecipeError: the source is live, or too short for the intervals.
        EdgeSdkError: as :func:`edge_sdk.bench.pipeline.bench`.
    """
    shown = Silent() if progress is None else progress
    named = backend_named(recipe.backend) if backend is None else backend
    measured = BenchRecipe(
        bundle=recipe.bundle, source=recipe.source, backend=recipe.backend, background=recipe.background,
        threads=recipe.threads, teacher=recipe.teacher, rival=recipe.rival, baselines=False, seconds=recipe.seconds,
        rounds=recipe.rounds, fps=recipe.fps, camera_share=0.0, limit=recipe.limit, out=recipe.out,
    )  # fmt: skip
    rows, scores, notes = _scored(recipe, Lineup.open(measured), named, shown)
    document = bench(measured, rows=rows, backend=backend, progress=shown)
    followed = {
        row.name: scores[row.name].interval for row in rows if row.schedule.kind in ("change", "drift")
    }
    points = points_of(document, followed)
    choice = choose(points, recipe)
    run = None if choice.row is None else run_recipe(recipe, document.row(choice.row))
    paced = None
    if run is not None and recipe.check:
        paced = _paced(recipe, run, backend, shown)
    return Tuning(recipe, document, points, choice, run, paced, notes)


def _scored(
    recipe: TuneRecipe, lineup: Lineup, backend: Backend, progress: Progress
) -> tuple[tuple[Row, ...], Mapping[str, Score], tuple[str, ...]]:
    """The rows with their scores; those that the folder holds already are not measured again."""
    require_scored(lineup)
    with open_source(recipe.source, limit=1) as source:
        if source.live:
            raise RecipeError(
                f"source {source.uri}: expected a file, a folder or a scene, got a camera, whose frames cannot be had "
                "again.",
                hint="Record a clip with: edge-sdk run BUNDLE CAMERA --out FOLDER/, or name another.",
            )
    clip = read_clip(
        recipe.source, lineup.subject.task, lineup.subject.size_hw, limit=recipe.limit, tick=progress.update
    )
    engines = engines_for(lineup.subject, backend.name, None if recipe.engines == "all" else recipe.engines)
    rows, notes = grid(
        lineup, backend, engines, recipe.intervals, recipe.schedules, clip.images, recipe.background,
        recipe.threads,
    )  # fmt: skip
    settings = {"backend": backend.name, "threads": recipe.threads, "fps": recipe.fps or clip.fps}
    settings["background"] = recipe.background.threads
    book = Scorebook.open(recipe.out, basis_of(lineup, clip, settings))
    found = book.find(rows)
    missing = [row for row in rows if row.name not in found]
    if missing:
        found |= scores_of(
            missing, lineup, clip, backend=backend, threads=recipe.threads, background=recipe.background,
            fps=recipe.fps, progress=progress,
        )  # fmt: skip
        book.keep(recipe.out, missing, found)
    return tuple(with_score(row, found[row.name]) for row in rows), found, notes


def run_recipe(recipe: TuneRecipe, row: Row) -> RunRecipe:
    """How to run a row; its source is left to whoever runs it."""
    bundle = recipe.bundle
    if row.variant in ("teacher", "copy"):
        bundle = recipe.teacher or bundle
    elif row.variant == "rival":
        bundle = recipe.rival or bundle
    return RunRecipe(
        bundle=bundle,
        backend=recipe.backend,
        engine=row.engine,
        schedule=row.schedule,
        background=recipe.background if row.background else None,
        threads=recipe.threads,
    )


def _paced(
    recipe: TuneRecipe, run: RunRecipe, backend: Backend | None, progress: Progress
) -> RowFigures | None:
    """What was chosen at the camera's pace."""
    document = bench(
        BenchRecipe(
            bundle=run.bundle, source=recipe.source, backend=run.backend, engine=run.engine, schedule=run.schedule,
            background=run.background, threads=run.threads, baselines=False, accuracy=False, fps=recipe.fps,
            seconds=_CHECK_S, rounds=_CHECK_ROUNDS, camera_share=0.9, limit=recipe.limit,
        ),
        backend=backend,
        progress=progress,
    )  # fmt: skip
    return document.figures.row(SUBJECT, "camera")
