"""Our numpy scores, which run on devices without torch, against the field's implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.tasks import Segmentation, TaskSpec, task_from_spec

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = pytest.importorskip(
    "torchmetrics.functional.classification", reason="torchmetrics is not installed"
)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 7), frames=st.integers(1, 3))
def test_iou_of_each_class_equals_torchmetrics(seed: int, classes: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (frames, 9, 11)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    predicted = rng.integers(0, classes, truth.shape).astype(np.uint8)
    score = task_from_spec(TaskSpec(classes=tuple(f"c{i}" for i in range(classes)))).score()
    for mask, label in zip(predicted, truth, strict=True):
        score.update(Segmentation(mask), Segmentation(label))
    expected = functional.multiclass_jaccard_index(
        torch.from_numpy(predicted).long(), torch.from_numpy(truth).long(),
        num_classes=classes, ignore_index=255, average="none",
    ).numpy()  # fmt: skip
    found = score.compute()
    for index in range(classes):
        name = f"iou/c{index}"
        occurs = (truth == index).any() or (predicted[truth != 255] == index).any()
        assert (name in found) == occurs
        if occurs:
            assert found[name] == pytest.approx(float(expected[index]), abs=1e-6)
