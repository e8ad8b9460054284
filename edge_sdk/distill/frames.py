"""Training frames: read once into memory, viewed through random crops, and turned into network input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.distill.recipes import Augment, Preprocess
from edge_sdk.errors import RecipeError, ShapeError
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video.source import open_source

MEMORY_LIMIT_BYTES = 8 << 30


@dataclass(frozen=True)
class FrameSet:
    """Frames of one or more sources.

    Attributes:
        images: each (H, W, 3) uint8 BGR.
        masks: each (H, W) uint8 class ids or ``None``; as many as images.
        clips: ``[start, stop)`` of each run of consecutive frames.
    """

    images: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray | None, ...]
    clips: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def read(cls, uris: Sequence[str], *, labelled: bool = False, task: TaskSpec | None = None) -> FrameSet:
        """Read every frame of every source; one source is one clip.

        Args:
            uris: sources, see :func:`edge_sdk.video.open_source`.
            labelled: refuse frames without a mask.
            task: where given, masks may only hold its classes and its ignore label.

        Raises:
            RecipeError: no source, no labels where they are needed, unknown class ids, or too much for memory.
            ShapeError: frames of different sizes.
        """
        if not uris:
            raise RecipeError("'data': expected at least one source, got none.")
        images: list[np.ndarray] = []
        masks: list[np.ndarray | None] = []
        clips: list[tuple[int, int]] = []
        for uri in uris:
            start = len(images)
            with open_source(uri) as source:
                if source.live:
                    raise RecipeError(f"'data': expected recorded frames, got the live source {source.uri}.")
                for frame in source:
                    mask = frame.truth.mask if frame.truth is not None else None
                    if labelled and mask is None:
                        raise RecipeError(
                            f"'data': expected labels, but frame {frame.seq} of {uri} has none.",
                            hint="Give a folder with images/ and labels/, or a synthetic: source.",
                        )
                    images.append(frame.image)
                    masks.append(mask)
                    if len(images) * frame.image.nbytes * 4 / 3 > MEMORY_LIMIT_BYTES:
                        raise RecipeError(
                            f"'data': {len(images)} frames exceed {MEMORY_LIMIT_BYTES >> 30} GiB of memory at {uri}.",
                            hint="Name fewer sources or cut them into shorter clips.",
                        )
            clips.append((start, len(images)))
        found = cls(tuple(images), tuple(masks), tuple(clips))
        found._check(task, uris)
        return found

    def _check(self, task: TaskSpec | None, uris: Sequence[str]) -> None:
        sizes = {self.images[start].shape[:2]: uri for uri, (start, _) in zip(uris, self.clips, strict=True)}
        if len(sizes) > 1:
            listed = ", ".join(f"{height} x {width} in {uri}" for (height, width), uri in sizes.items())
            raise ShapeError(
                f"'data': expected frames of one size (height x width), got {listed}.",
                hint="Resize them, or train on one size at a time.",
            )
        if task is None:
            return
        known = np.zeros(256, bool)
        known[: len(task.classes)] = True
        known[task.ignore_label] = True
        for index, mask in enumerate(self.masks):
            if mask is not None and not known[mask].all():
                ids = sorted(set(np.unique(mask[~known[mask]]).tolist()))
                clips = zip(uris, self.clips, strict=True)
                uri, first = next((uri, start) for uri, (start, stop) in clips if index < stop)
                raise RecipeError(
                    f"'task.classes': frame {index - first} of {uri} is labelled with ids {ids}, "
                    f"expected 0..{len(task.classes) - 1} or ignore_label {task.ignore_label}.",
                    hint="Name every class of the labels, or map the ids in the label images.",
                )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of every frame."""
        height, width = self.images[0].shape[:2]
        return height, width

    def class_share(self, classes: int) -> np.ndarray:
        """Share of labelled pixels of each class, (classes,) float64."""
        counts = np.zeros(256, np.int64)
        for mask in self.masks:
            if mask is not None:
                counts += np.bincount(mask.ravel(), minlength=256)
        kept = counts[:classes]
        return kept / max(int(kept.sum()), 1)


