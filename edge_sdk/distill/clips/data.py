"""Labelled clips for training: read once into memory, as frames or as feature vectors, and drawn in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from edge_sdk.distill import frames as frames_module
from edge_sdk.distill.clips.features import FeatureClip, features_of, is_features
from edge_sdk.distill.clips.recipes import ClipData
from edge_sdk.distill.clips.targets import targets_by_number, targets_of
from edge_sdk.distill.clips.view import ClipView
from edge_sdk.distill.loop import Batch
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.progress import Progress, Silent
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video.labelled import ClipList, LabelledClip, open_clips

# Bytes of an image pixel.
_PIXEL = 3


def read_clips(
    uris: Sequence[str],
    data: ClipData,
    task: TaskSpec,
    *,
    labelled: bool = True,
    progress: Progress | None = None,
) -> ClipSet | FeatureSet:
    """The clips that ``uris`` (such as ``data.train`` or ``data.validation``) name, with the settings of ``data``.

    With ``labelled`` off their labels are not looked at, and all targets are NaN.

    Raises:
        RecipeError: frames and features together, or what :meth:`ClipSet.read` and :meth:`FeatureSet.read` refuse.
    """
    of_features = [uri for uri in uris if is_features(uri)]
    if not of_features:
        return ClipSet.read(uris, data.length, task, data.size_hw, labelled=labelled, progress=progress)
    if len(of_features) < len(uris):
        other = next(uri for uri in uris if uri not in of_features)
        raise RecipeError(
            f"'data': expected frames or features alone, got features {of_features[0]} and {other}."
        )
    return FeatureSet.read(uris, data.length, task, labelled=labelled, progress=progress)


def joined(first: ClipSet | FeatureSet, further: ClipSet | FeatureSet) -> ClipSet | FeatureSet:
    """Both as one.

    Raises:
        ShapeError: frames of different sizes, or frames and features.
    """
    names, targets = first.names + further.names, np.concatenate([first.targets, further.targets])
    if isinstance(first, ClipSet) and isinstance(further, ClipSet) and first.size_hw == further.size_hw:
        return ClipSet(np.concatenate([first.clips, further.clips]), targets, names)
    if (
        isinstance(first, FeatureSet)
        and isinstance(further, FeatureSet)
        and first.features == further.features
    ):
        counts = np.concatenate([first.counts, further.counts])
        return FeatureSet(np.concatenate([first.quantised, further.quantised]), counts, targets, names)
    raise ShapeError(
        f"'unlabelled': expected clips like those of 'data.train', {first.names[0]} and {further.names[0]} differ "
        "in kind or size.",
        hint="Set 'data.size_hw' to bring frames to one size.",
    )


@dataclass(frozen=True)
class ClipSet:
    """Clips as frames.

    Attributes:
        clips: (N, length, H, W, 3) uint8 BGR.
        targets: (N, classes) float32, 1 where a clip is of a class, else 0; NaN where labels are not known.
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
        labelled: bool = True,
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
            labelled: look at their labels; without, all targets are NaN.
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
        targets = np.full((len(listed), len(task.classes)), np.nan, np.float32)
        for target, clip in zip(targets, listed if labelled else (), strict=labelled):
            target[:] = targets_of(clip.labels, task, clip.name)
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


@dataclass(frozen=True)
class FeatureSet:
    """Clips as feature vectors of their frames, such as those of YouTube-8M.

    In memory they are as their files have them, one byte a value; what is handed out is float32.

    Attributes:
        quantised: (N, length, D) uint8, zeros after the last frame of a shorter clip.
        counts: (N,) int64, real frames of each clip, at most ``length``.
        targets: (N, classes) float32, 1 where a clip is of a class, else 0; NaN where labels are not known.
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
        cls, uris: Sequence[str], length: int, task: TaskSpec, *, labelled: bool = True,
        progress: Progress | None = None,
    ) -> FeatureSet:  # fmt: skip
        """Read every clip: its first ``length`` frames, a shorter one filled up with zeros, as published.

        Args:
            uris: TFRecord files or folders of them, see :func:`edge_sdk.distill.clips.features.features_of`.
            length: frames to keep of each clip, in YouTube-8M 300.
            task: a classification; a label is the position of a class in it.
            labelled: look at their labels; without, all targets are NaN.
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
        targets = np.full((len(found), len(task.classes)), np.nan, np.float32)
        for target, clip in zip(targets, found if labelled else (), strict=labelled):
            target[:] = targets_by_number(clip, task)
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
