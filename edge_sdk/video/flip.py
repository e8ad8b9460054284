"""Turning and mirroring pictures, by the names that jetson-utils uses."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import numpy as np

Flip = Literal[
    "none",
    "counterclockwise",
    "rotate-180",
    "clockwise",
    "horizontal",
    "vertical",
    "upper-right-diagonal",
    "upper-left-diagonal",
]

# nvvidconv's flip-method of each name.
FLIP_METHODS: dict[Flip, int] = {
    "none": 0,
    "counterclockwise": 1,
    "rotate-180": 2,
    "clockwise": 3,
    "horizontal": 4,
    "upper-right-diagonal": 5,
    "vertical": 6,
    "upper-left-diagonal": 7,
}

_SIDEWAYS = ("counterclockwise", "clockwise", "upper-right-diagonal", "upper-left-diagonal")


def before_flip(size_hw: tuple[int | None, int | None], flip: Flip) -> tuple[int | None, int | None]:
    """The size to ask a device for, so that it is ``size_hw`` once turned."""
    return size_hw[::-1] if flip in _SIDEWAYS else size_hw


def flipped(cv2: ModuleType, image: np.ndarray, flip: Flip) -> np.ndarray:
    """``image``, (H, W, 3), turned as ``flip`` says; itself for ``none``."""
    if flip == "none":
        return image
    turned: np.ndarray
    if flip in ("horizontal", "vertical"):
        turned = cv2.flip(image, 1 if flip == "horizontal" else 0)
    elif flip == "upper-left-diagonal":  # mirrored on the diagonal that begins there
        turned = cv2.transpose(image)
    elif flip == "upper-right-diagonal":
        turned = cv2.rotate(cv2.transpose(image), cv2.ROTATE_180)
    else:
        codes = {
            "clockwise": cv2.ROTATE_90_CLOCKWISE,
            "counterclockwise": cv2.ROTATE_90_COUNTERCLOCKWISE,
            "rotate-180": cv2.ROTATE_180,
        }
        turned = cv2.rotate(image, codes[flip])
    return turned
