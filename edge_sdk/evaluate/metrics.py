"""Accuracy over a stream: against labels, against the teacher, by distance from the keyframe, and over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.evaluate.flow import FlowWarp
from edge_sdk.tasks import Score, Segmentation, Task


@dataclass(frozen=True)
class Planned:
    """One frame of a stream with keyframes.

    Args:
        index: which frame.
        distance: frames since its keyframe; 0 is the keyframe itself.
    """

    index: int
    distance: int

    @property
    def key(self) -> int:
        """Index of the keyframe that this frame rests on."""
        return self.index - self.distance


def plan(frames: int, interval: int, phase: int) -> list[Planned]:
    """What a schedule "every ``interval``, phase ``phase``" does with ``frames`` frames, from its frame ``phase`` on.

    Frames before that would rest on frame 0, nearer than the grid puts them, and early frames would count twice at
    small distances. So, over all phases, frame i comes exactly once at each distance 0 to min(i, interval - 1).
    """
    return [Planned(index, (index - phase) % interval) for index in range(phase, frames)]


def primary(score: Score) -> float | None:
    """A score's headline metric; None where nothing was counted."""
    value = score.compute()[score.primary]
    return None if math.isnan(value) else value


def pair_lookups(images: Sequence[np.ndarray], tick: Callable[[int], None]) -> list[np.ndarray]:
    """Where each pixel of frame t lies in frame t + 1, for all consecutive pairs.

    Args:
        images: (H, W, 3) uint8 BGR frames.
        tick: called with the number of pairs done.

    Returns:
        len(images) - 1 arrays, (H, W, 2) int16, as :meth:`FlowWarp.lookup` returns them.
    """
    flow = FlowWarp()
    lookups = []
    before = flow.grey(images[0])
    for image in images[1:]:
        after = flow.grey(image)
        lookups.append(flow.lookup(before, after))
        before = after
        tick(len(lookups))
    return lookups


class Consistency:
    """Temporal consistency: the mask of frame t + 1, warped to t, scored as if the mask of frame t were the truth.

    Intersections and unions are added up over all pairs and the score is the mean over classes, as published with
    ETC. Published figures warp by FlowNet2 and sample bilinearly before casting to integers; here flow is DIS and
    sampling is nearest, so that no class appears that neither mask has. Compare only figures made the same way.

    Args:
        task: scores masks.
        lookups: of :func:`pair_lookups`.
    """

    def __init__(self, task: Task, lookups: Sequence[np.ndarray]) -> None:
        self._score = task.score()
        self._ignore = task.spec.ignore_label
        self._lookups = lookups
        self._flow = FlowWarp()
        self._before: tuple[int, np.ndarray] | None = None

    def add(self, index: int, mask: np.ndarray) -> None:
        """Count the pair (``index`` - 1, ``index``) where the frame before was added last.

        Args:
            index: which frame.
            mask: (H, W) uint8; kept until the next call, so it must not be written again.
        """
        if self._before is not None and self._before[0] == index - 1:
            warped = self._flow.warp(mask, self._lookups[index - 1])
            # Labels hold ignored pixels on both sides of a pair; a prediction holds none.
            truth = np.where(warped == self._ignore, self._ignore, self._before[1]).astype(
                np.uint8, copy=False
            )
            self._score.update(Segmentation(warped), Segmentation(truth))
        self._before = (index, mask)

    def value(self) -> float | None:
        """Mean intersection over union, 0-1; None where there was no pair."""
        return primary(self._score)


def consistency_of(
    masks: Iterable[Segmentation | None], task: Task, lookups: Sequence[np.ndarray]
) -> float | None:
    """Temporal consistency of masks that lie in memory; a pair in which one is None does not count."""
    consistency = Consistency(task, lookups)
    for index, mask in enumerate(masks):
        if mask is not None:
            consistency.add(index, mask.mask)
    return consistency.value()


@dataclass(frozen=True)
class Reference:
    """What every variant is scored against.

    Args:
        task: scores masks.
        truths: labels per frame, or None.
        teacher: the teacher's mask per frame.
        lookups: of :func:`pair_lookups`; None where consistency is not asked for.
    """

    task: Task
    truths: Sequence[Segmentation | None]
    teacher: Sequence[Segmentation]
    lookups: Sequence[np.ndarray] | None


