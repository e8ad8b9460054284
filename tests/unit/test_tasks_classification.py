from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import BundleError, DependencyError, FileFormatError, ShapeError
from edge_sdk.tasks import (
    Classification,
    ClassificationScore,
    ClassificationTask,
    Segmentation,
    TaskSpec,
    task_from_spec,
)
from edge_sdk.tensors import TensorSpec
from edge_sdk.video.frame import Truth

SINGLE = TaskSpec(kind="classification", classes=("left", "right", "up"))
MULTI = TaskSpec(kind="classification", classes=("left", "right", "up"), multi_label=True)


def scores(*values: float) -> Classification:
    return Classification(np.array(values, np.float32))


def test_the_spec_names_the_task() -> None:
    task = task_from_spec(SINGLE)
    assert isinstance(task, ClassificationTask)
    assert (task.spec, task.output_names) == (SINGLE, ("scores",))


def test_decode_is_a_view_and_encode_its_reverse() -> None:
    task, memory = ClassificationTask(SINGLE), np.zeros(3, np.float32)
    prediction = task.decode({"scores": memory})
    kept = prediction.copy()
    memory[:] = 1
    assert np.shares_memory(prediction.scores, memory)
    assert task.encode(prediction)["scores"] is memory
    assert kept.scores.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("shape", "dtype"), [((4,), "float32"), ((3,), "float16"), ((1, 3), "float32")])
def test_other_scores_than_one_a_class_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    frame = TensorSpec(name="frame", shape=(4, 6, 3), dtype="uint8")
    task = ClassificationTask(SINGLE)
    task.check_outputs([TensorSpec(name="scores", shape=(3,), dtype="float32")], frame)
    with pytest.raises(BundleError, match=r"'scores': expected \(3,\) float32.*got .*Export again"):
        task.check_outputs([TensorSpec(name="scores", shape=shape, dtype=dtype)], frame)


@pytest.mark.parametrize(
    ("spec", "labels", "expected"),
    [
        (SINGLE, ("right",), [0, 1, 0]),
        (SINGLE, None, None),
        (MULTI, ("up", "left"), [1, 0, 1]),
        (MULTI, (), [0, 0, 0]),
    ],
)
def test_labels_become_a_prediction(
    spec: TaskSpec, labels: tuple[str, ...] | None, expected: list[int] | None
) -> None:
    found = ClassificationTask(spec).from_truth(Truth(labels=labels))
    assert (None if found is None else found.scores.tolist()) == expected
    assert found is None or found.scores.dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "labels", "message"),
    [
        (SINGLE, ("down",), r"names of classes \(left, right, up\), found 'down'"),
        (MULTI, ("left", "a", "b"), r"found 'a', 'b'"),
        (SINGLE, (), r"expected one class, found 0 \(none\)"),
        (SINGLE, ("left", "up"), r"expected one class, found 2 \(left, up\).*multi_label"),
    ],
)
def test_labels_that_do_not_fit_are_named(spec: TaskSpec, labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ClassificationTask(spec).from_truth(Truth(labels=labels))


def test_agreeing_counts_decisions() -> None:
    one, other = scores(0.6, 0.55, 0.1), scores(0.9, 0.4, 0.2)
    assert ClassificationTask(SINGLE).agreeing(one, other) == (1, 1)
    assert ClassificationTask(SINGLE).agreeing(one, scores(0.1, 0.9, 0)) == (0, 1)
    assert ClassificationTask(MULTI).agreeing(one, other) == (2, 3)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (96, 128), (400, 640)])
@pytest.mark.parametrize("values", [(0.0, 0.0, 0.0), (1.0, 0.5, 0.25), (math.nan, 2.0, -1.0)])
def test_draw_takes_any_picture(size: tuple[int, int], values: tuple[float, ...]) -> None:
    task, image = ClassificationTask(SINGLE), np.full((*size, 3), 90, np.uint8)
    drawn = task.draw(image, scores(*values))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == 90).all()
    assert np.array_equal(task.draw(image, scores(*values), alpha=0), image)


