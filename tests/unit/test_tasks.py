from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.errors import BundleError, FileFormatError, RecipeError, ShapeError
from edge_sdk.settings import parse_settings
from edge_sdk.tasks import ConfusionScore, Segmentation, SegmentationTask, TaskSpec, task_from_spec
from edge_sdk.tensors import TensorSpec
from edge_sdk.video.frame import Truth

SPEC = TaskSpec(classes=("road", "car", "sky"))


def mask(*rows: list[int]) -> Segmentation:
    return Segmentation(np.array(rows, np.uint8))


def test_the_spec_names_the_task() -> None:
    task = task_from_spec(SPEC)
    assert isinstance(task, SegmentationTask)
    assert task.spec is SPEC
    assert task.output_names == ("mask",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "poetry", "classes": ["a"]}, r"'kind'.*'segmentation' or 'classification', got 'poetry'"),
        ({"classes": []}, r"'classes'.*at least 1 item"),
        ({"classes": ["a", "a"]}, r"class names must be different"),
        ({"classes": [str(i) for i in range(256)]}, r"a segmentation has at most 255 classes, got 256"),
        (
            {"kind": "classification", "classes": [str(i) for i in range(1 + (1 << 16))]},
            r"'classes'.*at most 65536 items",
        ),
        ({"classes": ["a"], "multi_label": True}, r"'multi_label' belongs to kind 'classification'"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, r"palette needs 2 colours, one a class, or none"),
        ({"classes": ["a"], "palette": [[0, 0, 256]]}, r"\(blue, green, red\), each 0-255"),
        ({"classes": ["a", "b"], "ignore_label": 1}, r"ignore_label 1 is the id of class 'b'"),
        ({"classes": ["a"], "ignore_label": 256}, r"'ignore_label'.*less than or equal to 255"),
        ({"classes": ["a"], "colours": []}, r"unknown key 'colours'"),
    ],
)
def test_bad_specs_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings(data, TaskSpec, "task")


@pytest.mark.parametrize("count", [1, 11, 255])
def test_generated_colours_differ(count: int) -> None:
    colours = TaskSpec(classes=tuple(map(str, range(count)))).colours()
    assert colours.shape == (count, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == count


def test_palette_is_kept() -> None:
    palette = ((1, 2, 3), (4, 5, 6))
    assert TaskSpec(classes=("a", "b"), palette=palette).colours().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_decode_is_a_view() -> None:
    memory = np.zeros((2, 3), np.uint8)
    prediction = SegmentationTask(SPEC).decode({"mask": memory})
    kept = prediction.copy()
    memory[:] = 2
    assert np.shares_memory(prediction.mask, memory)
    assert (prediction.mask == 2).all()
    assert (kept.mask == 0).all()


def test_truth_becomes_a_prediction() -> None:
    task, labels = SegmentationTask(SPEC), np.ones((2, 2), np.uint8)
    found = task.from_truth(Truth(mask=labels))
    assert found is not None
    assert found.mask is labels
    assert task.from_truth(Truth(labels=("left",))) is None


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3), "uint8"), ((4, 6), "float32"), ((4, 6, 1), "uint8")])
def test_other_masks_than_the_frame_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    frame = TensorSpec(name="frame", shape=(4, 6, 3), dtype="uint8")
    with pytest.raises(BundleError, match=r"'mask': expected \(4, 6\) uint8 .* got .*Export again"):
        SegmentationTask(SPEC).check_outputs([TensorSpec(name="mask", shape=shape, dtype=dtype)], frame)


def test_draw_blends_the_colours() -> None:
    task = SegmentationTask(TaskSpec(classes=("a", "b"), palette=((0, 0, 0), (200, 100, 50))))
    image = np.full((1, 3, 3), 100, np.uint8)
    drawn = task.draw(image, mask([0, 1, 255]), alpha=0.5)
    assert drawn.tolist() == [[[50, 50, 50], [150, 100, 75], [100, 100, 100]]]
    assert (image == 100).all()
    assert task.draw(image, mask([0, 1, 1]), alpha=0.0).tolist() == image.tolist()
    assert task.draw(image, mask([0, 1, 1]), alpha=1.0)[0, 1].tolist() == [200, 100, 50]


