"""Optical flow as this package uses it everywhere: OpenCV's DIS, preset medium, on grey frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_sdk.optional import require

METHOD = (
    "OpenCV DIS optical flow, preset medium, on grey frames, no filtering; nearest sampling, borders repeated"
)


class FlowWarp:
    """Estimates dense flow and moves masks along it.

    Flow runs from the frame that is wanted to the frame whose mask is known, so that every wanted pixel looks up
    where it came from: warping backwards leaves neither holes nor overlaps. Nothing is carried from call to call.

    Raises:
        DependencyError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        self._cv2: Any = require("cv2", "optical flow")
        self._dis = self._cv2.DISOpticalFlow_create(self._cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._grid = np.empty((0, 0, 2), np.float32)

    def grey(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR as (H, W) uint8 grey."""
        return self._cv2.cvtColor(image, self._cv2.COLOR_BGR2GRAY)

    def lookup(self, wanted_grey: np.ndarray, known_grey: np.ndarray) -> np.ndarray:
        """Where each pixel of one frame lies in another.

        Args:
            wanted_grey: (H, W) uint8 frame for which a mask is wanted.
            known_grey: (H, W) uint8 frame whose mask is known.

        Returns:
            (H, W, 2) int16: column and row in the known frame, rounded to the nearest pixel; may lie outside.
        """
        flow = self._dis.calc(wanted_grey, known_grey, None)
        if self._grid.shape != flow.shape:
            rows, columns = np.indices(flow.shape[:2], np.float32)
            self._grid = np.stack([columns, rows], axis=-1)
        flow += self._grid
        # Rounding here is what nearest sampling would do, at half the memory of float.
        np.rint(flow, out=flow)
        return flow.astype(np.int16)

    def warp(self, mask: np.ndarray, lookup: np.ndarray) -> np.ndarray:
        """``mask`` (H, W) uint8 looked up at ``lookup``; outside the frame the border pixel counts."""
        cv2 = self._cv2
        return cv2.remap(mask, lookup, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
