from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import (
    BundleError,
    ClosedError,
    EdgeSdkError,
    EngineError,
    FrameOrderError,
    MissingFileError,
    RecipeError,
    ShapeError,
)
from edge_sdk.runtime.engine import BoundStep, DeviceTimes
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule, ExternalSchedule
from edge_sdk.video.frame import Frame
from tests.graphs import PAIRS, TinyPair, per_frame, random_images, residual

K, D, S = StepKind.KEYFRAME, StepKind.DELTA, StepKind.SKIP


@pytest.fixture(scope="module", params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest) -> TinyPair:
    return PAIRS[request.param]()


@pytest.fixture(scope="module")
def bundle(pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pair.write(tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture
def runner(bundle: Bundle) -> Iterator[EdgeRunner]:
    with EdgeRunner(bundle, threads=1) as opened:
        yield opened


def answers(runner: EdgeRunner, images: list[np.ndarray]) -> list[Result]:
    return [runner(image).copy() for image in images]


def assert_as_numpy(pair: TinyPair, images: list[np.ndarray], results: list[Result]) -> None:
    expected = pair.expected(images, [result.kind for result in results])
    for index, (result, mask) in enumerate(zip(results, expected, strict=True)):
        np.testing.assert_array_equal(result.mask, mask, err_msg=f"frame {index}, {result.kind}")


def test_a_stream_is_answered_as_in_numpy(pair: TinyPair, runner: EdgeRunner) -> None:
    images = random_images(10)
    results = answers(runner, images)
    assert [result.kind for result in results] == [K, D, D] * 3 + [K]
    assert [result.state_age for result in results] == [0, 1, 2] * 3 + [0]
    assert [result.seq for result in results] == list(range(10))
    assert_as_numpy(pair, images, results)


def test_the_pairs_can_tell_a_wrong_step(pair: TinyPair) -> None:
    """The checker is worth something: steps, order and state all show in the masks."""
    images = random_images(4)
    right = pair.expected(images, [K, D, D, D])
    assert (pair.expected(images, [K, K, D, D])[1] != right[1]).any()
    assert (pair.expected(images, [K, K, D, D])[2] != right[2]).any()
    swapped = pair.expected([images[0], images[2], images[1], images[3]], [K, D, D, D])
    assert (swapped[3] != right[3]).any() == (pair.name == "tiny-chaining")


def test_a_folder_and_the_bundles_own_schedule(pair: TinyPair, tmp_path: Path) -> None:
    bundle = pair.write(tmp_path / "b", EverySchedule(interval=2, phase=1))
    with EdgeRunner(str(bundle.path)) as runner:
        assert runner.schedule == EverySchedule(interval=2, phase=1)
        assert [result.kind for result in answers(runner, random_images(4))] == [K, K, D, K]


def test_skip_repeats_the_last_answer(pair: TinyPair, bundle: Bundle) -> None:
    images = random_images(7)
    with EdgeRunner(bundle, schedule=EverySchedule(interval=3, between="skip"), threads=1) as runner:
        results = answers(runner, images)
    assert [result.kind for result in results] == [K, S, S, K, S, S, K]
    assert [result.state_age for result in results] == [0, 1, 2, 0, 1, 2, 0]
    assert results[1].times.copy_in_ms == results[1].times.step_ms == results[1].times.decode_ms == 0
    assert_as_numpy(pair, images, results)


def test_change_schedule_in_a_runner(bundle: Bundle) -> None:
    still, other = np.full((4, 6, 3), 9, np.uint8), np.full((4, 6, 3), 200, np.uint8)
    with EdgeRunner(bundle, schedule=ChangeSchedule(threshold=5), threads=1) as runner:
        kinds = [result.kind for result in answers(runner, [still, still, other, other, still])]
    assert kinds == [K, D, K, D, K]


def test_a_requested_keyframe_comes_once(pair: TinyPair, bundle: Bundle) -> None:
    images = random_images(5)
    with EdgeRunner(bundle, schedule=ExternalSchedule(), threads=1) as runner:
        results = answers(runner, images[:3])
        runner.request_keyframe()
        results += answers(runner, images[3:])
    assert [result.kind for result in results] == [K, D, D, K, D]
    assert_as_numpy(pair, images, results)


@pytest.mark.parametrize(
    ("seqs", "kinds"),
    [
        ((0, 1, 2, 3), (K, D, D, D)),
        ((7, 8, 9), (K, D, D)),
        ((0, 1, 3, 4), (K, D, K, D)),
        ((0, 1, 0, 1), (K, D, K, D)),
        ((0, 2, 1), (K, K, K)),
    ],
)
def test_lost_frames_force_a_keyframe(
    seqs: tuple[int, ...], kinds: tuple[StepKind, ...], pair: TinyPair, bundle: Bundle
) -> None:
    images = random_images(len(seqs))
    with EdgeRunner(bundle, schedule=ExternalSchedule(), threads=1) as runner:
        results = [runner(Frame(image, seq, 0.5)).copy() for image, seq in zip(images, seqs, strict=True)]
    assert tuple(result.kind for result in results) == kinds
    assert tuple(result.seq for result in results) == seqs
    assert_as_numpy(pair, images, results)


def test_a_frame_given_twice_is_refused(pair: TinyPair, runner: EdgeRunner) -> None:
    images = random_images(2)
    results = [runner(Frame(images[0], 5, 0.0)).copy()]
    with pytest.raises(
        FrameOrderError, match=r"its seq is 5, as the last frame's.*Give each frame a seq of its own"
    ):
        runner(Frame(images[0], 5, 0.0))
    results.append(runner(Frame(images[1], 6, 0.0)).copy())
    assert [result.kind for result in results] == [K, D]
    assert_as_numpy(pair, images, results)


def test_bare_images_count_on_from_frames(runner: EdgeRunner) -> None:
    images = random_images(3)
    before = time.monotonic()
    assert runner(Frame(images[0], 41, 1.25)).captured_s == 1.25
    result = runner(images[1])
    assert (result.seq, result.kind) == (42, D)
    assert before <= result.captured_s <= result.delivered_s <= time.monotonic()
    assert runner(Frame(images[2], 43, 1.5)).kind is D


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((8, 6, 3), np.uint8),
            r"frame: expected \(4, 6, 3\) uint8 \(BGR\), got \(8, 6, 3\) uint8\. Give frames of 4 x 6, or export",
        ),
        (np.zeros((4, 6), np.uint8), r"expected \(4, 6, 3\) uint8 \(BGR\), got \(4, 6\) uint8"),
        (np.zeros((3, 4, 6), np.uint8), r"expected \(4, 6, 3\) uint8 \(BGR\), got \(3, 4, 6\) uint8"),
        (np.zeros((4, 6, 4), np.uint8), r"expected \(4, 6, 3\) uint8 \(BGR\), got \(4, 6, 4\) uint8"),
        (np.zeros((4, 6, 3), np.float32), r"expected \(4, 6, 3\) uint8 \(BGR\), got \(4, 6, 3\) float32"),
        (np.zeros((4, 6, 3), np.int8), r"got \(4, 6, 3\) int8"),
        ([[[0, 0, 0]]], r"frame: expected a numpy array \(4, 6, 3\) uint8, got list"),
        (None, r"expected a numpy array .* got NoneType"),
    ],
)
def test_wrong_frames_are_refused_and_change_nothing(
    image: np.ndarray, message: str, pair: TinyPair, runner: EdgeRunner
) -> None:
    images = random_images(3)
    results = answers(runner, images[:2])
    for wrong in (image, Frame(image, 2, 0.0)):
        with pytest.raises(ShapeError, match=message):
            runner(wrong)
    results += answers(runner, images[2:])
    assert [result.kind for result in results] == [K, D, D]
    assert_as_numpy(pair, images, results)


