"""Which keyframe each frame of a clip rests on under any schedule: decided by the schedule itself, no step is run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_sdk.evaluate.metrics import Planned
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import ScheduleSettings


def replay(
    schedule: ScheduleSettings, images: Sequence[np.ndarray], *, start: int = 0, lag: int | None = None
) -> list[Planned]:
    """What a stream that begins at frame ``start`` does with the frames.

    Args:
        schedule: decides, from the pictures where it looks at them.
        images: (H, W, 3) uint8 BGR frames of the clip.
        start: first frame of the stream; frames before it are in no plan.
        lag: frames from the one that a keyframe beside the frames is taken from to the first one that rests on it, at
            least 1; None runs keyframes in turn.
    """
    rule = schedule.start()
    planned: list[Planned] = []
    key, running = start, -1
    for index in range(start, len(images)):
        if lag is not None and 0 <= running <= index - lag:
            key, running = running, -1
        age = None if index == start else index - key
        due = rule.decide(images[index], age) is StepKind.KEYFRAME
        if age is None or (due and lag is None):
            key = index
        elif due and running < 0:
            running = index
        planned.append(Planned(index, index - key, counted=True))
    return planned


def mean_interval(planned: Sequence[Planned]) -> float:
    """Frames a keyframe in a plan."""
    return len(planned) / len({where.key for where in planned})
