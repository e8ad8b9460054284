"""The frames of an evaluation, held in memory so that every variant sees the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_sdk.errors import FileFormatError, RecipeError, ShapeError, VideoError
from edge_sdk.progress import Silent
from edge_sdk.tasks import Prediction, Segmentation, Task
from edge_sdk.video import open_source
from edge_sdk.video.frame import Frame

# Called with the stage's name, steps done and steps in all (0: not known).
Tick = Callable[[str, int, int], None]

MEMORY_LIMIT_BYTES = 2 << 30
# Held per pixel: frame 3, labels 1, teacher's mask 1, warp map of the pair 4, and the largest passing set 1.
_BYTES_PER_PIXEL = 10


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one size.

    Args:
        uri: where they came from, without password.
        fps: their rate, frames a second.
        frames: renumbered from 0.
        truths: labels per frame; None where the source has none for it.
    """

    uri: str
    fps: float
    frames: tuple[Frame, ...]
    truths: tuple[Prediction | None, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def held_bytes(self) -> int:
        """Memory that it takes, with what an evaluation keeps beside the frames."""
        return sum(_BYTES_PER_PIXEL * math.prod(frame.image.shape[:2]) for frame in self.frames)

    @property
    def images(self) -> list[np.ndarray]:
        """The pictures, each (H, W, 3) uint8 BGR."""
        return [frame.image for frame in self.frames]

    @property
    def masks(self) -> tuple[Segmentation | None, ...]:
        """The labels of a segmentation.

        Raises:
            RecipeError: they are those of another task.
        """
        for truth in self.truths:
            if truth is not None and not isinstance(truth, Segmentation):
                raise RecipeError(
                    f"source {self.uri}: expected labels of a segmentation, found {type(truth).__name__}."
                )
        return tuple(truth for truth in self.truths if truth is None or isinstance(truth, Segmentation))

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width, _ = self.frames[0].image.shape
        return height, width

    @property
    def labelled(self) -> int:
        """How many frames have labels."""
        return sum(truth is not None for truth in self.truths)


def read_clip(
    uri: str,
    task: Task,
    size_hw: tuple[int, int],
    *,
    limit: int | None = None,
    labels: bool = True,
    memory_bytes: int = MEMORY_LIMIT_BYTES,
    tick: Tick | None = None,
) -> Clip:
    """Read the frames of ``uri``.

    Args:
        uri: any source that :func:`edge_sdk.video.open_source` knows.
        task: reads the labels.
        size_hw: height and width that the bundle takes.
        limit: most frames to read; None for all.
        labels: read the labels too, where the source has some.
        memory_bytes: refuse a clip whose frames and what is kept beside them take more.

    Raises:
        ShapeError: frames or labels have another size.
        RecipeError: the clip does not fit into memory, or is endless.
        VideoError: frames were lost on the way.
    """
    frames: list[Frame] = []
    truths: list[Prediction | None] = []
    tick = tick or Silent().update
    with open_source(uri, limit=limit) as source:
        uri = source.uri  # without password
        check_frame_size(uri, source.size_hw, size_hw)
        count = source.frame_count if source.frame_count is not None else limit
        if count is None and source.live:
            raise RecipeError(f"source {uri}: it never ends.", hint="Set `limit` to a number of frames.")
        room = memory_bytes // (_BYTES_PER_PIXEL * size_hw[0] * size_hw[1])
        _check_memory(uri, count or 0, room, size_hw, memory_bytes)
        for index, frame in enumerate(source):
            if frame.seq != index:
                raise VideoError(
                    f"{uri}: frame {frame.seq} came where {index} was due; an evaluation needs every frame.",
                    hint="Record the stream to a file and evaluate that.",
                )
            _check_memory(uri, index + 1, room, size_hw, memory_bytes)
            frames.append(Frame(frame.image, index, frame.captured_s))
            truths.append(truth_of(uri, frame, task, size_hw) if labels else None)
            tick("read", index + 1, count or 0)
        fps = source.fps
    return Clip(uri, fps, tuple(frames), tuple(truths))


def truth_of(uri: str, frame: Frame, task: Task, size_hw: tuple[int, int]) -> Prediction | None:
    """The labels of a frame, checked; None where there are none.

    Raises:
        ShapeError: they are of another size than the frame.
        FileFormatError: they hold ids, or names, that are no classes.
    """
    if frame.truth is None:
        return None
    try:
        truth = task.from_truth(frame.truth)
        if truth is None:
            return None
        if isinstance(truth, Segmentation) and truth.mask.shape != size_hw:
            shape = truth.mask.shape
            raise ShapeError(
                f"{uri}: labels of frame {frame.seq}: expected a mask of {size_hw}, got {shape}."
            )
        task.score().update(truth, truth)
    except FileFormatError as error:  # what is no class; better known now than after every pass
        raise FileFormatError(f"{uri}: labels of frame {frame.seq}: {error}") from error
    return truth


def check_frame_size(uri: str, found: tuple[int, int], expected: tuple[int, int]) -> None:
    """Refuse a source whose frames, ``found`` as (H, W), are not of the size that the bundle takes.

    Raises:
        ShapeError: naming both sizes.
    """
    if tuple(found) != tuple(expected):
        raise ShapeError(
            f"source {uri}: its frames are {found[0]} x {found[1]} (height x width), "
            f"the bundle takes {expected[0]} x {expected[1]}.",
            hint="Export the bundle for this size, or name another source.",
        )


def _check_memory(uri: str, count: int, room: int, size_hw: tuple[int, int], memory_bytes: int) -> None:
    if count > room:
        raise RecipeError(
            f"source {uri}: {count} or more frames of {size_hw[0]} x {size_hw[1]} and what is kept beside them "
            f"take more than the {memory_bytes / (1 << 30):.3g} GiB that an evaluation may use.",
            hint=f"Set `limit` to at most {room}.",
        )
