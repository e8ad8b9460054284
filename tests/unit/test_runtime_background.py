"""Keyframes beside the frames, with a lane that finishes when the test says so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, EngineError, RecipeError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.onnxruntime import OrtBackend, ThreadLane
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, ExternalSchedule
from edge_sdk.video.frame import Frame
from tests.graphs import chaining, random_images, residual

K, D = StepKind.KEYFRAME, StepKind.DELTA


class ManualLane(ThreadLane):
    """Runs what was started when ``finish`` is called; before ``hold`` it runs at once, as warming up needs."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Callable[[], None], Future[None]]] = []
        self.holds = self.fails = False

    def submit(self, work: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        self.held.append((work, future))
        if not self.holds:
            self.finish()
        return future

    def finish(self) -> None:
        held, self.held = self.held, []
        for work, future in held:
            if self.fails:
                future.set_exception(EngineError("the teacher's lane broke."))
            else:
                work()
                future.set_result(None)

    def close(self) -> None:
        self.finish()
        super().close()


class ManualBackend(OrtBackend):
    def __init__(self) -> None:
        self.lanes: list[ManualLane] = []

    def open_lane(self) -> ManualLane:
        self.lanes.append(ManualLane())
        return self.lanes[-1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return residual().write(tmp_path_factory.mktemp("background") / "b")


@contextmanager
def opened(bundle: Bundle, interval: int = 4) -> Iterator[tuple[EdgeRunner, ManualLane]]:
    backend = ManualBackend()
    runner = EdgeRunner(
        bundle,
        backend=backend,
        schedule=EverySchedule(interval=interval),
        background=BackgroundKeyframes(threads=1),
        threads=1,
    ).open()
    lane = backend.lanes[0]
    lane.holds = True
    with runner:
        yield runner, lane
        lane.finish()  # closing waits for what is under way


def expected(images: list[np.ndarray], seq: int, result: Result) -> np.ndarray:
    """The residual pair's answer from the frame that the result says its state comes from."""
    blue, green = (image.astype(np.float32) for image in (images[seq][..., 0], images[seq][..., 1]))
    if result.kind is K:
        return np.floor(blue / 64).astype(np.uint8)
    key = images[seq - result.state_age].astype(np.float32)
    return np.floor(np.clip(green + key[..., 0] - key[..., 1], 0, 255) / 64).astype(np.uint8)


def check(images: list[np.ndarray], seq: int, result: Result) -> None:
    np.testing.assert_array_equal(result.mask, expected(images, seq, result), err_msg=f"frame {seq}")


def test_deltas_go_on_with_the_older_state_until_the_keyframe_is_done(bundle: Bundle) -> None:
    images = random_images(12)
    told = []
    with opened(bundle) as (runner, lane):
        for seq, image in enumerate(images):
            if seq == 6:  # the keyframe of frame 4 took two frames
                lane.finish()
            if seq == 9:
                lane.finish()
            result = runner(image)
            told.append((result.kind, result.state_age))
            check(images, seq, result)
    ages = [0, 1, 2, 3, 4, 5, 2, 3, 4, 1, 2, 3]
    assert told == [(K, 0)] + [(D, age) for age in ages[1:]]


@given(finishes=st.lists(st.booleans(), min_size=1, max_size=24), interval=st.integers(2, 6))
def test_every_answer_rests_on_the_frame_that_it_names(
    bundle: Bundle, finishes: list[bool], interval: int
) -> None:
    images = random_images(len(finishes), seed=interval)
    with opened(bundle, interval) as (runner, lane):
        for seq, (image, finish) in enumerate(zip(images, finishes, strict=True)):
            if finish:
                lane.finish()
            result = runner(image)
            assert result.seq == seq
            assert (result.kind is K) == (seq == 0)
            check(images, seq, result)


def test_a_keyframe_that_was_under_way_at_a_gap_is_forgotten(bundle: Bundle) -> None:
    images = random_images(20)
    with opened(bundle) as (runner, lane):
        for seq in range(5):
            runner(Frame(images[seq], seq, 0.0))
        assert lane.held  # of frame 4
        after = runner(Frame(images[9], 9, 0.0))
        assert (after.kind, after.state_age) == (K, 0)
        lane.finish()
        following = runner(Frame(images[10], 10, 0.0))
        assert (following.kind, following.state_age) == (D, 1)
        check(images, 10, following)


def test_a_keyframe_that_fails_is_logged_once_and_the_older_state_serves_on(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    images = random_images(10)
    with opened(bundle) as (runner, lane), caplog.at_level(logging.ERROR):
        ages = []
        for seq, image in enumerate(images):
            if seq == 6:
                lane.fails = True
                lane.finish()
                lane.fails = False
            result = runner(image)
            check(images, seq, result)
            ages.append(result.state_age)
        # The next one that is due runs in turn: were the engine broken for good, the caller would know.
        assert ages == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
        assert runner.keyframe_failures == 1
    assert [record.message for record in caplog.records] == [
        "keyframe of frame 4 failed beside the stream: the teacher's lane broke."
    ]


def test_a_request_waits_for_the_lane_and_is_not_lost(bundle: Bundle) -> None:
    images = random_images(8)
    with opened(bundle, interval=100) as (runner, lane):
        runner(images[0])
        runner.request_keyframe()
        runner(images[1])
        assert len(lane.held) == 1
        runner.request_keyframe()
        runner(images[2])
        assert len(lane.held) == 1  # the first is still under way
        lane.finish()
        assert runner(images[3]).state_age == 2  # of frame 1; the second request starts here
        lane.finish()
        assert runner(images[4]).state_age == 1


def test_reset_forgets_and_starts_in_turn(bundle: Bundle) -> None:
    images = random_images(6)
    with opened(bundle, interval=2) as (runner, lane):
        for image in images[:3]:
            runner(image)
        runner.reset()
        lane.finish()
        result = runner(images[3])
        assert (result.kind, result.seq) == (K, 0)


@pytest.mark.parametrize("fails", [False, True])
def test_bare_runs_wait_for_the_keyframe_that_is_under_way(bundle: Bundle, fails: bool) -> None:
    images = random_images(7)
    with opened(bundle) as (runner, lane):
        for image in images[:5]:
            runner(image)
        assert lane.held  # of frame 4
        lane.fails = fails
        timer = threading.Timer(0.05, lane.finish)
        timer.start()
        assert [found.kind for found in runner.time_bare([D, D])] == [D, D]
        assert not lane.held
        timer.join()
        for seq, age in ((5, 5 if fails else 1), (6, 6 if fails else 2)):
            result = runner(images[seq])
            assert (result.kind, result.state_age) == (D, age)
            check(images, seq, result)
        assert runner.keyframe_failures == fails


def test_a_bare_keyframe_leaves_the_one_that_was_under_way_alone(bundle: Bundle) -> None:
    images = random_images(6)
    with opened(bundle) as (runner, lane):
        for image in images[:5]:
            runner(image)
        timer = threading.Timer(0.05, lane.finish)
        timer.start()
        runner.time_bare([K])
        timer.join()
        result = runner(images[5])
        assert (result.kind, result.state_age) == (D, 1)
        check(images, 5, result)


def test_two_streams_interleaved_equal_two_alone(bundle: Bundle) -> None:
    left, right = random_images(9, seed=1), random_images(9, seed=2)

    def alone(images: list[np.ndarray]) -> list[np.ndarray]:
        with opened(bundle, 3) as (runner, lane):
            found = []
            for image in images:
                lane.finish()
                found.append(runner(image).mask.copy())
            return found

    with opened(bundle, 3) as one, opened(bundle, 3) as other:
        masks: list[list[np.ndarray]] = [[], []]
        for pair in zip(left, right, strict=True):
            for index, ((runner, lane), image) in enumerate(zip((one, other), pair, strict=True)):
                lane.finish()
                masks[index].append(runner(image).mask.copy())
    for found, wanted in zip(masks, (alone(left), alone(right)), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_on_a_real_thread_every_frame_is_answered(bundle: Bundle) -> None:
    images = random_images(200)
    with EdgeRunner(
        bundle, schedule=EverySchedule(interval=5), background=BackgroundKeyframes(), threads=1
    ) as runner:
        for seq, image in enumerate(images):
            check(images, seq, runner(image))
        assert runner.keyframe_failures == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"schedule": AlwaysSchedule()}, BundleError, "asks for no delta steps"),
        ({"background": BackgroundKeyframes(threads=4096)}, RecipeError, "leave none of the"),
    ],
)
def test_what_cannot_be_is_refused(
    bundle: Bundle, arguments: dict, kind: type[Exception], message: str
) -> None:
    given = {"schedule": ExternalSchedule(), "background": BackgroundKeyframes(), **arguments}
    with pytest.raises(kind, match=message):
        EdgeRunner(bundle, **given).open()


def test_a_pair_that_rewrites_its_state_is_refused(tmp_path: Path) -> None:
    bundle = chaining().write(tmp_path / "b")
    with pytest.raises(BundleError, match="rewrites the state 'memory'"):
        EdgeRunner(bundle, background=BackgroundKeyframes(), threads=1).open()
