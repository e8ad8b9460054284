"""Random changes of clips in training."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from edge_sdk.distill.clips.recipes import ClipData


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


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Places along a side as places inside it, mirrored at the outermost pixels."""
    if size == 1:
        return np.zeros_like(places)
    period = 2 * (size - 1)
    inside = places % period
    return np.minimum(inside, period - inside)
