"""Semantic segmentation: one class a pixel, scored by mean intersection over union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edge_sdk.errors import BundleError, FileFormatError, ShapeError
from edge_sdk.optional import require
from edge_sdk.tasks.base import Prediction, Score, Segmentation, TaskSpec
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.video.frame import Truth


class SegmentationTask:
    """Reads the graph output ``mask``, (H, W) uint8 class ids at frame size.

    Args:
        spec: classes, colours and the label that is not scored.
    """

    output_names: tuple[str, ...] = ("mask",)

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._table = np.zeros((256, 3), np.uint8)
        self._table[: len(spec.classes)] = spec.colours()

    def check_outputs(self, outputs: Sequence[TensorSpec], frame: TensorSpec) -> None:
        """Check that ``mask`` is (H, W) uint8 with the frame's H and W.

        Raises:
            BundleError: it is not.
        """
        (mask,) = outputs
        if mask.shape != frame.shape[:2] or mask.dtype != "uint8":
            raise BundleError(
                f"output 'mask': expected {frame.shape[:2]} uint8 for frames of {frame.shape}, "
                f"got {mask.shape} {mask.dtype}.",
                hint="Export again with upsampling to frame size and argmax in the graph.",
            )

    def decode(self, outputs: Mapping[str, np.ndarray]) -> Segmentation:
        """The mask as it lies in the runner's memory, not a copy."""
        return Segmentation(outputs["mask"])

    def encode(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The mask as graph output."""
        return {"mask": _mask_of(prediction)}

    def from_truth(self, truth: Truth) -> Segmentation | None:
        """The truth mask as a prediction, or None where there is none."""
        return None if truth.mask is None else Segmentation(truth.mask)

    def agreeing(self, prediction: Prediction, other: Prediction) -> tuple[int, int]:
        """Pixels of the same class, and all pixels."""
        mask, mask_too = _mask_of(prediction), _mask_of(other)
        return int(np.count_nonzero(mask == mask_too)), mask.size

    def draw(self, image_bgr: np.ndarray, prediction: Prediction, alpha: float = 0.5) -> np.ndarray:
        """A new image with the class colours blended in; pixels of the ignored label are left as they are.

        Args:
            image_bgr: (H, W, 3) uint8.
            prediction: its mask is (H, W).
            alpha: 0 (image only) to 1 (colours only).

        Raises:
            ShapeError: image and mask differ in size.
            DependencyError: OpenCV is not installed.
        """
        mask = _mask_of(prediction)
        if image_bgr.shape != (*mask.shape, 3):
            raise ShapeError(f"image: expected {(*mask.shape, 3)} as the mask, got {image_bgr.shape}.")
        cv2 = require("cv2", "drawing a segmentation")
        drawn = cv2.addWeighted(image_bgr, 1.0 - alpha, self._table.take(mask, axis=0), alpha, 0.0)
        ignored = mask == self.spec.ignore_label
        drawn[ignored] = image_bgr[ignored]
        return drawn

    def score(self) -> ConfusionScore:
        """A fresh :class:`ConfusionScore`."""
        return ConfusionScore(self.spec)


class ConfusionScore:
    """Intersection over union and pixel accuracy from one confusion table.

    A predicted id that is no class counts as wrong; pixels whose truth is the ignored label count nowhere.

    Args:
        spec: classes and the label that is not scored.
    """

    primary = "miou"

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        # Rows: truth id, columns: predicted id, over every uint8 value, so that counting needs no filtering.
        self._table = np.zeros((256, 256), np.int64)

    def update(self, prediction: Prediction, truth: Prediction) -> None:
        """Count one frame.

        Args:
            prediction: its mask is (H, W) uint8.
            truth: its mask is (H, W) uint8 class ids or the ignored label.

        Raises:
            ShapeError: the masks differ in shape or are not uint8.
            FileFormatError: the truth holds an id that is neither a class nor the ignored label.
        """
        predicted, true = _mask_of(prediction), _mask_of(truth)
        if predicted.shape != true.shape or predicted.dtype != np.uint8 or true.dtype != np.uint8:
            raise ShapeError(
                f"truth mask: expected {predicted.shape} uint8 as the prediction ({predicted.dtype}), "
                f"got {true.shape} {true.dtype}."
            )
        pairs = true.astype(np.int64).ravel()
        pairs <<= 8
        pairs += predicted.ravel()
        table = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
        self._check_truth(table.sum(axis=1))
        self._table += table

    def _check_truth(self, per_label: np.ndarray) -> None:
        count, ignored = len(self.spec.classes), self.spec.ignore_label
        unknown = [int(label) for label in np.flatnonzero(per_label) if label >= count and label != ignored]
        if unknown:
            raise FileFormatError(
                f"truth mask: expected class ids 0-{count - 1} or {ignored} (ignored), found {unknown}.",
                hint="Check that the labels and the bundle have the same classes.",
            )

    def headline(self) -> tuple[str, float]:
        """Mean intersection over union."""
        return "miou", self.compute()["miou"]

    def compute(self) -> dict[str, float]:
        """Metrics in 0-1 over all frames counted.

        Returns:
            ``miou``: mean over the classes that occur in truth or prediction; ``pixel_accuracy``; and
            ``iou/NAME`` for each class that occurs. The first two are NaN while nothing is counted.
        """
        count = len(self.spec.classes)
        table = self._table[:count]
        hits = np.diagonal(table)
        union = table.sum(axis=1) + table.sum(axis=0)[:count] - hits
        seen = np.flatnonzero(union)
        if not seen.size:
            return {"miou": float("nan"), "pixel_accuracy": float("nan")}
        ious = hits[seen] / union[seen]
        metrics = {"miou": float(ious.mean()), "pixel_accuracy": float(hits.sum() / table.sum())}
        names = (f"iou/{self.spec.classes[index]}" for index in seen)
        return metrics | dict(zip(names, ious.tolist(), strict=True))

    def merge(self, other: Score) -> None:
        """Add what another score of the same classes has counted.

        Raises:
            ShapeError: the other score counts other classes.
        """
        if not isinstance(other, ConfusionScore) or other.spec.classes != self.spec.classes:
            raise ShapeError("merge: expected a ConfusionScore of the same classes.")
        self._table += other._table

    def reset(self) -> None:
        """Forget everything counted."""
        self._table[:] = 0


def _mask_of(prediction: Prediction) -> np.ndarray:
    if not isinstance(prediction, Segmentation):
        raise ShapeError(f"prediction: expected a Segmentation, got {type(prediction).__name__}.")
    return prediction.mask
