"""Labelled clips for training: read once into memory, as frames or as feature vectors, and drawn in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from edge_sdk.distill import frames as frames_module
from edge_sdk.distill.clips.features import FeatureClip, features_of, is_features
from edge_sdk.distill.clips.recipes import ClipData
from edge_sdk.distill.clips.targets import targets_by_number, targets_of
from edge_sdk.distill.loop import Batch
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.progress import Progress, Silent
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video.labelled import ClipList, LabelledClip, open_clips

# Bytes of an image pixel.
_PIXEL = 3


def read_clips(
    uris: Sequence[str], data: ClipData, task: TaskSpec, *, progress: Progress | None = None
) -> ClipSet | FeatureSet:
    """The clips that ``uris`` (``data.train`` or ``data.validation``) name, with the settings of ``data``.

    Raises:
        RecipeError: frames and features together, or what :meth:`ClipSet.read` and :meth:`FeatureSet.read` refuse.
    """
    of_features = [uri for uri in uris if is_features(uri)]
    if not of_features:
        return ClipSet.read(uris, data.length, task, data.size_hw, progress=progress)
    if len(of_features) < len(uris):
        other = next(uri for uri in uris if uri not in of_features)
        raise RecipeError(
            f"'data': expected frames or features alone, got features {of_features[0]} and {other}."
        )
    return FeatureSet.read(uris, data.length, task, progress=progress)


@dataclass(frozen=True)
class ClipSet:
    """Clips as frames.

    Attributes:
        clips: (N, length, H, W, 3) uint8 BGR.
        targets: (N, classes) float32, 1 where a clip is of a class, else 0.
        names: of the clips, as in their list.
    """

    clips: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def length(self) -> int:
        """Frames of every clip."""
        return int(self.clips.shape[1])

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of every frame."""
        return int(self.clips.shape[2]), int(self.clips.shape[3])

    @classmethod
    def read(
        cls,
        uris: Sequence[str],
        length: int,
        task: TaskSpec,
        size_hw: tuple[int, int] | None = None,
        *,
        progress: Progress | None = None,
    ) -> ClipSet:
        """Read ``length`` frames of every clip: of n frames those at i * n // length.

        Args:
            uris: lists of clips, see :func:`edge_sdk.video.open_clips`.
            length: frames to keep of each.
            task: a classification; its classes are all that clips may be labelled with, and without ``multi_label``
                every clip has one label.
            size_hw: height and width that frames are brought to, the whole frame to the whole picture as in the
                exported graphs, by the mean over areas where it is made smaller. None keeps them.
            progress: told of every clip.

        Raises:
            RecipeError: no clips, labels that the task does not have, a clip that is too short, too much for memory.
            ShapeError: frames of different sizes and no ``size_hw``.
            EdgeSdkError: what the clips raise.
        """
        progress = progress or Silent()
        lists = [open_clips(uri) for uri in _some(uris)]
        listed = [clip for clips in lists for clip in clips]
        # Before any frame is read, which may take long.
        targets = np.stack([targets_of(clip.labels, task, clip.name) for clip in listed])
        kept: np.ndarray | None = None
        for number, clip in enumerate(listed):
            images = _images(clip, length, size_hw)
            if kept is None:
                kept = _room((len(listed), length, *images[0].shape), lists)
            if images[0].shape != kept.shape[2:]:
                raise ShapeError(
                    f"'data': expected frames of one size (height x width), got {_size(images[0].shape)} in "
                    f"{clip.name} and {_size(kept.shape[2:])} in {listed[0].name}.",
                    hint="Set 'data.size_hw' to bring them to one.",
                )
            kept[number] = images
            progress.update("read clips", number + 1, len(listed))
        return cls(_there(kept), targets, tuple(clip.name for clip in listed))

    def take(self, which: Sequence[int] | np.ndarray, seen: np.ndarray | None = None) -> Batch:
        """Clips as they are.

        Args:
            which: numbers of the clips.
            seen: indices of the frames wanted, (frames,), or (n, frames) for each clip its own; None for all.

        Returns:
            ``clip`` (n, frames, H, W, 3) uint8 BGR and ``target`` (n, classes) float32.
        """
        rows = np.asarray(which)
        clips = self.clips[rows] if seen is None else self.clips[rows[:, None], np.asarray(seen)]
        return {"clip": torch.from_numpy(clips), "target": torch.from_numpy(self.targets[rows])}

    def batch(
        self,
        rng: np.random.Generator,
        size: int,
        augment: ClipData | None = None,
        seen: np.ndarray | None = None,
    ) -> Batch:
        """Clips drawn at random, none twice where there are enough, each changed in one way over all of its frames.

        Args:
            rng: draws everything, in an order that does not depend on ``seen``.
            size: clips.
            augment: its ``flip``, ``colour`` and ``shift``; None changes nothing.
            seen: indices of the frames wanted, (frames,), or (n, frames) for each clip its own; None for all.

        Returns:
            As :meth:`take`.
        """
        found = self.take(_draw(rng, len(self), size), seen)
        if augment is not None:
            for clip in found["clip"].numpy():
                clip[:] = ClipView(rng, augment, self.size_hw).apply(clip)
        return found


