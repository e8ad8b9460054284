"""Plans, flow, temporal consistency and scores by distance, against values worked out by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.evaluate.baselines import copied, flowed
from edge_sdk.evaluate.flow import FlowWarp
from edge_sdk.evaluate.metrics import (
    Consistency,
    Planned,
    Reference,
    StreamScores,
    consistency_of,
    pair_lookups,
    plan,
)
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.tasks import Segmentation, TaskSpec, task_from_spec

TASK = task_from_spec(TaskSpec(classes=("a", "b", "c", "d")))
SIZE = (64, 96)
SHIFT = 2  # pixels to the left in each frame of the panning clip


def panning(count: int = 6) -> tuple[list[np.ndarray], list[Segmentation]]:
    """A textured scene under a camera that pans by whole pixels, and its exact masks."""
    height, width = SIZE
    noise = np.random.default_rng(3).integers(0, 256, (height, width + SHIFT * count, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0).astype(np.float32)
    scene = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    # Upright bars, 12 pixels wide: a shift moves every border.
    bars = np.broadcast_to((np.arange(scene.shape[1]) // 12 % 4).astype(np.uint8), scene.shape[:2])
    places = [slice(SHIFT * index, SHIFT * index + width) for index in range(count)]
    return (
        [np.ascontiguousarray(scene[:, place]) for place in places],
        [Segmentation(np.ascontiguousarray(bars[:, place])) for place in places],
    )


def identity(count: int, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Lookups of a scene that does not move."""
    rows, columns = np.indices(size_hw, np.int16)
    return [np.stack([columns, rows], axis=-1)] * (count - 1)


def mask(*rows: list[int]) -> Segmentation:
    return Segmentation(np.array(rows, np.uint8))


@pytest.mark.parametrize(
    ("interval", "phase", "distances"),
    [
        (3, 0, [0, 1, 2, 0, 1, 2, 0]),
        (3, 1, [0, 1, 2, 0, 1, 2]),
        (3, 2, [0, 1, 2, 0, 1]),
        (1, 0, [0] * 7),
        (10, 0, [0, 1, 2, 3, 4, 5, 6]),
        (10, 5, [0, 1]),
        (10, 9, []),
    ],
)
def test_plan(interval, phase, distances):
    planned = plan(7, interval, phase)
    assert [where.index for where in planned] == list(range(phase, phase + len(distances)))
    assert [where.distance for where in planned] == distances
    assert [where.key for where in planned] == [phase + i - d for i, d in enumerate(distances)]


@given(frames=st.integers(1, 40), interval=st.integers(1, 12))
def test_all_phases_count_each_frame_once_at_each_distance(frames, interval):
    seen = [
        (where.index, where.distance) for phase in range(interval) for where in plan(frames, interval, phase)
    ]
    assert sorted(seen) == [(i, d) for i in range(frames) for d in range(min(i, interval - 1) + 1)]


@given(frames=st.integers(1, 30), interval=st.integers(1, 9), data=st.data())
def test_the_plan_is_what_the_schedule_does(frames, interval, data):
    phase = data.draw(st.integers(0, interval - 1))
    schedule = EverySchedule(interval=interval, phase=phase).start()
    image = np.zeros((1, 1, 3), np.uint8)
    kinds = [schedule.decide(image, None if index == 0 else 1) for index in range(frames)]
    planned = plan(frames, interval, phase)
    assert [kind is StepKind.KEYFRAME for kind in kinds[phase:]] == [where.distance == 0 for where in planned]


def test_a_lookup_moves_pixels_and_repeats_the_border():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rows, columns = np.indices(values.shape, np.int16)
    moved = FlowWarp().warp(values, np.stack([columns + 1, rows - 1], axis=-1))
    assert moved.tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]


def test_flow_finds_a_translation():
    images, _ = panning(2)
    flow = FlowWarp()
    lookup = flow.lookup(flow.grey(images[1]), flow.grey(images[0]))
    rows, columns = np.indices(SIZE, np.int16)
    inside = (slice(8, -8), slice(8, -8))
    # Frame 1 sees SHIFT pixels further right: its content lies at larger columns of frame 0.
    assert np.mean(lookup[..., 0][inside] == columns[inside] + SHIFT) > 0.95
    assert np.mean(lookup[..., 1][inside] == rows[inside]) > 0.95


def test_consistency_of_a_scene_at_rest():
    before, after = mask([0, 0, 1, 1]), mask([0, 1, 1, 1])
    # class 0: 1 of 2; class 1: 2 of 3
    assert consistency_of([before, after], TASK, identity(2, (1, 4))) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_consistency_adds_up_over_pairs_before_it_divides():
    masks = [mask([0, 0, 1, 1]), mask([0, 1, 1, 1]), mask([0, 1, 1, 1])]
    # class 0: (1 + 1) of (2 + 1); class 1: (2 + 3) of (3 + 3)
    assert consistency_of(masks, TASK, identity(3, (1, 4))) == pytest.approx((2 / 3 + 5 / 6) / 2)


