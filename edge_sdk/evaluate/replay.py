"""Which keyframe each frame of a clip rests on under any schedule, decided by the schedule itself.

No step is run here. A schedule that is told what the delta steps find hears it from whoever runs the plan, frame by
frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edge_sdk.evaluate.metrics import Planned
from edge_sdk.runtime.drift import ToldSchedule
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import ScheduleSettings


class Replay:
    """What a stream that begins at frame ``start`` does with the frames, one after another; to be iterated once.

    Args:
        schedule: decides, from the pictures where it looks at them.
        images: (H, W, 3) uint8 BGR frames of the clip.
        start: first frame of the stream; frames before it are in no plan.
        lag: frames from the one that a keyframe beside the frames is taken from to the first one that rests on it, at
            least 1; None runs keyframes in turn.

    Attributes:
        planned: the frames so far.
    """

    def __init__(
        self,
        schedule: ScheduleSettings,
        images: Sequence[np.ndarray],
        *,
        start: int = 0,
        lag: int | None = None,
    ) -> None:
        self._rule, self._images, self._start, self._lag = schedule.start(), images, start, lag
        self.planned: list[Planned] = []

    def __iter__(self) -> Iterator[Planned]:
        lag, rule = self._lag, self._rule
        key, running = self._start, -1
        for index in range(self._start, len(self._images)):
            if lag is not None and 0 <= running <= index - lag:
                key, running = running, -1
            age = None if index == self._start else index - key
            due = rule.decide(self._images[index], age) is StepKind.KEYFRAME
            if age is None or (due and lag is None):
                key = index
            elif due and running < 0:
                running = index
            self.planned.append(Planned(index, index - key))
            yield self.planned[-1]

    def told(self, trust: float | None) -> None:
        """What the delta step of the last frame told, for a schedule that wants to hear it; None for a keyframe."""
        if trust is not None and isinstance(self._rule, ToldSchedule):
            self._rule.told(trust, self.planned[-1].distance)


def replay(
    schedule: ScheduleSettings, images: Sequence[np.ndarray], *, start: int = 0, lag: int | None = None
) -> list[Planned]:
    """The whole plan of a schedule that needs to be told nothing; arguments as of :class:`Replay`."""
    if isinstance(schedule.start(), ToldSchedule):
        raise TypeError(f"schedule '{schedule.kind}' has to be told what the steps find: iterate a Replay")
    return list(Replay(schedule, images, start=start, lag=lag))


def mean_interval(planned: Sequence[Planned]) -> float:
    """Frames a keyframe in a plan."""
    return len(planned) / len({where.key for where in planned})
