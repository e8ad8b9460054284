from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import EdgeSdkError, RecipeError, VideoError
from edge_sdk.video import MOTION_CLASSES, Frame, MotionScene, MotionSettings, MotionSource, open_source

KINDS = ((0, 1, 2, 3), (4, 5), (6, 7), (8, 9), (10, 11))
TIMES = np.linspace(0, 1, 61)


def scene(**values: object) -> MotionScene:
    return MotionScene(MotionSettings.model_validate({"height": 24, "width": 32, "frames": 12, **values}))


def same(a: Frame, b: Frame) -> bool:
    assert a.truth is not None
    assert b.truth is not None
    return (
        np.array_equal(a.image, b.image)
        and a.truth.labels == b.truth.labels
        and (a.captured_s, a.seq) == (b.captured_s, b.seq)
    )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 8),
    stride=st.integers(1, 5),
    fps=st.sampled_from((12.5, 29.97, 60.0)),
)
def test_same_uri_is_the_same_clip_frame_by_frame(seed: int, start: int, stride: int, fps: float) -> None:
    uri = f"synthetic:motions?height=24&width=32&frames=12&seed={seed}&fps={fps}"
    with open_source(uri, start=start, stride=stride) as source:
        taken = list(source)
        assert source.frame_count == len(taken) == len(range(start, 12, stride))
        assert (source.size_hw, source.fps, source.live) == ((24, 32), fps / stride, False)
    assert [frame.seq for frame in taken] == list(range(len(taken)))
    whole = scene(seed=seed, fps=fps)
    for frame in reversed(taken):  # any order gives the same
        there = whole.frame_at(start + stride * frame.seq)
        assert np.array_equal(frame.image, there.image)
        assert frame.captured_s == there.captured_s
    assert same(pickle.loads(pickle.dumps(whole)).frame_at(5), whole.frame_at(5))


def test_frame_is_what_the_contract_says() -> None:
    frame = scene(fps=12.5, seed=3).frame_at(7)
    assert frame.image.shape == (24, 32, 3)
    assert frame.image.dtype == np.uint8
    assert frame.image.flags.c_contiguous
    assert (frame.seq, frame.captured_s) == (7, 7 / 12.5)
    assert frame.truth is not None
    assert (frame.truth.labels, frame.truth.mask, frame.truth.boxes) == (("down",), None, None)
    assert not np.array_equal(frame.image, scene(seed=15).frame_at(7).image)  # another clip of that class


def test_seeds_go_through_the_classes_and_a_class_can_be_named() -> None:
    assert [scene(seed=seed).motion for seed in range(24)] == [*MOTION_CLASSES, *MOTION_CLASSES]
    assert {scene(seed=5, motion=name).motion for name in MOTION_CLASSES} == set(MOTION_CLASSES)


