"""Pictures for the report: what every variant makes of the same frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_sdk.evaluate.baselines import copied, flowed
from edge_sdk.evaluate.clip import Clip
from edge_sdk.evaluate.evaluation import Example, Panel
from edge_sdk.evaluate.metrics import Planned, plan
from edge_sdk.optional import require
from edge_sdk.tasks import Segmentation, Task

_MAX_WIDTH = 480
_JPEG_QUALITY = 88


def farthest(frames: int, interval: int) -> list[int]:
    """Frames of phase 0 that lie ``interval`` - 1 frames after their keyframe."""
    return list(range(interval - 1, frames, interval))


def choose(delta: Mapping[int, np.ndarray], teacher: Sequence[Segmentation]) -> dict[int, str]:
    """Up to three of the frames in ``delta``: two evenly spaced, and where delta and teacher disagree most.

    Args:
        delta: (H, W) masks of the delta runner by frame, at least one.
        teacher: the teacher's mask per frame.

    Returns:
        Why each was chosen, by frame, in order of time.
    """
    indices = sorted(delta)
    wrong = {index: np.mean(delta[index] != teacher[index].mask) for index in indices}
    worst = max(indices, key=lambda index: wrong[index])
    chosen = {indices[len(indices) * part // 4]: "evenly spaced" for part in (1, 3)}
    chosen[worst] = f"delta and teacher disagree most here: on {wrong[worst]:.1%} of the pixels"
    return dict(sorted(chosen.items()))


def make_examples(
    clip: Clip, task: Task, teacher: Sequence[Segmentation], delta: Mapping[int, np.ndarray], interval: int
) -> tuple[Example, ...]:
    """Draw the chosen frames: the frame, its labels where there are any, teacher, copy, flow and delta.

    Args:
        clip: frames and labels.
        task: draws.
        teacher: the teacher's mask per frame.
        delta: masks of the delta runner at frames of :func:`farthest`.
        interval: frames from keyframe to keyframe.
    """
    planned = {where.index: where for where in plan(len(clip), interval, 0)}
    return tuple(
        _example(clip, task, teacher, delta[index], planned[index], why)
        for index, why in choose(delta, teacher).items()
    )


def _example(
    clip: Clip, task: Task, teacher: Sequence[Segmentation], delta: np.ndarray, where: Planned, why: str
) -> Example:
    # The keyframe and the frame itself are all that flow needs.
    steps = [Planned(where.key, 0), where]
    (_, _), (_, copy) = copied(steps, teacher)
    (_, _), (_, flow) = flowed(steps, teacher, clip.images)
    truth = clip.masks[where.index]
    masks = {
        "labels": None if truth is None else truth.mask,
        "teacher": teacher[where.index].mask,
        "copy": copy,
        "flow": flow,
        "delta": delta,
    }
    image = clip.frames[where.index].image
    panels = [Panel(title="frame", jpeg=_jpeg(image))]
    for title, mask in masks.items():
        if mask is not None:
            panels.append(Panel(title=title, jpeg=_jpeg(task.draw(image, Segmentation(mask), 0.6))))
    return Example(index=where.index, distance=where.distance, why=why, panels=tuple(panels))


def _jpeg(image: np.ndarray) -> bytes:
    cv2 = require("cv2", "drawing examples")
    height, width = image.shape[:2]
    if width > _MAX_WIDTH:
        size = (_MAX_WIDTH, max(1, round(height * _MAX_WIDTH / width)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return encoded.tobytes()
