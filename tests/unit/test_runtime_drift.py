"""Keyframes by what the delta steps tell: the schedule alone, in runners, beside the frames, over several streams."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.drift import DriftSchedule, ToldSchedule
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import (
    SCHEDULES,
    AlwaysSchedule,
    EverySchedule,
    ScheduleSettings,
)
from edge_sdk.runtime.several import MultiRunner
from edge_sdk.video.frame import Frame
from tests.graphs import chaining, random_images, residual, telling, trusted
from tests.unit.test_runtime_background import ManualBackend

K, D = StepKind.KEYFRAME, StepKind.DELTA
BLANK = np.zeros((4, 6, 3), np.uint8)
HALF = DriftSchedule(below=0.5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return telling().write(tmp_path_factory.mktemp("drift") / "b", HALF)


def decisions(settings: DriftSchedule, trusts: list[float]) -> str:
    """One letter a frame, keyframes run in turn; what a frame's delta step would tell is ``trusts``."""
    schedule, letters, age = settings.start(), "", 0
    assert isinstance(schedule, ToldSchedule)
    for index, trust in enumerate(trusts):
        kind = schedule.decide(BLANK, age + 1 if index else None)
        age = 0 if kind is K else age + 1
        letters += kind.value[0]
        if kind is D:
            schedule.told(trust, age)
    return letters


@pytest.mark.parametrize(
    ("settings", "trusts", "expected"),
    [
        (HALF, [1, 1, 1, 1], "kddd"),
        # The keyframe comes one frame after the trust fell; what holds exactly half still holds.
        (HALF, [1, 0.5, 0.49, 1, 1], "kddkd"),
        (HALF, [1, 0.4, 0.9, 0.9], "kdkd"),
        # Never two in a row: what was told before a keyframe says nothing of the state after it.
        (HALF, [0] * 7, "kdkdkdk"),
        (DriftSchedule(below=0.5, min_interval=3), [0] * 8, "kddkddkd"),
        # Before the shortest interval is over the scene has come back.
        (DriftSchedule(below=0.5, min_interval=3), [1, 0, 0.8, 1, 0.3, 1], "kddddk"),
        (DriftSchedule(below=0.5, max_interval=3), [1] * 7, "kddkddk"),
        (DriftSchedule(below=0.5, max_interval=3), [1, 0, 1, 1, 1, 1, 1], "kdkddkd"),
        (DriftSchedule(below=1.0), [1, 1.0, 0.99, 1], "kddk"),
        # What is no number is no trust; half a network gone mad must not run on for ever.
        (HALF, [1, math.nan, 1, 1], "kdkd"),
    ],
)
def test_a_keyframe_follows_where_trust_fell(
    settings: DriftSchedule, trusts: list[float], expected: str
) -> None:
    assert decisions(settings, trusts) == expected


@given(
    trusts=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    below=st.floats(0.01, 1),
    shortest=st.integers(1, 5),
    longest=st.none() | st.integers(5, 12),
)
def test_intervals_keep_their_limits(
    trusts: list[float], below: float, shortest: int, longest: int | None
) -> None:
    letters = decisions(DriftSchedule(below=below, min_interval=shortest, max_interval=longest), trusts)
    places = [index for index, letter in enumerate(letters) if letter == "k"]
    gaps = [after - before for before, after in pairwise(places)]
    assert places[0] == 0
    assert all(shortest <= gap <= (longest or gap) for gap in gaps)
    for gap, place in zip(gaps, places[1:], strict=True):
        assert gap == longest or trusts[place - 1] < below
    for index, letter in enumerate(letters[1:], start=1):
        age = index - max(place for place in places if place < index)
        if letter == "d" and age > shortest:
            assert trusts[index - 1] >= below


def test_what_was_told_of_an_older_state_counts_for_nothing() -> None:
    schedule = HALF.start()
    assert isinstance(schedule, ToldSchedule)
    schedule.decide(BLANK, None)
    schedule.told(0.1, 4)
    # A keyframe beside the frames was taken over: the state is two frames old, not five.
    assert schedule.decide(BLANK, 2) is D
    schedule.told(0.1, 2)
    assert schedule.decide(BLANK, 3) is K
    schedule.told(0.1, 3)
    schedule.reset()
    assert schedule.decide(BLANK, 4) is D


@pytest.mark.parametrize("kind", [kind for kind in SCHEDULES if kind is not DriftSchedule])
def test_no_other_schedule_is_told(kind: type) -> None:
    settings = {"interval": 3, "threshold": 1.0, "length": 4, "samples": 2}
    made = kind(**{name: value for name, value in settings.items() if name in kind.model_fields})  # type: ignore[attr-defined]
    assert not isinstance(made.start(), ToldSchedule)


LEVELS = [255, 200, 100, 0, 250, 128, 127, 200]