def tracks(motion: str, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places (discs, 2), radii and colours at each of ``TIMES``."""
    clip = scene(seed=seed, motion=motion)
    found = []
    for time in TIMES:
        discs = [disc for disc in clip._discs(float(time)) if disc[2] > 0]
        rows = np.array([disc[:2] for disc in discs]).reshape(-1, 2)
        found.append((rows, np.array([disc[2] for disc in discs]), np.array([disc[3] for disc in discs])))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_things_travel_where_the_class_says(motion: str, axis: int, sign: int, seed: int) -> None:
    steps = np.diff([places[0] for places, _, _ in tracks(motion, seed)], axis=0)
    jumped = np.abs(steps).max(1) > 0.5  # out on one side, in on the other
    assert jumped.sum() <= 2
    assert (sign * steps[~jumped, axis] > 0).all()
    assert sign * steps[~jumped, axis].sum() > 5 * np.abs(steps[~jumped, 1 - axis].sum())


@pytest.mark.parametrize("seed", range(5))
def test_rotation_approach_collision_and_order_are_what_the_class_says(seed: int) -> None:
    for motion, sign in (("clockwise", 1), ("anticlockwise", -1)):
        places = [p[0] - p.mean(0) for p, _, _ in tracks(motion, seed)]
        angles = np.unwrap(
            [np.arctan2(y, x) for x, y in places]
        )  # y points down, so a growing angle is clockwise
        assert (sign * np.diff(angles) > 0).all()
        assert 0.4 < abs(angles[-1] - angles[0]) / (2 * np.pi) < 1.5
    for motion, sign in (("approach", 1), ("recede", -1)):
        assert (sign * np.diff([radii[0] for _, radii, _ in tracks(motion, seed)]) > 0).all()
    for motion, swapped in (("bounce", False), ("pass", True)):
        between = [p[0] - p[1] for p, _, _ in tracks(motion, seed)]
        assert (np.dot(between[0], between[-1]) < 0) == swapped
        assert min(np.linalg.norm(away) for away in between) < 0.05 < 0.3 < np.linalg.norm(between[0])
    for motion, warm in (("warm_first", True), ("cold_first", False)):
        lit = [bool(c[0][2] > c[0][0]) for _, radii, c in tracks(motion, seed) if len(radii)]
        assert lit == sorted(lit, reverse=warm)  # True sorts last
        assert 0.3 < np.mean(lit) < 0.7
        assert max(len(radii) for _, radii, _ in tracks(motion, seed)) == 1


def test_clips_of_a_kind_begin_alike() -> None:
    """The class is no part of what is drawn, so where a motion has not begun its frame is that of its opposite."""
    for one, other in (("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"), ("bounce", "pass")):
        first, second = scene(seed=7, motion=one), scene(seed=7, motion=other)
        assert np.array_equal(first.frame_at(0).image, second.frame_at(0).image)
        assert not np.array_equal(first.frame_at(11).image, second.frame_at(11).image)
    noises = {scene(seed=7, motion=name)._noise.tobytes() for name in MOTION_CLASSES}
    assert len(noises) == 1


def test_one_frame_does_not_tell_the_class_though_it_tells_the_kind() -> None:
    """Nearest neighbours of the things alone, without background and noise: more than any network is given."""

    def drawn(seeds: range, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        pictures, classes = [], []
        for seed in seeds:
            clip = scene(seed=seed, noise=0, height=16, width=16, frames=50)
            for index in rng.integers(0, 50, 6):
                image = clip.frame_at(int(index)).image
                pictures.append((image - np.rint(clip._background)).ravel())
                classes.append(MOTION_CLASSES.index(clip.motion))
        return np.array(pictures, np.float32), np.array(classes)

    rng = np.random.default_rng(0)
    known, names = drawn(range(240), rng)
    asked, expected = drawn(range(1200, 1320), rng)
    distance = (asked**2).sum(1)[:, None] + (known**2).sum(1) - 2 * asked @ known.T
    found = names[distance.argmin(1)]
    kind = np.array(
        [next(i for i, kind in enumerate(KINDS) if c in kind) for c in range(len(MOTION_CLASSES))]
    )
    assert (found == expected).mean() < 0.45  # 5 of 12 by chance within a kind
    assert (kind[found] == kind[expected]).mean() > 0.65


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (60, 20)])
def test_any_size(height: int, width: int) -> None:
    for seed in range(12):
        clip = scene(height=height, width=width, seed=seed, frames=2)
        assert clip.frame_at(1).image.shape == (height, width, 3)
        assert clip.frame_at(1).image.std() > 5


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        (
            "synthetic:motions?motion=sideways",
            EdgeSdkError,
            "expected motion to be one of left, .*got 'sideways'",
        ),
        ("synthetic:motions?frames=1", RecipeError, "'frames': .*greater than or equal to 2"),
        ("synthetic:motions?speed=2", RecipeError, "unknown key 'speed'"),
        ("synthetic:motions?contrast=0", RecipeError, "'contrast'"),
        ("synthetic:motions?clips=3", RecipeError, "'clips' makes it a list of clips.*Leave it out"),
        ("synthetic:motion", RecipeError, "unknown scene 'motion', expected one of: shapes, motions"),
    ],
)
def test_bad_uri(uri: str, error: type[EdgeSdkError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(uri)


@pytest.mark.parametrize("index", [-1, 12])
def test_frame_out_of_the_clip(index: int) -> None:
    with pytest.raises(VideoError, match=f"no frame {index}, the clip has frames 0 to 11"):
        scene().frame_at(index)


def test_source_gives_its_scene_and_joins_with_others() -> None:
    with MotionSource(MotionSettings(height=24, width=32, frames=12)) as source:
        assert same(list(source)[3], source.scene.frame_at(3))
    options = "height=24&width=32&frames=3"
    with open_source(f"joined:synthetic:motions?seed=1,synthetic:motions?seed=2#{options}") as joined:
        labels = [frame.truth.labels for frame in joined if frame.truth is not None]
    assert labels == [("right",)] * 3 + [("up",)] * 3
