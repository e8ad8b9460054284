"""One labelled clip in memory, its frames spread as in training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.errors import FileFormatError, RecipeError
from edge_sdk.evaluate.clip import MEMORY_LIMIT_BYTES, check_frame_size
from edge_sdk.tasks.base import Classification
from edge_sdk.video.frame import Frame

if TYPE_CHECKING:
    from edge_sdk.tasks import Task
    from edge_sdk.video.base import VideoSource


@dataclass(frozen=True)
class LoadedClip:
    """Frames of one clip, and what it shows.

    Args:
        name: as its list calls it.
        fps: frames a second, of the frames kept.
        frames: renumbered from 0.
        truth: scores of 1 for its classes.
    """

    name: str
    fps: float
    frames: tuple[Frame, ...]
    truth: Classification

    def right(self, scores: np.ndarray) -> bool:
        """Whether the best class of ``scores`` (classes,) is one of its own."""
        return bool(self.truth.scores[int(np.argmax(scores))] > 0)


def read_clip(
    name: str, source: VideoSource, length: int, size_hw: tuple[int, int], task: Task
) -> LoadedClip:
    """Read ``length`` frames, spread evenly over the clip: frame ``i * frames // length`` of it.

    Args:
        name: of the clip, for messages.
        source: the clip, opened; it stays the caller's.
        size_hw: height and width that the bundles take.
        task: reads the labels.

    Raises:
        RecipeError: the clip is shorter, or without labels.
        ShapeError: its frames have another size.
        FileFormatError: its labels are no classification.
    """
    check_frame_size(name, source.size_hw, size_hw)
    count = source.frame_count
    wanted = None if count is None else {index * count // length for index in range(length)}
    kept = [frame for place, frame in enumerate(source) if wanted is None or place in wanted]
    if len(kept) < length:
        raise RecipeError(
            f"clip {name}: it has {len(kept) if count is None else count} frames, expected at least {length}.",
            hint="Leave it out of the list, or export bundles for shorter clips.",
        )
    spread = [kept[index * len(kept) // length] for index in range(length)]
    labels = spread[0].truth
    truth = None if labels is None else task.from_truth(labels)
    if truth is None:
        raise RecipeError(f"clip {name}: it has no labels.", hint="Evaluate on a list of labelled clips.")
    if not isinstance(truth, Classification):
        raise FileFormatError(
            f"clip {name}: expected the names of its classes, got a {type(truth).__name__}."
        )
    fps = source.fps * length / (count or len(kept))
    frames = tuple(replace(frame, seq=place, truth=None) for place, frame in enumerate(spread))
    return LoadedClip(name, fps, frames, truth)


def check_memory(clips: int, length: int, size_hw: tuple[int, int], limit: int = MEMORY_LIMIT_BYTES) -> None:
    """Refuse to hold ``clips`` of ``length`` frames that would take more than ``limit`` bytes.

    Raises:
        RecipeError: naming how many may be.
    """
    each = length * size_hw[0] * size_hw[1] * 3
    if clips * each > limit:
        raise RecipeError(
            f"timed: {clips} clips of {length} frames of {size_hw[0]} x {size_hw[1]} take more than the "
            f"{limit / (1 << 30):.3g} GiB that an evaluation may use.",
            hint=f"Set `timed` to at most {limit // each}." if limit >= each else "Evaluate shorter clips.",
        )
