"""Scores of a stream against its teacher, the baselines at the same share of teacher frames, and what it all costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt.baselines import score_baselines
from edge_sdk.adapt.cost import PUBLISHED, summed
from edge_sdk.adapt.score import Keyframes, OnlineScore, PackedMasks, Parts, PartScores
from edge_sdk.errors import EdgeSdkError, FileFormatError, MissingFileError, RecipeError, ShapeError
from edge_sdk.tasks import TaskSpec

TASK = TaskSpec(classes=("background", "car", "person", "dog"))
masks = st.lists(
    st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=5
).map(lambda rows: [np.array(row, np.uint8).reshape(3, 4) for row in rows])  # fmt: skip


def square(left: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((32, 64), np.uint8)
    mask[8:24, left : left + 16] = value
    return mask


def by_hand(
    answers: list[np.ndarray], truths: list[np.ndarray], first: int, ignore: int = 255
) -> float | None:
    """Mean over classes of TP / (TP + FP + FN), counted pixel by pixel over all frames."""
    found = []
    for value in range(first, 4):
        hits = wrong = 0
        for answer, truth in zip(answers, truths, strict=True):
            for ours, theirs in zip(answer.ravel().tolist(), truth.ravel().tolist(), strict=True):
                if theirs == ignore:
                    continue
                hits += ours == theirs == value
                wrong += (ours == value) != (theirs == value)
        if hits + wrong:
            found.append(hits / (hits + wrong))
    return sum(found) / len(found) if found else None


@given(masks, st.randoms(use_true_random=False), st.booleans())
def test_the_score_is_that_of_counting_by_hand(answers, random, background) -> None:
    truths = [answer.copy() for answer in answers]
    for truth in truths:
        for _ in range(random.randint(0, 6)):
            truth[random.randint(0, 2), random.randint(0, 3)] = random.choice((0, 1, 2, 3, 255))
    score = OnlineScore(TASK, background=background)
    for answer, truth in zip(answers, truths, strict=True):
        score.add(answer, truth)
    figures, expected = score.figures(), by_hand(answers, truths, 0 if background else 1)
    assert figures.frames == len(answers)
    assert (figures.mean is None) == (expected is None)
    if expected is not None:
        assert figures.mean == pytest.approx(expected)


def test_a_class_that_neither_has_does_not_count_and_background_alone_is_no_score() -> None:
    score = OnlineScore(TASK)
    score.add(square(0, 0), square(0, 0))
    assert (score.figures().mean, score.figures().classes) == (None, {"background": 1.0})
    score.add(square(0), square(0))
    assert score.figures().mean == 1.0  # person and dog are nowhere
    score.add(square(0, 2), square(0, 1))
    assert score.figures().classes["person"] == 0.0
    assert score.figures().mean == pytest.approx((0.5 + 0.0) / 2)


def test_classes_add_up_over_frames_and_not_frame_by_frame() -> None:
    """A frame with a large object weighs more than one with a small one: 0.5 and 1.0 do not make 0.75."""
    score = OnlineScore(TASK)
    large, half = np.ones((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    half[:2] = 0
    score.add(half, large)
    small = np.zeros((4, 4), np.uint8)
    small[0, 0] = 1
    score.add(small, small)
    assert score.figures().mean == pytest.approx((8 + 1) / (16 + 1))


def test_parts_are_scored_by_themselves_too() -> None:
    parts = Parts(4, {"one": 0, "two": 2})
    scores = PartScores(TASK, parts)
    for index, answer in enumerate((square(0), square(0), square(16), square(16))):
        scores.add(index, answer, square(0))
    assert {name: figures.mean for name, figures in scores.parts().items()} == {"one": 1.0, "two": 0.0}
    assert scores.figures().mean == pytest.approx(2 / 6)
    assert PartScores(TASK, Parts(4)).parts() == {}


@pytest.mark.parametrize("starts", [{"a": 1}, {"a": 0, "b": 0}, {"a": 0, "b": 4}, {"a": 0, "b": 3, "c": 2}])
def test_parts_that_do_not_rise_are_refused(starts) -> None:
    with pytest.raises(RecipeError, match="rising beginnings"):
        Parts(4, starts)


@given(st.integers(1, 400).flatmap(lambda frames: st.tuples(st.just(frames), st.integers(1, frames))))
def test_even_spacing_has_just_as_many_teacher_frames_and_steps_that_differ_by_one_at_most(pair) -> None:
    frames, count = pair
    keys = Keyframes.spread(frames, count)
    assert len(keys.at) == count
    assert keys.share == count / frames
    steps = np.diff([*keys.at, frames])
    assert steps.max() - steps.min() <= 1
    on = list(keys.rests_on())
    assert len(on) == frames
    assert all(
        key in keys.at and 0 <= index - key < math.ceil(frames / count) for index, key in enumerate(on)
    )


@pytest.mark.parametrize("at", [(), (1,), (0, 0), (0, 5), (0, 3, 2)])
def test_teacher_frames_that_make_no_sense_are_refused(at) -> None:
    with pytest.raises(RecipeError, match="rising indices from 0 below 5"):
        Keyframes(5, at)


@given(masks)
def test_packed_masks_are_those_that_went_in(found) -> None:
    packed = PackedMasks(found)
    assert len(packed) == len(found)
    assert all(np.array_equal(a, b) for a, b in zip(packed, found, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(packed[::-1], found[::-1], strict=True))


def test_packed_masks_are_kept_and_refuse_what_is_none(tmp_path) -> None:
    path = tmp_path / "masks.npz"
    PackedMasks([square(0), square(7, 3)]).save(path)
    again = PackedMasks.load(path)
    assert [int(mask.sum()) for mask in again] == [256, 768]
    for wrong in (np.zeros((32, 65), np.uint8), np.zeros((32, 64), np.int32)):
        with pytest.raises(ShapeError, match=r"expected .* uint8"):
            again.append(wrong)
    PackedMasks().save(path)
    assert len(PackedMasks.load(path)) == 0
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    for content in (b"PK\x03\x04 no", b"no", b"", path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="not a file of masks"):
            PackedMasks.load(path)
    with path.open("wb") as file:
        np.savez(file, shape=[2, 2], sizes=[5], data=np.zeros(3, np.uint8))
    with pytest.raises(FileFormatError, match="do not add up"):
        PackedMasks.load(path)
    with pytest.raises(MissingFileError):
        PackedMasks.load(tmp_path / "none.npz")


def test_the_published_cost_of_the_published_figures() -> None:
    """30,000 frames at threshold 0.8: 4.7 % teacher frames and 13.5 times the teacher leave about 3 updates a frame."""
    n = round(30_000 * 0.047)
    cost = PUBLISHED.cost(30_000, n, round(1.6 * n))
    assert cost.total_ms == (30_000 - n) * 7 + n * 300 + round(1.6 * n) * 30
    assert cost.speedup == pytest.approx(30_000 * 300 / cost.total_ms)
    assert 12 < cost.speedup < 15
    assert PUBLISHED.cost(100, 100, 0).speedup == 1.0
    assert summed(10, 2, teacher_ms=10, between_ms=1, learning_ms=12).total_ms == 40


def moving(frames: int, step: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A bright textured square that moves evenly, and its masks."""
    rng = np.random.default_rng(0)
    texture = rng.integers(120, 255, (16, 16, 3), np.uint8)
    images, truths = [], []
    for index in range(frames):
        image = np.full((32, 64, 3), 20, np.uint8)
        image[8:24, step * index : step * index + 16] = texture
        images.append(image)
        truths.append(square(step * index))
    return images, truths