class ClipView:
    """One random change: the same mirror, place and colour for every frame of a clip.

    Args:
        rng: draws it.
        augment: ranges of the change.
        size_hw: of the frames.
    """

    def __init__(self, rng: np.random.Generator, augment: ClipData, size_hw: tuple[int, int]) -> None:
        self.mirror = bool(rng.random() < augment.flip)
        down, right = (round(value) for value in rng.uniform(-1, 1, 2) * augment.shift * size_hw)
        self._rows = _mirrored(np.arange(size_hw[0]) - down, size_hw[0])
        columns = _mirrored(np.arange(size_hw[1]) - right, size_hw[1])
        self._columns = columns[::-1] if self.mirror else columns
        gain = (1 + rng.uniform(-1, 1) * augment.colour) * (1 + rng.uniform(-1, 1, 3) * augment.colour)
        levels = np.rint(np.arange(256)[:, None] * gain)
        self._table = np.clip(levels, 0, 255).astype(np.uint8)[None]

    def apply(self, clip: np.ndarray) -> np.ndarray:
        """``clip`` (T, H, W, 3) uint8 BGR, changed; what was outside the picture mirrors what is inside."""
        moved = np.take(np.take(clip, self._rows, axis=1), self._columns, axis=2)
        flat: Any = cv2.LUT(moved.reshape(-1, moved.shape[2], 3), self._table)
        return flat.reshape(moved.shape)


@dataclass(frozen=True)
class FeatureSet:
    """Clips as feature vectors of their frames, such as those of YouTube-8M.

    In memory they are as their files have them, one byte a value; what is handed out is float32.

    Attributes:
        quantised: (N, length, D) uint8, zeros after the last frame of a shorter clip.
        counts: (N,) int64, real frames of each clip, at most ``length``.
        targets: (N, classes) float32, 1 where a clip is of a class, else 0.
        names: of the clips.
    """

    quantised: np.ndarray
    counts: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.quantised)

    @property
    def length(self) -> int:
        """Frames of every clip, those of a shorter one filled up with zeros."""
        return int(self.quantised.shape[1])

    @property
    def features(self) -> int:
        """Values a frame."""
        return int(self.quantised.shape[2])

    @classmethod
    def read(
        cls, uris: Sequence[str], length: int, task: TaskSpec, *, progress: Progress | None = None
    ) -> FeatureSet:
        """Read every clip: its first ``length`` frames, a shorter one filled up with zeros, as published.

        Args:
            uris: TFRecord files or folders of them, see :func:`edge_sdk.distill.clips.features.features_of`.
            length: frames to keep of each clip, in YouTube-8M 300.
            task: a classification; a label is the position of a class in it.
            progress: told of every clip.

        Raises:
            RecipeError: no clips, labels that the task does not have, too much for memory.
            FileFormatError: a file that is damaged or of another layout.
            MissingFileError: no such file or folder.
        """
        progress = progress or Silent()
        found: list[FeatureClip] = []
        total = 0
        for uri in _some(uris):
            for clip in features_of(uri, length):
                found.append(clip)
                total += length * clip.values.shape[1]
                # Twice: as they come, and put together.
                if 2 * total > frames_module.MEMORY_LIMIT_BYTES:
                    raise _too_much(f"{len(found)} clips of {length} frames", uri)
                progress.update("read clips", len(found), 0)
        width = found[0].values.shape[1]
        quantised = np.zeros((len(found), length, width), np.uint8)
        for number, clip in enumerate(found):
            if clip.values.shape[1] != width:
                raise ShapeError(
                    f"'data': expected features of one width, got {clip.values.shape[1]} in {clip.name} and {width} "
                    f"in {found[0].name}."
                )
            quantised[number, : len(clip.values)] = clip.values
        targets = np.stack([targets_by_number(clip, task) for clip in found])
        counts = np.array([len(clip.values) for clip in found], np.int64)
        return cls(quantised, counts, targets, tuple(clip.name for clip in found))

    def take(self, which: Sequence[int] | np.ndarray, seen: np.ndarray | None = None) -> Batch:
        """Clips in about -2 to 2 (:func:`dequantised`), then each frame divided by its Euclidean norm; fill is zero.

        Args:
            which: numbers of the clips.
            seen: indices of the frames wanted, (frames,), or (n, frames) for each clip its own; None for all.

        Returns:
            ``clip`` (n, frames, D) float32, ``target`` (n, classes) float32 and ``count`` (n,) int64, the real frames
            of each whole clip.
        """
        rows = np.asarray(which)
        frames = np.arange(self.length) if seen is None else np.asarray(seen)
        values = dequantised(self.quantised[rows[:, None], frames])
        values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), np.float32(1e-6))
        values *= (frames < self.counts[rows, None])[..., None]
        return {
            "clip": torch.from_numpy(values),
            "target": torch.from_numpy(self.targets[rows]),
            "count": torch.from_numpy(self.counts[rows]),
        }

    def batch(
        self,
        rng: np.random.Generator,
        size: int,
        augment: ClipData | None = None,
        seen: np.ndarray | None = None,
    ) -> Batch:
        """Clips drawn at random, none twice where there are enough.

        Args:
            rng: draws them.
            size: clips.
            augment: what it says of pictures has no meaning here.
            seen: indices of the frames wanted, (frames,), or (n, frames) for each clip its own; None for all.

        Returns:
            As :meth:`take`.
        """
        return self.take(_draw(rng, len(self), size), seen)