def test_frames_need_not_be_contiguous_or_writable(pair: TinyPair, runner: EdgeRunner) -> None:
    images = random_images(3)
    mirrored = np.ascontiguousarray(images[1][:, ::-1])[:, ::-1]
    assert not mirrored.flags.c_contiguous
    images[2].flags.writeable = False
    results = answers(runner, [images[0], mirrored, images[2]])
    assert_as_numpy(pair, images, results)


def test_frames_are_not_kept(pair: TinyPair, runner: EdgeRunner) -> None:
    images = random_images(2)
    reused = images[0].copy()
    first = runner(reused).copy()
    reused[:] = images[1]
    results = [first, runner(reused).copy()]
    reused[:] = 0
    assert_as_numpy(pair, images, results)


def test_results_are_views_until_the_next_call(runner: EdgeRunner) -> None:
    images = random_images(2)
    images[0][:], images[1][:] = 0, 255
    first = runner(images[0])
    kept = first.copy()
    assert not first.mask.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first.mask[0, 0] = 1
    assert (first.mask == 0).all()
    runner.request_keyframe()
    second = runner(images[1])
    assert np.shares_memory(first.mask, second.mask)
    assert (first.mask == second.mask).all()
    assert (second.mask == 3).all()
    assert (kept.mask == 0).all()
    kept.mask[0, 0] = 1
    assert (kept.kind, kept.seq, kept.times) == (first.kind, first.seq, first.times)


def test_results_stay_readable_after_close(bundle: Bundle) -> None:
    with EdgeRunner(bundle) as runner:
        result = runner(np.full((4, 6, 3), 255, np.uint8))
    assert (result.mask == 3).all()