@pytest.mark.parametrize(
    ("first", "second"), [([255, 0, 1, 1], [1, 0, 1, 1]), ([1, 0, 1, 1], [255, 0, 1, 1])]
)
def test_consistency_leaves_out_pixels_ignored_on_either_side(first, second):
    assert consistency_of([mask(first), mask(second)], TASK, identity(2, (1, 4))) == 1.0


def test_consistency_needs_two_frames_in_a_row():
    lookups = identity(4, (1, 2))
    assert consistency_of([mask([0, 1]), None, mask([0, 1]), None], TASK, lookups) is None
    gap = Consistency(TASK, lookups)
    gap.add(0, mask([0, 1]).mask)
    gap.add(2, mask([1, 0]).mask)
    gap.add(3, mask([1, 0]).mask)
    assert gap.value() == 1.0  # the pair (2, 3) alone


def test_consistency_follows_motion():
    images, masks = panning()
    lookups = pair_lookups(images, lambda done: None)
    moving = consistency_of(masks, TASK, lookups)
    frozen = consistency_of([masks[0]] * len(masks), TASK, lookups)
    assert moving is not None
    assert frozen is not None
    assert moving > 0.95 > 0.85 > frozen


def test_pair_lookups_tell_how_far_they_are():
    done: list[int] = []
    assert len(pair_lookups(panning(4)[0], done.append)) == 3
    assert done == [1, 2, 3]


def test_copy_is_the_teacher_at_distance_0_and_its_keyframe_after():
    teacher = [mask([index, 0]) for index in range(4)]
    got = {where.index: values for where, values in copied(plan(4, 3, 0), teacher)}
    assert [got[index].tolist() for index in range(4)] == [[[0, 0]], [[0, 0]], [[0, 0]], [[3, 0]]]


def test_flow_is_the_teacher_at_distance_0_and_beats_copy_after():
    images, masks = panning()
    planned = plan(len(images), 3, 0)
    copies = [values for _, values in copied(planned, masks)]
    flows = [values for _, values in flowed(planned, masks, images)]
    for where, copy, flow in zip(planned, copies, flows, strict=True):
        truth = masks[where.index].mask
        right = {"copy": np.mean(copy == truth), "flow": np.mean(flow == truth)}
        if where.distance == 0:
            assert right == {"copy": 1.0, "flow": 1.0}
        else:
            # Each step moves every border of a 12 pixel bar by SHIFT pixels.
            assert right["copy"] == pytest.approx(1 - where.distance * SHIFT / 12, abs=0.03)
            assert right["flow"] > 0.93


def scored(prediction: Segmentation, labels: bool = True) -> StreamScores:
    truth, teacher = mask([0, 0, 1, 1]), mask([0, 1, 1, 1])
    reference = Reference(TASK, [truth if labels else None] * 3, [teacher] * 3, identity(3, (1, 4)))
    scores = StreamScores(reference, 2)
    scores.add_phase((where, prediction.mask) for where in plan(3, 2, 0))
    scores.add_phase((where, prediction.mask) for where in plan(3, 2, 1))
    return scores


def test_scores_by_distance_and_over_all():
    scores = scored(mask([0, 0, 1, 1]))
    agreement = (1 / 2 + 2 / 3) / 2
    assert list(scores.by_distance()) == [
        (0, 3, 1.0, pytest.approx(agreement)),
        (1, 2, 1.0, pytest.approx(agreement)),
    ]
    assert (scores.labels(), scores.consistency()) == (1.0, 1.0)
    assert scores.agreement() == pytest.approx(agreement)


def test_scores_without_labels():
    scores = scored(mask([0, 1, 1, 1]), labels=False)
    assert list(scores.by_distance()) == [(0, 3, None, 1.0), (1, 2, None, 1.0)]
    assert (scores.labels(), scores.agreement()) == (None, 1.0)


def test_all_distances_pool_their_pixels():
    teacher = mask([0, 0, 1, 1])
    reference = Reference(TASK, [None, None], [teacher, teacher], identity(2, (1, 4)))
    scores = StreamScores(reference, 2)
    right, wrong = teacher.mask, mask([1, 1, 0, 0]).mask
    scores.add_phase([(Planned(0, 0), right), (Planned(1, 1), wrong)])
    assert list(scores.by_distance()) == [(0, 1, None, 1.0), (1, 1, None, 0.0)]
    assert scores.agreement() == pytest.approx(2 / 6)  # of 4 + 4 pixels of a class, 2 coincide


def test_consistency_is_the_mean_over_phases():
    teacher = mask([0, 0, 1, 1])
    reference = Reference(TASK, [None] * 2, [teacher] * 2, identity(2, (1, 4)))
    scores = StreamScores(reference, 1)
    steady, flipped = teacher.mask, mask([1, 1, 0, 0]).mask
    scores.add_phase([(Planned(0, 0), steady), (Planned(1, 0), steady)])
    scores.add_phase([(Planned(0, 0), steady), (Planned(1, 0), flipped)])
    scores.add_phase([(Planned(1, 0), flipped)])  # no pair: left out
    assert scores.consistency() == 0.5
