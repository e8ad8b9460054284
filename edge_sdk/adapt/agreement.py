"""How well two masks agree, by intersection over union; the figure that decides about updates and the stride."""

from __future__ import annotations

import numpy as np

from edge_sdk.adapt.settings import AgreementSettings
from edge_sdk.errors import ShapeError

_VALUES = 256


def agreement(
    predicted: np.ndarray,
    label: np.ndarray,
    classes: int,
    ignore: int | None = 255,
    settings: AgreementSettings | None = None,
) -> float:
    """How well ``predicted`` agrees with ``label``, 0 to 1.

    Classes that neither mask has do not count; where none is left, nothing was to be found and nothing was: 1.0.

    Args:
        predicted: (H, W) uint8 class ids.
        label: (H, W) uint8 class ids, and ``ignore``.
        classes: how many there are; 0 is background.
        ignore: pixels that the label gives this value are left out; None leaves out none.
        settings: which classes count and how; None for the published ones.

    Raises:
        ShapeError: a mask is not (H, W) uint8, their sizes differ, or a value is no class id.
    """
    settings = settings or AgreementSettings()
    pairs = _confusion(predicted, label, classes, ignore)
    both = pairs.diagonal()
    either = pairs.sum(axis=0) + pairs.sum(axis=1) - both
    counted = either > 0
    if not settings.background:
        counted[0] = False
    if not counted.any():
        return 1.0
    extra = settings.smoothing_pixels
    ious = (both[counted] + extra) / (either[counted] + extra)
    return float(ious.mean() if settings.measure == "mean_iou" else ious.min())


def _confusion(predicted: np.ndarray, label: np.ndarray, classes: int, ignore: int | None) -> np.ndarray:
    """(classes, classes) pixels by label and predicted class."""
    for name, mask in (("predicted", predicted), ("label", label)):
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ShapeError(f"{name}: expected a mask (H, W) uint8, got {mask.shape} {mask.dtype}.")
    if predicted.shape != label.shape:
        raise ShapeError(f"predicted is {predicted.shape}, label is {label.shape}: expected one size.")
    # Over all values of a byte, so that counting also finds those that are no class id.
    joint = (label.astype(np.uint16) << 8) | predicted
    pairs = np.bincount(joint.ravel(), minlength=_VALUES * _VALUES).reshape(_VALUES, _VALUES)
    if ignore is not None:
        pairs[ignore] = 0
    wrong = np.flatnonzero(pairs[classes:].sum(axis=1))
    if wrong.size:
        raise ShapeError(
            f"label: expected class ids below {classes}, got {wrong[0] + classes}.",
            hint="Map the labels' values to class ids, for a folder by ?labels=255:1.",
        )
    wrong = np.flatnonzero(pairs[:, classes:].sum(axis=0))
    if wrong.size:
        raise ShapeError(f"predicted: expected class ids below {classes}, got {wrong[0] + classes}.")
    return pairs[:classes, :classes]
