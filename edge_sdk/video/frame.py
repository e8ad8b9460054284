"""A frame, and what a labelled source knows to be true about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Labels of one frame; a kind of label that the source does not have is ``None``.

    Args:
        mask: (H, W) uint8 class ids; 255 is ignored by every score.
        boxes: (N, 5) float32 ``[x0, y0, x1, y1, class]`` in pixels, ``x1`` and ``y1`` exclusive.
        labels: names of the classes of the clip that the frame is part of.
    """

    mask: np.ndarray | None = None
    boxes: np.ndarray | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a stream. The arrays belong to whoever holds the frame; no source writes to them again.

    Args:
        image: (H, W, 3) uint8, BGR, C-contiguous.
        seq: 0-based count of the frames of this stream; a jump means that frames were lost. Frames left out
            on request (``start``, ``stride``) are not lost and make no jump.
        captured_s: capture time in seconds: media time (frame index / fps) for files, folders and synthetic
            scenes, ``time.monotonic()`` for cameras.
        truth: labels, from labelled sources only.
    """

    image: np.ndarray
    seq: int
    captured_s: float
    truth: Truth | None = None