def test_bars_are_as_long_as_the_scores_and_the_best_is_on_top() -> None:
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    task = ClassificationTask(SINGLE.model_copy(update={"palette": palette}))
    drawn = task.draw(np.full((240, 320, 3), 7, np.uint8), scores(0.25, 0.75, 0.0), alpha=1.0)
    # 12 rows of 20 pixels; a full bar is 180 long. The rows' first line is over the letters.
    top, second = drawn[0, :180], drawn[20, :180]
    assert (top == (0, 255, 0)).all(axis=1).sum() == 135
    assert (second == (255, 0, 0)).all(axis=1).sum() == 45
    assert (drawn[120:] == 7).all()
    assert (drawn[:, 200:] == 7).all()


@pytest.mark.parametrize(
    ("image", "prediction"),
    [
        (np.zeros((4, 4), np.uint8), scores(0, 0, 1)),
        (np.zeros((4, 4, 3), np.float32), scores(0, 0, 1)),
        (np.zeros((4, 4, 3), np.uint8), scores(0, 1)),
        (np.zeros((4, 4, 3), np.uint8), Segmentation(np.zeros((4, 4), np.uint8))),
    ],
)
def test_draw_refuses_what_does_not_fit(image: np.ndarray, prediction: Classification) -> None:
    with pytest.raises(ShapeError, match="expected"):
        ClassificationTask(SINGLE).draw(image, prediction)


def test_score_by_hand() -> None:
    pytest.importorskip("torchmetrics")
    score = task_from_spec(SINGLE).score()
    for answer, truth in (
        (scores(0.7, 0.2, 0.1), scores(1, 0, 0)),
        (scores(0.6, 0.3, 0.1), scores(0, 1, 0)),
        (scores(0.1, 0.8, 0.1), scores(0, 1, 0)),
    ):
        score.update(answer, truth)
    # left: its one clip comes first. right: 0.8 hit, 0.3 hit, 0.2. In one list: .8 hit, .7 hit, .6, .3 hit.
    assert score.compute() == pytest.approx({"top1": 2 / 3, "map": 1.0, "gap": (1 + 1 + 3 / 4) / 3})
    assert score.primary == "top1"
    assert score.headline()[1] == pytest.approx(2 / 3)


def test_gap_counts_the_labels_that_no_list_holds() -> None:
    pytest.importorskip("torchmetrics")
    spec = TaskSpec(kind="classification", classes=tuple(map(str, range(25))), multi_label=True)
    score = ClassificationScore(spec)
    answer = Classification(np.linspace(1, 0.04, 25, dtype=np.float32))
    truth = np.zeros(25, np.float32)
    truth[[0, 24]] = 1  # the second is 25th, beyond the 20 that are pooled
    score.update(answer, Classification(truth))
    found = score.compute()
    assert found["gap"] == pytest.approx(1 / 2)
    assert found["map"] == pytest.approx(1.0)
    assert score.primary == "gap"


def test_another_networks_answer_stands_for_its_decisions() -> None:
    single, multi = ClassificationScore(SINGLE), ClassificationScore(MULTI)
    for score in (single, multi):
        score.update(scores(0.4, 0.3, 0.2), scores(0.5, 0.45, 0.05))
        score.update(scores(0.4, 0.3, 0.2), scores(0.2, 0.45, 0.35))
    assert single.headline()[1] == 1 / 2
    assert multi.headline()[1] == 1  # the second is of no class, and no score says otherwise
    multi.update(scores(0.6, 0.3, 0.2), scores(0.2, 0.45, 0.35))
    assert multi.headline()[1] == pytest.approx(2 / 3)


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.booleans())
def test_every_answer_agrees_with_itself(values: list[float], multi: bool) -> None:
    score = ClassificationScore(MULTI if multi else SINGLE)
    score.update(scores(*values), scores(*values))
    assert score.headline()[1] == 1
    assert ClassificationTask(score.spec).agreeing(scores(*values), scores(*values))[0] > 0


def test_a_score_that_is_no_number_is_a_miss() -> None:
    score = ClassificationScore(SINGLE)
    score.update(scores(math.nan, 0, 0), scores(1, 0, 0))
    score.update(scores(math.inf, 0, 0), scores(1, 0, 0))
    assert score.headline() == ("top1", 0.0)