def test_in_a_runner(bundle: Bundle) -> None:
    pair, images = telling(), [trusted(*one) for one in zip(random_images(8), LEVELS, strict=True)]
    with EdgeRunner(bundle, threads=1) as runner:
        assert runner.schedule == HALF
        for _ in range(2):
            results = [runner(image).copy() for image in images]
            assert [result.kind for result in results] == [K, D, D, K, D, D, D, K]
            expected = [None, 200, 100, None, 250, 128, 127, None]
            told = [None if result.trust is None else 256 * result.trust for result in results]
            assert told == expected
            masks = pair.expected(images, [result.kind for result in results])
            for result, mask in zip(results, masks, strict=True):
                np.testing.assert_array_equal(result.mask, mask)
            runner.reset()


def test_under_other_schedules_trust_is_told_too(bundle: Bundle) -> None:
    """So that ``below`` can be chosen from what a run shows."""
    images = [trusted(image, 64) for image in random_images(4)]
    with EdgeRunner(bundle, schedule=EverySchedule(interval=3), threads=1) as runner:
        assert [runner(image).trust for image in images] == [None, 0.25, 0.25, None]
    with EdgeRunner(bundle, schedule=AlwaysSchedule(), threads=1) as runner:
        assert [runner(image).trust for image in images] == [None] * 4


@pytest.mark.parametrize("build", [residual, chaining])
def test_a_step_that_does_not_tell_has_no_trust(build: object, tmp_path: Path) -> None:
    made = build().write(tmp_path / "b")  # type: ignore[operator]
    with EdgeRunner(made, threads=1) as runner:
        assert [runner(image).trust for image in random_images(4)] == [None] * 4
        assert runner._opened()._trust is None
    with pytest.raises(
        BundleError,
        match=r"schedule 'drift': it needs a delta step that tells .* has no output 'trust'\..*'every' or 'change'",
    ):
        EdgeRunner(made, schedule=HALF)
    with pytest.raises(BundleError, match="schedule 'drift': it needs a delta step that tells"):
        MultiRunner(made, streams=2, schedule=HALF)


def test_lost_frames_a_request_and_bare_runs(bundle: Bundle) -> None:
    high, low = (trusted(random_images(1)[0], level) for level in (255, 0))
    with EdgeRunner(bundle, threads=1) as runner:
        kinds = [runner(Frame(high, seq, 0.0)).kind for seq in (0, 1, 3, 4)]
        assert kinds == [K, D, K, D]
        runner.request_keyframe()
        assert runner(Frame(low, 5, 0.0)).kind is K
        # Bare runs leave their own trust in the buffer; nobody is told of it.
        runner.time_bare([D, D])
        assert [runner(Frame(high, seq, 0.0)).kind for seq in (6, 7)] == [D, D]


@pytest.mark.parametrize(
    ("levels", "busy"),
    [
        ({0: [255] * 8, 1: [0] * 8}, [0, 1]),
        ({0: [0] * 8, 1: [255] * 8}, [1, 0]),
    ],
)
def test_each_stream_hears_its_own_steps(
    levels: dict[int, list[int]], busy: list[int], bundle: Bundle
) -> None:
    images = random_images(8)
    found: dict[int, list[StepKind]] = {0: [], 1: []}
    with MultiRunner(bundle, streams=2, threads=1) as runner:
        for index, image in enumerate(images):
            for stream, shown in levels.items():
                found[stream].append(runner(stream, trusted(image, shown[index])).kind)
    quiet, moving = found[busy[0]], found[busy[1]]
    assert quiet == [K] + [D] * 7
    assert moving == [K, D] * 4


def test_beside_the_frames_one_keyframe_is_started_for_one_drift(bundle: Bundle) -> None:
    backend = ManualBackend()
    low = {2, 3, 4, 5}  # the scene moves on at frame 2; the keyframe of frame 3 is taken over at frame 6
    images = [trusted(image, 0 if index in low else 255) for index, image in enumerate(random_images(11))]
    started, ages = [], []
    with EdgeRunner(bundle, backend=backend, threads=1, background=BackgroundKeyframes(threads=1)) as runner:
        lane = backend.lanes[0]
        lane.holds = True
        for index, image in enumerate(images):
            if index == 6:
                lane.finish()
            before = len(lane.held)
            result = runner(image)
            ages.append(result.state_age)
            assert result.kind is (D if index else K)
            started += [index] * (len(lane.held) - before)
        lane.finish()
    assert started == [3]
    assert ages == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("schedule", [DriftSchedule(below=0.5, max_interval=1), HALF])
def test_a_schedule_that_asks_for_no_deltas_loads_none(schedule: ScheduleSettings, tmp_path: Path) -> None:
    made = telling().write(tmp_path / "b", schedule)
    with EdgeRunner(made, threads=1) as runner:
        assert (runner._opened().engines.delta is None) == (schedule != HALF)
        results = [runner(trusted(image, 255)).kind for image in random_images(3)]
    assert results == ([K, D, D] if schedule == HALF else [K, K, K])
