"""Every row's masks over the clips, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from edge_sdk.errors import BundleError, RecipeError
from edge_sdk.evaluate.accuracy import Judge, per_frame_masks
from edge_sdk.evaluate.clip import Clip, Tick
from edge_sdk.evaluate.evaluation import AtDistance
from edge_sdk.evaluate.front.lineup import Entrant, FrontLineup, Seat
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.metrics import Reference, StreamScores
from edge_sdk.manifest import FLOAT32
from edge_sdk.tasks import Segmentation


@dataclass(frozen=True)
class RowScores:
    """Scores of one row; meanings as in :class:`edge_sdk.evaluate.front.document.FrontRow`."""

    labels: float
    agreement: float
    by_distance: tuple[AtDistance, ...]
    at_interval: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: StreamScores, interval: int) -> RowScores:
        """What ``scores`` added up at the distances that an interval has; they may hold larger ones.

        Raises:
            RecipeError: no pixel counted.
        """
        at = tuple(
            AtDistance(distance=distance, frames=frames, labels=labels, agreement=agreement)
            for distance, frames, labels, agreement in scores.by_distance()
            if distance < interval
        )
        labels, agreement = scores.labels(range(interval)), scores.agreement(range(interval))
        if labels is None or agreement is None:
            raise RecipeError(
                "source: expected labels of classes that count, every labelled pixel is to be ignored.",
                hint="Name a source with labels of the task's classes.",
            )
        return cls(labels, agreement, at)


def score_rows(
    recipe: FrontRecipe, lineup: FrontLineup, clips: Sequence[Clip], seats: Sequence[Seat], tick: Tick
) -> dict[str, RowScores]:
    """Scores by the row's name, over all clips.

    Args:
        recipe: which alignments are counted.
        lineup: the bundles.
        clips: frames and labels; each is a stream of its own.
        seats: the rows.
        tick: progress.

    Raises:
        BundleError: a pair's float32 keyframe step and the teacher's own bundle disagree.
        RecipeError: no labelled pixel counts.
    """
    # Pairs go first: they find a teacher that does not fit before time is spent on the rest.
    passes = {_pass_of(seat, recipe): seat for seat in sorted(seats, key=lambda seat: seat.kind != "pair")}
    found: dict[Seat, StreamScores] = {}
    for number, clip in enumerate(clips, start=1):
        where = f", clip {number} of {len(clips)}" if len(clips) > 1 else ""
        work = _ClipWork(recipe, lineup, clip, tick, where)
        for wanted in passes:
            scores = work.scores(wanted)
            if wanted in found:
                found[wanted].merge(scores)
            else:
                found[wanted] = scores
    return {seat.name: _row_of(seat, found[_pass_of(seat, recipe)], recipe) for seat in seats}


def _row_of(seat: Seat, scores: StreamScores, recipe: FrontRecipe) -> RowScores:
    if seat.kind not in ("teacher", "net"):
        return RowScores.of(scores, seat.interval)
    # At distance 0 each frame counted once.
    row = RowScores.of(scores, 1)
    if recipe.phases != "all":
        return row
    return replace(row, at_interval={k: RowScores.of(scores, k).labels for k in recipe.intervals})


def _pass_of(seat: Seat, recipe: FrontRecipe) -> Seat:
    """The seat whose pass over the frames serves this one.

    Where every alignment is counted, that of the largest interval serves all: a frame's answer rests on its keyframe
    and on what came between, however far it is to the next keyframe.
    """
    far = max(recipe.intervals) if recipe.phases == "all" and seat.interval > 1 else seat.interval
    return Seat(seat.kind, seat.entrant, seat.engine, far)


class _ClipWork:
    """Passes over one clip; the teacher's masks, which several rows rest on, are made once in each precision."""

    def __init__(self, recipe: FrontRecipe, lineup: FrontLineup, clip: Clip, tick: Tick, where: str) -> None:
        self._recipe, self._clip, self._tick, self._where = recipe, clip, tick, where
        self._teacher = {
            engine: self._masks(Seat("teacher", lineup.teacher, engine)) for engine in recipe.precisions
        }
        task = lineup.pairs[0].bundle.task
        self._reference = Reference(task, clip.masks, self._teacher[FLOAT32], None)
        self._first = lineup.pairs[0]

    def scores(self, seat: Seat) -> StreamScores:
        if seat.kind in ("teacher", "net"):
            masks = self._teacher[seat.engine] if seat.kind == "teacher" else self._masks(seat)
            scores = StreamScores(self._reference, max(self._recipe.intervals))
            scores.add_whatever_distance([mask.mask for mask in masks])
            return scores
        if seat.kind == "pair":
            return self._pair_scores(seat)
        judge = self._judge(self._first, seat)
        followed = judge.copied if seat.kind == "copy" else judge.flowed
        return followed(seat.interval, self._teacher[seat.engine])

    def _pair_scores(self, seat: Seat) -> StreamScores:
        try:
            return self._judge(seat.entrant, seat).deltas(seat.interval, engine=seat.engine)
        except BundleError as error:
            raise BundleError(f"pairs {seat.entrant.bundle.path}: {error}") from error

    def _judge(self, pair: Entrant, seat: Seat) -> Judge:
        return Judge(
            self._clip,
            self._teacher[FLOAT32],
            pair.bundle,
            threads=self._recipe.threads,
            phases_of=self._recipe.phases_of,
            own_teacher=True,
            tick=lambda _, done, total: self._tick(seat.name + self._where, done, total),
            backend=seat.backend,
            consistency=False,
        )

    def _masks(self, seat: Seat) -> list[Segmentation]:
        return per_frame_masks(
            seat.entrant.bundle,
            self._clip,
            self._recipe.threads,
            lambda done: self._tick(seat.name + self._where, done, len(self._clip)),
            seat.engine,
            seat.backend,
        )
