"""Where the loss counts more: inside boxes around the teacher's objects."""

from __future__ import annotations

import cv2
import numpy as np

from edge_sdk.adapt.settings import OnlineLoss


def box_weights(label: np.ndarray, classes: int, settings: OnlineLoss) -> np.ndarray:
    """Weight of each pixel in the loss.

    The teacher's boxes come with its masks where it detects objects; a mask alone has them as the boxes around the
    connected parts (of eight neighbours) of each class but the background.

    Args:
        label: (H, W) uint8 class ids; what is no class has no boxes.
        classes: how many there are; 0 is background.
        settings: weight, margin, the fewest pixels of a part that gets a box, and the largest box.

    Returns:
        (H, W) float32: ``box_weight`` inside a box, 1 elsewhere.
    """
    weights = np.ones(label.shape, np.float32)
    if settings.box_weight == 1:
        return weights
    height, width = label.shape
    present = np.flatnonzero(np.bincount(label.ravel(), minlength=classes)[1:classes]) + 1
    for index in present.tolist():
        parts = cv2.connectedComponentsWithStats((label == index).view(np.uint8), connectivity=8)[2][1:]
        for left, top, wide, high, pixels in parts.tolist():
            if pixels < settings.box_least or wide * high > settings.box_most * label.size:
                continue
            x, y = round(settings.box_margin * wide), round(settings.box_margin * high)
            rows = slice(max(top - y, 0), min(top + high + y, height))
            weights[rows, max(left - x, 0) : min(left + wide + x, width)] = settings.box_weight
    return weights