class View:
    """One random crop: the same zoom, place, mirror and colour for every frame it is applied to."""

    def __init__(self, rng: np.random.Generator, augment: Augment, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        self.out_hw = augment.crop_hw or size_hw
        out_h, out_w = self.out_hw
        zoom = float(np.exp(rng.uniform(*np.log(augment.scale))))
        # Source window seen by the crop; where it is larger than the frame, the rest is ignored pixels.
        win_h, win_w = out_h / zoom, out_w / zoom
        top = rng.uniform(min(0, height - win_h), max(0, height - win_h))
        left = rng.uniform(min(0, width - win_w), max(0, width - win_w))
        mirror = rng.random() < augment.flip
        step = -1 / zoom if mirror else 1 / zoom
        self.to_source = np.array(
            [[step, 0, left + (win_w - 1 / zoom if mirror else 0)], [0, 1 / zoom, top], [0, 0, 1]]
        )
        if augment.turn is not None:
            self.to_source = self.to_source @ _turned(
                np.deg2rad(rng.uniform(-1, 1) * augment.turn), self.out_hw
            )
        gain = 1 + rng.uniform(-1, 1, 3) * augment.colour * 0.5 + rng.uniform(-1, 1) * augment.colour
        offset = rng.uniform(-1, 1) * augment.colour * 64
        levels = np.arange(256)[:, None] * gain + offset
        self.table = np.clip(levels, 0, 255).astype(np.uint8)[None]

    def image(self, image: np.ndarray) -> np.ndarray:
        """Crop of an image (H, W, 3) uint8 BGR."""
        height, width = self.out_hw
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out = cv2.warpPerspective(
            image, self.to_source, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
        return cv2.LUT(out, self.table)

    def mask(self, mask: np.ndarray, ignore: int) -> np.ndarray:
        """Crop of a label mask (H, W) uint8; pixels from outside the frame become ``ignore``."""
        height, width = self.out_hw
        return cv2.warpPerspective(
            mask, self.to_source, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=float(ignore),
        )  # fmt: skip


def _turned(angle: float, size_hw: tuple[int, int]) -> np.ndarray:
    """Rotation (3, 3) about the middle of a picture, in radians."""
    middle_y, middle_x = (size_hw[0] - 1) / 2, (size_hw[1] - 1) / 2
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array(
        [
            [cosine, -sine, middle_x - cosine * middle_x + sine * middle_y],
            [sine, cosine, middle_y - sine * middle_x - cosine * middle_y],
            [0, 0, 1],
        ]
    )


class FrameToInput(nn.Module):
    """Camera frames (N, H, W, 3) uint8 BGR to normalised network input (N, 3, h, w) float32.

    Resized first and normalised in the camera's channel order, then swapped: the result is that of any other order, and
    engines for CPUs need up to a third less time than where a frame of interleaved channels is swapped.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.swap = preprocess.order == "RGB"
        self.size_hw = preprocess.size_hw
        std = torch.tensor(preprocess.std).view(1, 3, 1, 1)
        mean = torch.tensor(preprocess.mean).view(1, 3, 1, 1)
        if self.swap:
            std, mean = std.flip(1), mean.flip(1)
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Network input of ``frames``."""
        x = frames.permute(0, 3, 1, 2).float()
        if self.size_hw is not None:
            x = shrunk(x, self.size_hw)
        x = x * self.scale + self.shift
        return torch.cat((x[:, 2:3], x[:, 1:2], x[:, 0:1]), 1) if self.swap else x


def shrunk(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """``x`` (N, C, H, W) resized bilinearly to (N, C, h, w)."""
    # At exactly half, bilinear sampling is the mean of two neighbours, and engines pool several times faster.
    height, width = (1 + (2 * wanted == given) for wanted, given in zip(size_hw, x.shape[-2:], strict=True))
    if (height, width) != (1, 1):
        x = nn.functional.avg_pool2d(x, (height, width))
    if tuple(x.shape[-2:]) != size_hw:
        x = nn.functional.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)
    return x