def test_stage_times_add_up(runner: EdgeRunner) -> None:
    for result in answers(runner, random_images(4)):
        stages = (result.times.copy_in_ms, result.times.step_ms, result.times.decode_ms)
        assert all(stage > 0 for stage in stages)
        assert sum(stages) <= result.times.total_ms < 1000


def test_plot_draws_over_the_frame(runner: EdgeRunner) -> None:
    image = random_images(1)[0]
    result = runner(image)
    drawn = result.plot(image, alpha=1.0)
    np.testing.assert_array_equal(drawn, result.task.spec.colours()[result.mask])


def test_stream_answers_every_frame_as_a_new_stream(pair: TinyPair, runner: EdgeRunner) -> None:
    images = random_images(4)
    frames = [Frame(image, index, index / 30) for index, image in enumerate(images)]
    runner(images[0])  # another stream's single frame, of the same seq
    for _ in range(2):
        pairs = [(frame, result.copy()) for frame, result in runner.stream(frames)]
        assert [frame for frame, _ in pairs] == frames
        results = [result for _, result in pairs]
        assert [result.captured_s for result in results] == [frame.captured_s for frame in frames]
        assert [result.kind for result in results] == [K, D, D, K]
        assert_as_numpy(pair, images, results)


ORDERS = st.lists(st.booleans(), min_size=1, max_size=24)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=ORDERS, interval=st.integers(1, 5), seed=st.integers(0, 5))
def test_interleaved_runners_equal_runners_alone(
    order: list[bool], interval: int, seed: int, pair: TinyPair, two_runners: dict[int, list[EdgeRunner]]
) -> None:
    runners = two_runners[interval]
    streams = [random_images(order.count(side), seed=seed + side) for side in (False, True)]
    for runner in runners:
        runner.reset()
    alone = [answers(runner, images) for runner, images in zip(runners, streams, strict=True)]
    for runner in runners:
        runner.reset()
    left = [iter(images) for images in streams]
    together: list[list[Result]] = [[], []]
    for side in order:
        together[side].append(runners[side](next(left[side])).copy())
    for images, one, other in zip(streams, alone, together, strict=True):
        assert [(r.kind, r.seq, r.state_age) for r in one] == [(r.kind, r.seq, r.state_age) for r in other]
        assert_as_numpy(pair, images, one)
        assert_as_numpy(pair, images, other)


@pytest.fixture(scope="module")
def two_runners(bundle: Bundle) -> Iterator[dict[int, list[EdgeRunner]]]:
    pairs = {
        interval: [
            EdgeRunner(bundle, schedule=EverySchedule(interval=interval), threads=1).open() for _ in range(2)
        ]
        for interval in range(1, 6)
    }
    yield pairs
    for runners in pairs.values():
        for runner in runners:
            runner.close()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.integers(0, 9), requested=st.booleans(), interval=st.integers(1, 5))
def test_reset_equals_a_fresh_runner(
    before: int, requested: bool, interval: int, pair: TinyPair, bundle: Bundle
) -> None:
    images = random_images(6)
    schedule = EverySchedule(interval=interval, phase=interval - 1)
    with (
        EdgeRunner(bundle, schedule=schedule, threads=1) as used,
        EdgeRunner(bundle, schedule=schedule, threads=1) as fresh,
    ):
        answers(used, random_images(before, seed=9))
        if requested:
            used.request_keyframe()
        used.reset()
        again, new = answers(used, images), answers(fresh, images)
    assert [(r.kind, r.seq, r.state_age) for r in again] == [(r.kind, r.seq, r.state_age) for r in new]
    assert_as_numpy(pair, images, again)
    assert_as_numpy(pair, images, new)


def test_reopened_equals_fresh(pair: TinyPair, bundle: Bundle) -> None:
    images = random_images(4)
    runner = EdgeRunner(bundle, threads=1)
    for _ in range(2):
        with runner:
            results = answers(runner, images)
            assert [result.kind for result in results] == [K, D, D, K]
            assert_as_numpy(pair, images, results)


def test_a_closed_runner_says_so(bundle: Bundle) -> None:
    runner = EdgeRunner(bundle)
    image = random_images(1)[0]
    for _ in range(2):
        for call in (
            lambda: runner(image),
            lambda: next(iter(runner.stream([]))),
            runner.reset,
            runner.request_keyframe,
            lambda: runner.state_bytes,
        ):
            with pytest.raises(ClosedError, match=r"runner: it is not open\. Use it inside `with EdgeRunner"):
                call()
        with runner:
            assert runner(image).kind is K
        runner.close()
        runner.close()


def test_an_error_in_the_block_closes_too(bundle: Bundle) -> None:
    runner = EdgeRunner(bundle)
    with pytest.raises(KeyError), runner:
        raise KeyError
    with pytest.raises(ClosedError):
        runner.reset()


