"""Rows of a report from runs whose answers were kept, and from what needs no run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.adapt.agreement import agreement
from edge_sdk.adapt.baselines import MEANINGS, WAYS, BaselineScore, Way, score_baselines
from edge_sdk.adapt.cost import PUBLISHED, Cost, CostModel, summed
from edge_sdk.adapt.replay import FrameAnswers, RunRecord
from edge_sdk.adapt.report import PLACED, Course, Kind, Placed, ReportRow
from edge_sdk.adapt.score import Keyframes, OnlineScore, PackedMasks, Parts, PartScores, ScoreFigures
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.tasks import TaskSpec

# Kept of a figure for every frame: finer is noise and makes the file longer.
_PLACES = 4


@dataclass(frozen=True)
class Judge:
    """Scores ways to answer one stream against the teacher on every frame of it.

    Args:
        task: names the classes.
        teacher: its answers, and what they took.
        background: whether class 0 counts in the mean.
        parts: frames at which parts of the stream begin, by name, rising; scores of each are given too.
        model: what passes cost by the published model.
    """

    task: TaskSpec
    teacher: FrameAnswers
    background: bool = False
    parts: Mapping[str, int] | None = None
    model: CostModel = PUBLISHED

    def online(self, name: str, run: RunRecord, masks: PackedMasks) -> tuple[ReportRow, Course]:
        """A run that learned.

        Raises:
            RecipeError: it did not.
            ShapeError: its masks are not one a frame.
        """
        settings = run.settings
        if settings is None:
            raise RecipeError(f"'{name}': expected a run that learned, its settings are missing.")
        keys = run.keyframes
        score, between, parts, course = self._scores(masks, set(keys.at), settings)
        row = ReportRow(
            name=name,
            kind="online",
            threshold=settings.threshold,
            score=score,
            student=between,
            teacher_frames=len(keys.at),
            share=keys.share,
            updates=run.updates,
            model=self.model.cost(run.frames, len(keys.at), run.updates),
            clock=self._clock(keys, run.student_ms, run.lessons_ms),
            parts=parts,
        )
        return row, Course(
            row=name,
            settings=settings,
            agreement=course,
            teacher_at=keys.at,
            lessons=run.lessons,
            wall_s=run.wall_s,
            student_ms=run.student_ms,
        )

    def student(
        self, name: str, kind: Kind, masks: PackedMasks, student_ms: float | None, note: str = ""
    ) -> ReportRow:
        """A student that answers every frame and learns nothing."""
        score, _, parts, _ = self._scores(masks, set(), None)
        frames = len(masks)
        teacher_ms = self.teacher.frame_ms
        known = teacher_ms is not None and student_ms is not None
        return ReportRow(
            name=name,
            kind=kind,
            score=score,
            teacher_frames=0,
            share=0.0,
            model=self.model.cost(frames, 0, 0),
            clock=summed(frames, 0, teacher_ms=teacher_ms, between_ms=student_ms) if known else None,  # type: ignore[arg-type]
            parts=parts,
            note=note,
        )

    def baselines(
        self,
        images: Iterable[np.ndarray],
        runs: Sequence[ReportRow],
        keyframes: Mapping[str, Keyframes],
        *,
        ways: Sequence[Way] = WAYS,
        tick: Callable[[int], None] | None = None,
    ) -> list[ReportRow]:
        """Copying and flow with the share of teacher frames of each run: on the same frames, and evenly spread.

        Args:
            images: the stream's frames, (H, W, 3) uint8 BGR.
            runs: rows of runs that learned.
            keyframes: the teacher frames of each, by its name.
            ways: which baselines.
            tick: called with the number of frames done.
        """
        choices: dict[tuple[str, Placed], Keyframes] = {}
        for run in runs:
            same = keyframes[run.name]
            choices[run.name, "same"] = same
            choices[run.name, "evenly"] = Keyframes.spread(same.frames, len(same.at))
        found = score_baselines(
            images,
            self.teacher.masks,
            choices,
            self.task,
            background=self.background,
            parts=self._parts(),
            ways=ways,
            tick=tick,
        )
        return [
            self._baseline(way, run, placed, choices[run.name, placed], found[run.name, placed][way])
            for way in ways
            for run in runs
            for placed in PLACED
        ]

    def _baseline(
        self, way: Way, run: ReportRow, placed: Placed, keys: Keyframes, scored: BaselineScore
    ) -> ReportRow:
        frames = "same frames" if placed == "same" else "evenly"
        return ReportRow(
            name=f"{way} ({run.name}, {frames})",
            kind=way,
            threshold=run.threshold,
            placed=placed,
            score=scored.figures,
            teacher_frames=len(keys.at),
            share=keys.share,
            model=self._copy_model(keys) if way == "copy" else None,
            clock=self._clock(keys, scored.step_ms, 0.0),
            parts=scored.parts,
            note=MEANINGS[way],
        )

    def _copy_model(self, keys: Keyframes) -> Cost:
        return summed(keys.frames, len(keys.at), teacher_ms=self.model.teacher_ms, between_ms=0.0)

    def _clock(self, keys: Keyframes, between_ms: float | None, learning_ms: float) -> Cost | None:
        teacher_ms = self.teacher.frame_ms
        if teacher_ms is None or between_ms is None:
            return None
        return summed(
            keys.frames, len(keys.at), teacher_ms=teacher_ms, between_ms=between_ms, learning_ms=learning_ms
        )

    def _scores(
        self, masks: PackedMasks, answered: set[int], settings: AdaptSettings | None
    ) -> tuple[ScoreFigures, ScoreFigures | None, dict[str, ScoreFigures], tuple[float, ...]]:
        """Over all frames, over those that the teacher did not answer, by part, and frame by frame."""
        truths = self.teacher.masks
        if len(masks) != len(truths):
            raise ShapeError(f"masks: expected {len(truths)} as the teacher has, got {len(masks)}.")
        scores, between = self._part_scores(), OnlineScore(self.task, background=self.background)
        course = []
        for index, (mask, truth) in enumerate(zip(masks, truths, strict=True)):
            scores.add(index, mask, truth)
            if index not in answered:
                between.add(mask, truth)
            if settings is not None:
                classes, ignore = len(self.task.classes), self.task.ignore_label
                course.append(round(agreement(mask, truth, classes, ignore, settings.agreement), _PLACES))
        some = 0 < len(answered) < len(masks)
        return scores.figures(), between.figures() if some else None, scores.parts(), tuple(course)

    def _part_scores(self) -> PartScores:
        return PartScores(self.task, self._parts(), background=self.background)

    def _parts(self) -> Parts:
        return Parts(len(self.teacher.masks), self.parts)