def test_nothing_counted_is_nan() -> None:
    score = ClassificationScore(MULTI)
    assert all(math.isnan(value) for value in (*score.compute().values(), score.headline()[1]))
    score.update(scores(0.1, 0.2, 0.3), scores(0, 0, 0))
    assert [name for name, value in score.compute().items() if math.isnan(value)] == ["map", "gap"]
    score.reset()
    assert math.isnan(score.headline()[1])


@pytest.mark.parametrize("bad", [scores(1, 0), scores(1, 0, 0, 0), Segmentation(np.zeros((1, 3), np.uint8))])
def test_bad_scores_are_refused_and_not_counted(bad: Classification) -> None:
    score = ClassificationScore(SINGLE)
    for pair in ((bad, scores(1, 0, 0)), (scores(1, 0, 0), bad)):
        with pytest.raises(ShapeError, match="expected"):
            score.update(*pair)
    assert math.isnan(score.headline()[1])


@pytest.mark.parametrize("other", [MULTI, SINGLE.model_copy(update={"classes": ("a", "b", "c")}), None])
def test_merge_refuses_other_classes(other: TaskSpec | None) -> None:
    stranger = task_from_spec(other or TaskSpec(classes=("left", "right", "up"))).score()
    with pytest.raises(ShapeError, match="same classes"):
        ClassificationScore(SINGLE).merge(stranger)


def test_only_what_needs_torchmetrics_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    score = ClassificationScore(SINGLE)
    score.update(scores(0.7, 0.2, 0.1), scores(1, 0, 0))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    assert score.headline() == ("top1", 1.0)
    with pytest.raises(DependencyError, match=r"needs the package torchmetrics.*pip install"):
        score.compute()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 30), clips=st.integers(2, 12), multi=st.booleans())
def test_metrics_equal_the_definitions(seed: int, classes: int, clips: int, multi: bool) -> None:
    """Top-1 and the mean over classes by the field's implementation, GAP as YouTube-8M's evaluation adds it up."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(seed)
    spec = TaskSpec(kind="classification", classes=tuple(f"c{i}" for i in range(classes)), multi_label=multi)
    # All scores differ: which of two equal ones comes first is nobody's to say.
    answers = (
        (rng.permutation(clips * classes) / (clips * classes)).reshape(clips, classes).astype(np.float32)
    )
    truths = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, clips)]
    if multi:
        truths = np.maximum(truths, rng.random(truths.shape) < 0.2).astype(np.float32)
    whole, parts = ClassificationScore(spec), ClassificationScore(spec)
    for answer, truth in zip(answers, truths, strict=True):
        part = ClassificationScore(spec)
        for score in (whole, part):
            score.update(Classification(answer), Classification(truth))
        parts.merge(part)
    found = whole.compute()
    assert parts.compute() == found
    there = truths.any(axis=0)  # of a class that does not occur there is nothing to find
    each = functional.multilabel_average_precision(
        torch.from_numpy(np.pad(answers[:, there], ((0, 0), (0, 1)))),
        torch.from_numpy(np.pad(truths[:, there], ((0, 0), (0, 1)), constant_values=1)).long(),
        num_labels=int(there.sum()) + 1, average="none",
    ).numpy()  # fmt: skip
    assert found["map"] == pytest.approx(each[:-1].mean(), abs=1e-6)
    assert found["gap"] == pytest.approx(gap_by_adding_up(answers, truths), abs=1e-6)
    if not multi:
        expected = functional.multiclass_accuracy(
            torch.from_numpy(answers), torch.from_numpy(truths.argmax(axis=1)), classes, average="micro"
        )
        assert found["top1"] == pytest.approx(float(expected))


def gap_by_adding_up(answers: np.ndarray, truths: np.ndarray) -> float:
    """One list of every clip's best 20: precision at each hit, divided by all labels."""
    pairs = []
    for answer, truth in zip(answers, truths, strict=True):
        best = sorted(range(len(answer)), key=lambda index: -answer[index])[:20]
        pairs += [(answer[index], truth[index]) for index in best]
    hits, total = 0, 0.0
    for place, (_, true) in enumerate(sorted(pairs, key=lambda pair: -pair[0]), 1):
        if true:
            hits += 1
            total += hits / place
    return total / float(truths.sum())
