"""What a user would do with as many teacher frames but without a student: copy the last mask, or move it along flow."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from edge_sdk.adapt.score import Keyframes, Parts, PartScores, ScoreFigures
from edge_sdk.errors import ShapeError
from edge_sdk.evaluate.flow import FlowWarp
from edge_sdk.tasks import TaskSpec

K = TypeVar("K", bound=Hashable)
Way = Literal["copy", "flow", "chained"]
WAYS: tuple[Way, ...] = ("copy", "flow", "chained")
MEANINGS: dict[Way, str] = {
    "copy": "the last teacher frame's mask, repeated",
    "flow": "the last teacher frame's mask, moved along flow taken between the two frames themselves",
    "chained": "the last teacher frame's mask, moved from frame to frame by rounded flow, as published",
}


@dataclass(frozen=True)
class BaselineScore:
    """One way over one choice of teacher frames.

    Args:
        figures: against the teacher on every frame.
        step_ms: mean time of a frame between teacher frames, in milliseconds; 0 for copying.
        parts: scores of the stream's parts, by name.
    """

    figures: ScoreFigures
    step_ms: float
    parts: dict[str, ScoreFigures]


@dataclass
class _Track:
    """One choice of teacher frames on its way through the stream."""

    keys: frozenset[int]
    scores: dict[Way, PartScores]
    key: int = 0
    mask: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    chained: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))


class _Flow:
    """Flow to the frame before and to the teacher frames in use, each taken once a frame and timed."""

    def __init__(self) -> None:
        self._warp = FlowWarp()
        self._greys: dict[int, np.ndarray] = {}
        self._now = -1
        self._lookups: dict[int, np.ndarray] = {}
        self.spent_ms: dict[Way, list[float]] = {"flow": [], "chained": []}

    def see(self, index: int, image: np.ndarray, needed: set[int]) -> None:
        self._greys = {key: grey for key, grey in self._greys.items() if key in needed or key == index - 1}
        self._greys[index] = self._warp.grey(image)
        self._now, self._lookups = index, {}

    def moved(self, way: Way, mask: np.ndarray, known: int) -> np.ndarray:
        """``mask`` of frame ``known`` as it looks now."""
        began = time.perf_counter()
        fresh = known not in self._lookups
        if fresh:
            self._lookups[known] = self._warp.lookup(self._greys[self._now], self._greys[known])
        moved = self._warp.warp(mask, self._lookups[known])
        if fresh:  # only a frame that took its flow shows what the way costs
            self.spent_ms[way].append((time.perf_counter() - began) * 1e3)
        return moved


def score_baselines(
    images: Iterable[np.ndarray],
    teacher: Sequence[np.ndarray],
    choices: Mapping[K, Keyframes],
    task: TaskSpec,
    *,
    background: bool = False,
    parts: Parts | None = None,
    ways: Sequence[Way] = WAYS,
    tick: Callable[[int], None] | None = None,
) -> dict[K, dict[Way, BaselineScore]]:
    """Score every way over every choice of teacher frames, in one pass over the stream.

    Args:
        images: (H, W, 3) uint8 BGR frames, in order.
        teacher: (H, W) uint8 masks, one a frame.
        choices: which frames the teacher answers, by name.
        task: names the classes.
        background: whether class 0 counts in the mean.
        parts: of the stream, to be scored by themselves too.
        ways: which of the three.
        tick: called with the number of frames done.

    Returns:
        By choice and way.

    Raises:
        ShapeError: frames, masks and choices are not equally many.
        DependencyError: OpenCV is not installed.
    """
    parts = parts or Parts(len(teacher))
    tracks = {
        name: _Track(
            frozenset(keys.at), {way: PartScores(task, parts, background=background) for way in ways}
        )
        for name, keys in choices.items()
    }
    if any(keys.frames != len(teacher) for keys in choices.values()):
        raise ShapeError(f"teacher frames: expected choices among {len(teacher)} frames.")
    flow, done = _Flow(), 0
    for index, image in enumerate(images):
        if index >= len(teacher):
            raise ShapeError(f"frames: expected {len(teacher)} as the teacher has masks, got more.")
        mask = teacher[index]
        flow.see(index, image, {track.key for track in tracks.values()})
        for track in tracks.values():
            _step(track, index, mask, flow)
        done = index + 1
        if tick is not None:
            tick(done)
    if done != len(teacher):
        raise ShapeError(f"frames: expected {len(teacher)} as the teacher has masks, got {done}.")
    spent: dict[Way, float] = {way: float(np.mean(times)) for way, times in flow.spent_ms.items() if times}
    return {
        name: {
            way: BaselineScore(score.figures(), spent.get(way, 0.0), score.parts())
            for way, score in track.scores.items()
        }
        for name, track in tracks.items()
    }


def _step(track: _Track, index: int, truth: np.ndarray, flow: _Flow) -> None:
    if index in track.keys:
        track.key, track.mask, track.chained = index, truth, truth
    elif "chained" in track.scores:
        track.chained = flow.moved("chained", track.chained, index - 1)
    for way, score in track.scores.items():
        if way == "copy" or index == track.key:
            score.add(index, track.mask, truth)
        else:
            found = track.chained if way == "chained" else flow.moved("flow", track.mask, track.key)
            score.add(index, found, truth)