def test_copying_repeats_and_flow_follows() -> None:
    pytest.importorskip("cv2")
    images, truths = moving(12)
    seen: list[int] = []
    choices = {"every": Keyframes(12, tuple(range(12))), "rare": Keyframes(12, (0, 6))}
    found = score_baselines(
        iter(images), truths, choices, TASK, parts=Parts(12, {"a": 0, "b": 6}), tick=seen.append
    )
    assert seen == list(range(1, 13))
    assert all(score.figures.mean == 1.0 for score in found["every"].values())
    copy, flow, chained = (found["rare"][way] for way in ("copy", "flow", "chained"))
    expected = by_hand([truths[6 * (i // 6)] for i in range(12)], truths, 1)
    assert copy.figures.mean == pytest.approx(expected)
    assert copy.parts["a"].mean == copy.parts["b"].mean == pytest.approx(expected)
    assert (copy.step_ms, flow.step_ms > 0, chained.step_ms > 0) == (0.0, True, True)
    assert flow.figures.mean is not None
    assert chained.figures.mean is not None
    assert copy.figures.mean is not None
    assert copy.figures.mean < min(flow.figures.mean, chained.figures.mean)


@pytest.mark.parametrize(
    ("images", "frames", "error"),
    [(2, 3, "expected 3 as the teacher has masks, got 2"), (4, 3, "got more"), (3, 4, "choices among 3 frames")],
)  # fmt: skip
def test_frames_masks_and_choices_must_be_equally_many(images, frames, error) -> None:
    pytest.importorskip("cv2")
    pictures, truths = moving(4)
    with pytest.raises(EdgeSdkError, match=error):
        score_baselines(pictures[:images], truths[:3], {"a": Keyframes(frames, (0,))}, TASK)