def dequantised(values: np.ndarray) -> np.ndarray:
    """Bytes x as x * 4 / 255 + 4 / 512 - 2, about -2 to 2, float32, as published with YouTube-8M."""
    return values.astype(np.float32) * np.float32(4 / 255) + np.float32(4 / 512 - 2)


def _some(uris: Sequence[str]) -> Sequence[str]:
    if not uris:
        raise RecipeError("'data': expected at least one list of clips, got none.")
    return uris


def _draw(rng: np.random.Generator, there: int, size: int) -> np.ndarray:
    return rng.choice(there, size, replace=size > there)


def _images(clip: LabelledClip, length: int, size_hw: tuple[int, int] | None) -> list[np.ndarray]:
    """``length`` frames spread evenly over a clip, each (H, W, 3) uint8 BGR."""
    with clip.open() as source:
        if source.live:
            raise RecipeError(f"'data': expected recorded clips, {clip.name} is live.")
        # A container may announce another number of frames than it holds; then they are counted and read again.
        count = source.frame_count or sum(1 for _ in source)
        while True:
            if count < length:
                raise RecipeError(
                    f"'data.length': clip {clip.name} has {count} frames, expected at least {length}.",
                    hint="Lower 'length', or leave the clip out.",
                )
            wanted = {i * count // length for i in range(length)}
            images, there = [], 0
            for frame in source:
                if there in wanted:
                    images.append(_sized(frame.image, size_hw))
                there += 1
            if there == count:
                return images
            count = there


def _sized(image: np.ndarray, size_hw: tuple[int, int] | None) -> np.ndarray:
    if size_hw is None or image.shape[:2] == tuple(size_hw):
        return image
    smaller = size_hw[0] <= image.shape[0] and size_hw[1] <= image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=how)


def _room(shape: tuple[int, ...], lists: Sequence[ClipList]) -> np.ndarray:
    limit = frames_module.MEMORY_LIMIT_BYTES
    if int(np.prod(shape, dtype=np.int64)) > limit:
        raise _too_much(f"{shape[0]} clips of {shape[1]} frames of {_size(shape[2:])}", lists[0].uri)
    return np.empty(shape, np.uint8)


def _too_much(what: str, where: str) -> RecipeError:
    return RecipeError(
        f"'data': {what} exceed {frames_module.MEMORY_LIMIT_BYTES / (1 << 30):g} GiB of memory at {where}.",
        hint="Name fewer clips, or lower 'data.length' or 'data.size_hw'.",
    )


def _there(kept: np.ndarray | None) -> np.ndarray:
    if kept is None:
        raise RecipeError("'data': expected at least one clip, found none.")
    return kept


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Places along a side as places inside it, mirrored at the outermost pixels."""
    if size == 1:
        return np.zeros_like(places)
    period = 2 * (size - 1)
    inside = places % period
    return np.minimum(inside, period - inside)
