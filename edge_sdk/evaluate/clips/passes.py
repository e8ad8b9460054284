"""How often a row is right: over clips by themselves, and over one stream of clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.errors import DependencyError, RecipeError
from edge_sdk.evaluate.clips.evaluation import Answers
from edge_sdk.evaluate.clips.reading import LoadedClip
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.tasks.base import Classification

if TYPE_CHECKING:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.tasks import Task
    from edge_sdk.video.frame import Frame


class Course:
    """Whether answers are right, by frame of the clip."""

    def __init__(self, length: int) -> None:
        self._right, self._counted = np.zeros(length, np.int64), np.zeros(length, np.int64)
        self._settled: list[float] = []

    def add(self, right: Sequence[bool], first: int = 0) -> None:
        """Count a clip whose answers to frames ``first``, ``first + 1``, ... up to its end are right or not."""
        self._right[first:] += np.asarray(right, np.int64)
        self._counted[first:] += 1
        wrong = [place for place, value in enumerate(right) if not value]
        last = wrong[-1] if wrong else -1
        self._settled.append(float("inf") if last == len(right) - 1 else float(first + last + 2))

    def answers(self) -> Answers:
        """What was counted, of at least one whole clip."""
        settled = float(np.median(self._settled))
        return Answers(
            clips=len(self._settled),
            right=float(self._right.sum() / self._counted.sum()),
            by_frame=tuple(float(value) for value in self._right / self._counted),
            settled=settled if np.isfinite(settled) else None,
        )


class WholeClips:
    """One row over clips by themselves.

    Args:
        runner: opened, under its own schedule.
        task: scores the answers.
        length: frames of a clip.

    Attributes:
        best: the best class of each clip, in order.
        kinds: how many frames were answered in which way.
        course: as the frames of a clip come.
    """

    def __init__(self, runner: EdgeRunner, task: Task, length: int) -> None:
        self._runner, self._task = runner, task
        self._score, self.course = task.score(), Course(length)
        self.best: list[int] = []
        self.kinds: Counter[StepKind] = Counter()
        self._classes = np.zeros((2, len(task.spec.classes)), np.int64)

    def run(self, clip: LoadedClip) -> None:
        """Answer one clip, from a fresh state."""
        self._runner.reset()
        results = list(_answered(self._runner, clip, clip.frames))
        self.course.add([right for _, right in results])
        self.kinds.update(result.kind for result, _ in results)
        answer = results[-1][0].prediction.copy()
        self._score.update(answer, clip.truth)
        self.best.append(int(np.argmax(_scores(answer))))
        of = clip.truth.scores > 0
        self._classes += np.stack((of, of & results[-1][1])).astype(np.int64)

    def scores(self) -> dict[str, float]:
        """Metrics over the clips, the primary one first; the headline alone where what computes others is missing."""
        try:
            found, primary = self._score.compute(), self._score.primary
        except DependencyError:
            return dict([self._score.headline()])
        if math.isnan(found[primary]):
            raise RecipeError(
                "clips: none of them has a label.", hint="Evaluate on a list of labelled clips."
            )
        return {primary: found[primary]} | found

    def by_class(self) -> dict[str, float]:
        """Share of a class' clips that are answered right."""
        there, right = self._classes
        names = self._task.spec.classes
        return {name: float(right[i] / there[i]) for i, name in enumerate(names) if there[i]}


class OneStream:
    """One row over clips one after another, as a camera would show them.

    The stream begins in the middle of its first clip, so the windows of a schedule that begins a new clip every
    ``length`` frames lie half over one clip and half over the next.

    Args:
        runner: opened, under its own schedule.
        length: frames of a clip.
    """

    def __init__(self, runner: EdgeRunner, length: int) -> None:
        self._runner, self._course = runner, Course(length)
        self._begin, self._seq = length // 2, 0
        runner.reset()

    def run(self, clip: LoadedClip) -> None:
        """Go on with a clip."""
        shown = clip.frames[self._begin :]
        frames = [replace(frame, seq=self._seq + place) for place, frame in enumerate(shown)]
        self._course.add([right for _, right in _answered(self._runner, clip, frames)], self._begin)
        self._seq, self._begin = self._seq + len(frames), 0

    def answers(self) -> Answers:
        """What was counted, of at least two clips."""
        return self._course.answers()


def _answered(runner: EdgeRunner, clip: LoadedClip, frames: Sequence[Frame]) -> Iterator[tuple[Result, bool]]:
    """Each answer and whether it is right; a skipped frame's answer is the one before it."""
    right = False
    for frame in frames:
        result = runner(frame)
        right = clip.right(_scores(result.prediction))
        yield result, right


def _scores(prediction: object) -> np.ndarray:
    if not isinstance(prediction, Classification):
        raise TypeError(f"expected a classification, got a {type(prediction).__name__}")
    return prediction.scores