class _FailingStep:
    def __init__(self, step: BoundStep) -> None:
        self.step, self.fails = step, False

    @property
    def device_times(self) -> DeviceTimes | None:
        return self.step.device_times

    def run(self) -> None:
        self.start()
        self.wait()

    def start(self) -> None:
        self.step.start()

    def finished(self) -> bool:
        return self.step.finished()

    def wait(self) -> None:
        self.step.wait()
        if self.fails:
            self.fails = False
            raise EngineError("the device is gone.")


@pytest.mark.parametrize("failing", [D, K])
def test_after_a_failed_step_comes_a_keyframe(failing: StepKind, pair: TinyPair, bundle: Bundle) -> None:
    images = random_images(6)
    with EdgeRunner(bundle, schedule=ExternalSchedule(), threads=1) as runner:
        stream = runner._opened()
        keyframe = _FailingStep(stream._keyframes[0])
        stream._keyframes = (keyframe,)
        deltas = [_FailingStep(step) for step in stream._deltas[0]]
        stream._deltas = (tuple(deltas),)
        results = answers(runner, images[:2])
        for step in [keyframe] if failing is K else deltas:
            step.fails = True
        if failing is K:
            runner.request_keyframe()
        with pytest.raises(EngineError, match="the device is gone"):
            runner(images[2])
        for step in (keyframe, *deltas):
            step.fails = False
        results += answers(runner, images[3:])
    assert [result.kind for result in results] == [K, D, K, D, D]
    assert [result.seq for result in results] == [0, 1, 2, 3, 4]
    assert_as_numpy(pair, images[:2] + images[3:], results)


def test_state_bytes(pair: TinyPair, runner: EdgeRunner, bundle: Bundle) -> None:
    assert bundle.state_bytes == 96
    assert runner.state_bytes == (192 if pair.name == "tiny-chaining" else 96)


def test_the_delta_graph_is_loaded_only_where_it_is_used(tmp_path: Path) -> None:
    bundle = residual().write(tmp_path / "b")
    bundle.graph_path("delta").unlink()
    with EdgeRunner(bundle, schedule=AlwaysSchedule(), threads=1) as runner:
        assert [result.kind for result in answers(runner, random_images(3))] == [K, K, K]
    with pytest.raises(MissingFileError, match=r"delta\.onnx"):
        EdgeRunner(bundle).open()


def test_a_per_frame_network(tmp_path: Path) -> None:
    pair, images = per_frame(), random_images(3)
    bundle = pair.write(tmp_path / "b")
    with EdgeRunner(bundle, threads=1) as runner:
        results = answers(runner, images)
        assert runner.state_bytes == 0
    assert [result.kind for result in results] == [K, K, K]
    assert_as_numpy(pair, images, results)
    with pytest.raises(BundleError, match=r"schedule 'every': it asks for delta steps, .*AlwaysSchedule"):
        EdgeRunner(bundle, schedule=EverySchedule(interval=5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"threads": 0}, RecipeError, r"EdgeRunner: 'threads'.*greater than or equal to 1, got 0"),
        ({"threads": -2}, RecipeError, r"'threads'.*greater than or equal to 1, got -2"),
        ({"threads": 1.5}, RecipeError, r"'threads'.*integer, got 1\.5"),
        ({"threads": True}, RecipeError, r"'threads'.*integer, got True"),
        (
            {"backend": "tensort"},
            RecipeError,
            r"backend: expected one of onnxruntime, tensorrt, got 'tensort'",
        ),
        ({"schedule": "every"}, RecipeError, r"schedule: expected one of AlwaysSchedule, .* got 'every'"),
        ({"bundle": "absent"}, MissingFileError, r"expected a folder at absent"),
    ],
)
def test_bad_arguments_are_refused_at_once(
    arguments: dict[str, object], error: type[EdgeSdkError], message: str, bundle: Bundle
) -> None:
    with pytest.raises(error, match=message):
        EdgeRunner(**{"bundle": bundle, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("build", PAIRS.values(), ids=PAIRS)
def test_no_array_is_allocated_a_frame(build: Callable[[tuple[int, int]], TinyPair], tmp_path: Path) -> None:
    """numpy reports its memory to tracemalloc: one mask (30 kB) or frame (90 kB) more would show in the peak."""
    size_hw = (150, 200)
    bundle = build(size_hw).write(tmp_path / "b")
    images = random_images(4, size_hw)
    with EdgeRunner(bundle, threads=1) as runner:
        runner(images[0])
        tracemalloc.start()
        try:
            for index in range(60):
                runner(images[index % 4])
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # Python and ONNX Runtime settle some kilobytes of their own in the first frames.
    assert kept < 20_000
    assert peak < 25_000
