"""Agreement of two masks, against sets of pixels and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_sdk.adapt.agreement import agreement
from edge_sdk.adapt.settings import AgreementSettings
from edge_sdk.errors import ShapeError

LABEL = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 0, 0]], np.uint8)
# Class 1: 3 of 4 found, none too many; class 2: 1 of 2, and 1 too many.
PREDICTED = np.array([[0, 0, 0, 0], [1, 1, 1, 0], [2, 0, 2, 0]], np.uint8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (3 / 4 + 1 / 3) / 2),
        ({"measure": "min_iou"}, 1 / 3),
        ({"background": True}, (5 / 8 + 3 / 4 + 1 / 3) / 3),
        ({"smoothing_pixels": 100}, (103 / 104 + 101 / 103) / 2),
        ({"measure": "min_iou", "background": True, "smoothing_pixels": 100}, 105 / 108),
    ],
)
def test_by_hand(settings: dict[str, object], expected: float) -> None:
    found = agreement(PREDICTED, LABEL, 4, 255, AgreementSettings.model_validate(settings))
    assert found == pytest.approx(expected, abs=1e-12)


def test_nothing_to_find_and_nothing_found() -> None:
    empty = np.zeros((3, 4), np.uint8)
    assert agreement(empty, empty, 3) == 1.0
    assert agreement(empty, np.full_like(empty, 255), 3) == 1.0
    assert agreement(PREDICTED, empty, 3) == 0.0
    assert agreement(empty, LABEL, 3) == 0.0


MASKS = arrays(np.uint8, (3, 5), elements=st.integers(0, 3))
LABELS = arrays(np.uint8, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 255]))


@given(MASKS, LABELS, st.booleans(), st.sampled_from(["mean_iou", "min_iou"]), st.sampled_from([0.0, 1.5]))
def test_against_sets_of_pixels(
    predicted: np.ndarray, label: np.ndarray, background: bool, measure: str, extra: float
) -> None:
    seen = label != 255
    ious = []
    for class_id in range(0 if background else 1, 4):
        ours = set(np.flatnonzero((predicted == class_id) & seen))
        theirs = set(np.flatnonzero((label == class_id) & seen))
        if ours | theirs:
            ious.append((len(ours & theirs) + extra) / (len(ours | theirs) + extra))
    expected = 1.0 if not ious else min(ious) if measure == "min_iou" else sum(ious) / len(ious)
    settings = AgreementSettings.model_validate(
        {"measure": measure, "background": background, "smoothing_pixels": extra}
    )
    assert agreement(predicted, label, 4, 255, settings) == pytest.approx(expected, abs=1e-12)


@given(MASKS)
def test_a_mask_agrees_with_itself(mask: np.ndarray) -> None:
    assert agreement(mask, mask, 4) == 1.0


GOOD = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("predicted", "label", "message"),
    [
        (GOOD.astype(np.int64), GOOD, "predicted: expected a mask .* int64"),
        (GOOD, GOOD[..., None], r"label: expected a mask .*\(2, 3, 1\)"),
        (GOOD, GOOD.T, r"predicted is \(2, 3\), label is \(3, 2\)"),
        (GOOD, GOOD + np.uint8(2), "label: expected class ids below 2, got 2.*255:1"),
        (GOOD + np.uint8(9), GOOD, "predicted: expected class ids below 2, got 9"),
        (GOOD + np.uint8(255), GOOD, "predicted: expected class ids below 2, got 255"),
    ],
)
def test_refused(predicted: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        agreement(predicted, label, 2)


def test_without_an_ignored_value() -> None:
    with pytest.raises(ShapeError, match="got 255"):
        agreement(GOOD, GOOD + np.uint8(255), 2, None)