class StreamScores:
    """Adds up the scores of one variant, over one keyframe phase after the other.

    Args:
        reference: labels, teacher's masks and flow.
        interval: K; distances 0 to K - 1 are kept apart, and what lies farther counts with the last.
    """

    def __init__(self, reference: Reference, interval: int) -> None:
        self._reference = reference
        self._labels = [reference.task.score() for _ in range(interval)]
        self._agreement = [reference.task.score() for _ in range(interval)]
        self._frames = [0] * interval
        self._consistency: list[float | None] = []

    def add_phase(self, masks: Iterable[tuple[Planned, np.ndarray]]) -> None:
        """Count one pass over the frames.

        Args:
            masks: per frame, in order, its place in the plan and its (H, W) uint8 mask, which must not be
                written again before the frame after the next is asked for.
        """
        reference = self._reference
        lookups = reference.lookups
        consistency = None if lookups is None else Consistency(reference.task, lookups)
        for planned, mask in masks:
            self._add(planned, Segmentation(mask))
            if consistency is not None:
                consistency.add(planned.index, mask)
        self._consistency.append(None if consistency is None else consistency.value())

    def add_whatever_distance(self, masks: Sequence[np.ndarray]) -> None:
        """Count a network that answers every frame by itself, over the frames that passes of all phases would count.

        A distance counts the frames from that one on, so early frames count less often than later ones. A pair's score
        may be compared with that of a network whose frames weigh the same.

        Args:
            masks: (H, W) uint8, one a frame.
        """
        labels, agreement = self._reference.task.score(), self._reference.task.score()
        for index in range(len(masks) - 1, -1, -1):
            prediction, truth = Segmentation(masks[index]), self._reference.truths[index]
            if truth is not None:
                labels.update(prediction, truth)
            agreement.update(prediction, self._reference.teacher[index])
            if index < len(self._frames):
                self._labels[index].merge(labels)
                self._agreement[index].merge(agreement)
                self._frames[index] += len(masks) - index

    def merge(self, other: StreamScores) -> None:
        """Add what another clip's scores of the same task and interval have counted."""
        for mine, theirs in ((self._labels, other._labels), (self._agreement, other._agreement)):
            for score, more in zip(mine, theirs, strict=True):
                score.merge(more)
        self._frames = [count + more for count, more in zip(self._frames, other._frames, strict=True)]
        self._consistency += other._consistency

    def _add(self, planned: Planned, prediction: Segmentation) -> None:
        place = min(planned.distance, len(self._frames) - 1)
        truth = self._reference.truths[planned.index]
        if truth is not None:
            self._labels[place].update(prediction, truth)
        self._agreement[place].update(prediction, self._reference.teacher[planned.index])
        self._frames[place] += 1

    def by_distance(self) -> Iterator[tuple[int, int, float | None, float | None]]:
        """Per distance: frames counted, score against labels, score against the teacher."""
        for distance, frames in enumerate(self._frames):
            yield distance, frames, primary(self._labels[distance]), primary(self._agreement[distance])

    def labels(self, distances: range | None = None) -> float | None:
        """Score against the labels over ``distances``, all by default; None without labels."""
        return primary(_merged(self._reference.task, _at(self._labels, distances)))

    def agreement(self, distances: range | None = None) -> float | None:
        """Score against the teacher's masks over ``distances``, all by default."""
        return primary(_merged(self._reference.task, _at(self._agreement, distances)))

    def consistency(self) -> float | None:
        """Temporal consistency, mean over the phases that had a pair; None where none had."""
        values = [value for value in self._consistency if value is not None]
        return sum(values) / len(values) if values else None


def _at(scores: Sequence[Score], distances: range | None) -> Sequence[Score]:
    return scores if distances is None else [scores[distance] for distance in distances]


def _merged(task: Task, scores: Iterable[Score]) -> Score:
    whole = task.score()
    for score in scores:
        whole.merge(score)
    return whole