def test_draw_refuses_another_size() -> None:
    with pytest.raises(ShapeError, match=r"image: expected \(1, 2, 3\) as the mask, got \(2, 2, 3\)"):
        SegmentationTask(SPEC).draw(np.zeros((2, 2, 3), np.uint8), mask([0, 1]))


def test_score_by_hand() -> None:
    score = SegmentationTask(SPEC).score()
    score.update(mask([0, 0, 1, 1]), mask([0, 0, 0, 255]))
    score.update(mask([1, 1]), mask([1, 0]))
    # road: 2 hits of 4 true, none besides; car: 1 hit, 2 false alarms on road; sky occurs nowhere.
    assert score.compute() == pytest.approx(
        {"miou": (2 / 4 + 1 / 3) / 2, "pixel_accuracy": 3 / 5, "iou/road": 2 / 4, "iou/car": 1 / 3}
    )
    assert score.primary in score.compute()


def test_a_class_that_is_only_predicted_counts() -> None:
    score = ConfusionScore(SPEC)
    score.update(mask([0, 2]), mask([0, 0]))
    assert score.compute() == pytest.approx(
        {"miou": 0.25, "pixel_accuracy": 0.5, "iou/road": 0.5, "iou/sky": 0.0}
    )


def test_predicting_no_class_is_wrong() -> None:
    score = ConfusionScore(SPEC)
    score.update(mask([0, 255, 9]), mask([0, 0, 0]))
    assert score.compute() == pytest.approx({"miou": 1 / 3, "pixel_accuracy": 1 / 3, "iou/road": 1 / 3})


def test_nothing_counted_is_nan() -> None:
    score = ConfusionScore(SPEC)
    assert all(math.isnan(value) for value in score.compute().values())
    score.update(mask([0, 1]), mask([0, 1]))
    assert score.compute()["miou"] == 1.0
    score.reset()
    assert math.isnan(score.compute()["miou"])


@pytest.mark.parametrize(
    ("prediction", "truth", "error", "message"),
    [
        (mask([0]), mask([0, 1]), ShapeError, r"truth mask: expected \(1, 1\) uint8 .* got \(1, 2\)"),
        (mask([0]), Segmentation(np.zeros((1, 1), np.int64)), ShapeError, r"got \(1, 1\) int64"),
        (mask([0, 0]), mask([3, 77]), FileFormatError, r"class ids 0-2 or 255 \(ignored\), found \[3, 77\]"),
    ],
)
def test_bad_truth_is_refused_and_not_counted(
    prediction: Segmentation, truth: Segmentation, error: type[Exception], message: str
) -> None:
    score = ConfusionScore(SPEC)
    with pytest.raises(error, match=message):
        score.update(prediction, truth)
    assert math.isnan(score.compute()["miou"])


def test_merge_refuses_other_classes() -> None:
    with pytest.raises(ShapeError, match="same classes"):
        ConfusionScore(SPEC).merge(ConfusionScore(TaskSpec(classes=("a", "b", "c"))))


MASKS = hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 2))
TRUTHS = hnp.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 255]))


@given(st.lists(st.tuples(MASKS, TRUTHS), min_size=1, max_size=4))
def test_score_against_plain_counting(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    whole, parts = ConfusionScore(SPEC), ConfusionScore(SPEC)
    for predicted, true in pairs:
        whole.update(Segmentation(predicted), Segmentation(true))
        part = ConfusionScore(SPEC)
        part.update(Segmentation(predicted), Segmentation(true))
        parts.merge(part)
    predicted, true = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    predicted, true = predicted[true != 255], true[true != 255]
    ious = [
        ((predicted == label) & (true == label)).sum() / ((predicted == label) | (true == label)).sum()
        for label in range(3)
        if ((predicted == label) | (true == label)).any()
    ]
    assert whole.compute() == pytest.approx(parts.compute(), nan_ok=True)
    if ious:
        assert whole.compute()["miou"] == pytest.approx(np.mean(ious))
        assert whole.compute()["pixel_accuracy"] == pytest.approx((predicted == true).mean())
    else:
        assert math.isnan(whole.compute()["miou"])
