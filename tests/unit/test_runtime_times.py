"""Times that a runner tells, by a clock and a device that do as the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.bundle import Bundle
from edge_sdk.errors import ClosedError, EngineError, RecipeError
from edge_sdk.runtime import opening, runner, steps, stream
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.engine import BoundStep, Buffer, DeviceTimes, EngineOptions, Lane
from edge_sdk.runtime.onnxruntime import OrtBackend, OrtEngine
from edge_sdk.runtime.result import BareTime, StageTimes, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule
from tests.graphs import PAIRS, TinyPair, per_frame, random_images, residual

K, D, S = StepKind.KEYFRAME, StepKind.DELTA, StepKind.SKIP
# What the clock goes on by whenever it is read, so that each stage of the host's has a length.
TICK_MS = 0.001
RUN_MS = {"keyframe": 10.0, "delta": 4.0}
# Of a run on the device; the rest of it is launching and waiting.
UPLOAD_MS, COMPUTE_SHARE, DOWNLOAD_MS = 0.75, 0.5, 0.25


class FakeTime:
    """Stands for the module ``time`` where the runtime reads it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        self.now_ns += round(TICK_MS * 1e6)
        return self.now_ns

    def perf_counter(self) -> float:
        return self.perf_counter_ns() / 1e9

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def pass_ms(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    found = FakeTime()
    for module in (stream, steps, opening, runner):
        monkeypatch.setattr(module, "time", found)
    return found


class TimedBackend(OrtBackend):
    """ONNX Runtime whose loads, bindings and runs take as long as is said, on a device or on the host."""

    load_ms, bind_ms = 100.0, 7.0
    cold = 20.0  # times as long is the first run of a binding

    def __init__(self, clock: FakeTime | None = None, on_device: bool = True) -> None:
        self.clock, self.on_device = clock or FakeTime(), on_device
        self.ran: list[str] = []
        self.fails = False

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> OrtEngine:
        self.clock.pass_ms(self.load_ms)
        engine = super().load(path, options, built)
        bind = engine.bind

        def timed(buffers: Mapping[str, Buffer], lane: Lane | None = None) -> BoundStep:
            self.clock.pass_ms(self.bind_ms)
            return TimedStep(bind(buffers, lane), self, path.stem, beside=lane is not None)

        engine.bind = timed  # type: ignore[method-assign,assignment]
        return engine


class TimedStep:
    def __init__(self, inner: BoundStep, backend: TimedBackend, name: str, beside: bool) -> None:
        self.inner, self.backend, self.name, self.beside = inner, backend, name, beside
        self.runs = 0
        self.device_times: DeviceTimes | None = None

    def run(self) -> None:
        self.start()
        self.wait()

    def start(self) -> None:
        self.inner.start()

    def finished(self) -> bool:
        return self.inner.finished()

    def wait(self) -> None:
        self.inner.wait()
        if self.backend.fails:
            raise EngineError("the device is gone.")
        run_ms = RUN_MS[self.name] * (1.5 if self.beside else 1.0)
        self.backend.clock.pass_ms(run_ms if self.runs else run_ms * self.backend.cold)
        self.backend.ran.append(self.name)
        self.runs += 1
        if self.backend.on_device:
            self.device_times = DeviceTimes(UPLOAD_MS, COMPUTE_SHARE * run_ms, DOWNLOAD_MS)


@pytest.fixture(scope="module", params=sorted(PAIRS))
def pair(request: pytest.FixtureRequest) -> TinyPair:
    return PAIRS[request.param]()


@pytest.fixture(scope="module")
def bundle(pair: TinyPair, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return pair.write(tmp_path_factory.mktemp("times") / "b", EverySchedule(interval=3))


@pytest.fixture
def opened(bundle: Bundle, clock: FakeTime) -> Iterator[EdgeRunner]:
    with EdgeRunner(bundle, backend=TimedBackend(clock), threads=1) as found:
        backend(found).ran.clear()
        yield found


def backend(runner: EdgeRunner) -> TimedBackend:
    assert isinstance(runner._backend, TimedBackend)
    return runner._backend


def same(found: float, expected_ms: float) -> bool:
    return found == pytest.approx(expected_ms, abs=1e-9)


# -- stages ------------------------------------------------------------------------------------------------------------


def stages(times: StageTimes) -> float:
    return times.copy_in_ms + times.step_ms + times.copy_out_ms + times.decode_ms


def test_on_a_device_its_copies_are_stages_of_their_own(opened: EdgeRunner) -> None:
    for image, name in zip(random_images(3), ("keyframe", "delta", "delta"), strict=True):
        times, run_ms = opened(image).times, RUN_MS[name]
        assert same(times.copy_in_ms, TICK_MS + UPLOAD_MS)
        assert same(times.step_ms, TICK_MS + run_ms - UPLOAD_MS - DOWNLOAD_MS)
        assert same(times.copy_out_ms, DOWNLOAD_MS)
        assert same(times.decode_ms, TICK_MS)
        assert times.gpu_ms == COMPUTE_SHARE * run_ms
        # What is left are the checks and the schedule, before the copy.
        assert same(times.total_ms - stages(times), TICK_MS)


def test_on_the_host_nothing_is_copied_out(bundle: Bundle, clock: FakeTime) -> None:
    with EdgeRunner(bundle, backend=TimedBackend(clock, on_device=False), threads=1) as runner:
        times = runner(random_images(1)[0]).times
    assert same(times.copy_in_ms, TICK_MS)
    assert same(times.step_ms, TICK_MS + RUN_MS["keyframe"])
    assert (times.copy_out_ms, times.gpu_ms) == (0.0, None)
    assert same(times.total_ms - stages(times), TICK_MS)


def test_a_skipped_frame_has_no_stages(bundle: Bundle, clock: FakeTime) -> None:
    schedule = EverySchedule(interval=2, between="skip")
    with EdgeRunner(bundle, backend=TimedBackend(clock), schedule=schedule, threads=1) as runner:
        runner(random_images(1)[0])
        result = runner(random_images(1)[0])
    assert result.kind is S
    assert (stages(result.times), result.times.gpu_ms) == (0.0, None)
    assert result.times.total_ms > 0


# -- start -------------------------------------------------------------------------------------------------------------


def test_what_opening_took(pair: TinyPair, opened: EdgeRunner) -> None:
    times = opened.start_times
    bindings = 3 if pair.name == "tiny-chaining" else 2  # a rewritten state has two slots
    assert times.check_ms == 0.0
    assert same(times.load_ms, 2 * TimedBackend.load_ms + TICK_MS)
    assert same(times.bind_ms, bindings * TimedBackend.bind_ms + TICK_MS)
    cold = TimedBackend.cold
    assert times.first_ms == pytest.approx({name: run * cold + TICK_MS for name, run in RUN_MS.items()})
    assert times.second_ms == pytest.approx({name: run + TICK_MS for name, run in RUN_MS.items()})


def test_a_bundle_that_the_runner_opens_is_checked_on_the_clock(bundle: Bundle, clock: FakeTime) -> None:
    with EdgeRunner(bundle.path, backend=TimedBackend(clock), schedule=AlwaysSchedule(), threads=1) as runner:
        times = runner.start_times
    assert same(times.check_ms, TICK_MS)
    assert same(times.load_ms, TimedBackend.load_ms + TICK_MS)
    assert set(times.first_ms) == set(times.second_ms) == {"keyframe"}


def test_keyframes_in_the_background_are_warmed_up_too(tmp_path: Path, clock: FakeTime) -> None:
    bundle = residual().write(tmp_path / "b")
    with EdgeRunner(
        bundle, backend=TimedBackend(clock), background=BackgroundKeyframes(), threads=1
    ) as runner:
        times = runner.start_times
        # Two banks of state: each step is bound, and run twice, for both.
        assert sorted(backend(runner).ran) == ["delta"] * 4 + ["keyframe"] * 8
    assert same(times.load_ms, 3 * TimedBackend.load_ms + TICK_MS)
    assert same(times.bind_ms, 6 * TimedBackend.bind_ms + TICK_MS)
    wanted = {**RUN_MS, "background keyframe": 1.5 * RUN_MS["keyframe"]}
    assert times.first_ms == pytest.approx({name: run * 20 + TICK_MS for name, run in wanted.items()})
    assert times.second_ms == pytest.approx({name: run + TICK_MS for name, run in wanted.items()})


def test_a_real_start_is_told_too(bundle: Bundle) -> None:
    with EdgeRunner(bundle.path, threads=1) as runner:
        times = runner.start_times
    for part in (times.check_ms, times.load_ms, times.bind_ms, *times.first_ms.values()):
        assert 0 < part < 60_000


# -- bare runs ---------------------------------------------------------------------------------------------------------


def test_bare_runs_are_runs_and_nothing_else(opened: EdgeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(random_images(1)[0])
    held = opened._opened()
    for name in ("_task", "_schedule", "_frame"):
        monkeypatch.setattr(held, name, None)  # whoever decodes, decides or copies fails
    ran = backend(opened).ran
    ran.clear()
    kinds = [K, D, D, K]
    times = opened.time_bare(kinds)
    assert ran == [kind.value for kind in kinds]
    assert [found.kind for found in times] == kinds
    for found in times:
        run_ms = RUN_MS[found.kind.value]
        assert same(found.wall_ms, run_ms + TICK_MS)
        assert found.gpu_ms == COMPUTE_SHARE * run_ms


def test_bare_runs_on_the_host_have_no_gpu_time(bundle: Bundle) -> None:
    with EdgeRunner(bundle, threads=1, threaded=True) as runner:
        runner(random_images(1)[0])
        times = runner.time_bare([K, D])
        assert runner.time_bare([]) == []
    assert all(isinstance(found, BareTime) and found.gpu_ms is None and found.wall_ms > 0 for found in times)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.lists(st.sampled_from([K, D]), max_size=5), min_size=1, max_size=12))
def test_frames_go_on_as_if_nothing_had_been_run(
    runs: list[list[StepKind]], pair: TinyPair, plain: EdgeRunner
) -> None:
    """Kinds and ages are those without bare runs; after a reset the answers too, whatever slot those left."""
    images = random_images(len(runs))
    plain.reset()
    found = []
    for image, kinds in zip(images, runs, strict=True):
        result = plain(image)
        found.append((result.kind, result.state_age))
        plain.time_bare(kinds)
    plain.reset()
    results = [plain(image).copy() for image in images]
    assert found == [(result.kind, result.state_age) for result in results]
    expected = pair.expected(images, [result.kind for result in results])
    for result, mask in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.mask, mask)


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Iterator[EdgeRunner]:
    with EdgeRunner(bundle, threads=1) as found:
        yield found


def test_bare_steps_read_the_frame_and_state_that_are_there(pair: TinyPair, plain: EdgeRunner) -> None:
    """The bare keyframe is of the last frame, the deltas behind it of its state."""
    images = random_images(2)
    plain.reset()
    plain(images[0])
    mask = plain(images[1]).mask
    plain.time_bare([K, D, D])
    expected = pair.expected([images[1]] * 3, [K, D, D])
    np.testing.assert_array_equal(mask, expected[-1])


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([S], r"time_bare: expected keyframe or delta steps, got <StepKind\.SKIP"),
        ([K, S], "expected keyframe or delta"),
        ([None], "expected keyframe or delta steps, got None"),
        (
            [D],
            "a delta step reads a keyframe's state, and there is none yet.*Give a frame first, or begin with",
        ),
        ([D, K], "there is none yet"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    kinds: list[Any], message: str, opened: EdgeRunner
) -> None:
    with pytest.raises(RecipeError, match=message):
        opened.time_bare(kinds)
    assert backend(opened).ran == []


def test_without_a_state_a_keyframe_may_come_first_and_the_frames_still_begin_with_their_own(
    pair: TinyPair, opened: EdgeRunner
) -> None:
    images = random_images(3)
    for _ in range(2):
        assert len(opened.time_bare([K, D, D])) == 3
        with pytest.raises(RecipeError, match="there is none yet"):
            opened.time_bare([D])
        results = [opened(image).copy() for image in images]
        assert [result.kind for result in results] == [K, D, D]
        for result, mask in zip(results, pair.expected(images, [K, D, D]), strict=True):
            np.testing.assert_array_equal(result.mask, mask)
        opened.reset()


@pytest.mark.parametrize("make", [per_frame, residual])
def test_without_a_delta_step_there_are_no_bare_deltas(make: Callable[[], TinyPair], tmp_path: Path) -> None:
    bundle = make().write(tmp_path / "b")
    with EdgeRunner(bundle, schedule=AlwaysSchedule(), threads=1) as runner:
        runner(random_images(1)[0])
        assert [found.kind for found in runner.time_bare([K, K])] == [K, K]
        with pytest.raises(RecipeError, match="no delta step is loaded"):
            runner.time_bare([K, D])


def test_after_a_bare_run_that_fails_comes_a_keyframe(opened: EdgeRunner) -> None:
    images = random_images(4)
    assert [opened(image).kind for image in images[:2]] == [K, D]
    backend(opened).fails = True
    with pytest.raises(EngineError, match="the device is gone"):
        opened.time_bare([D])
    backend(opened).fails = False
    assert [opened(image).kind for image in images[2:]] == [K, K]  # forced, then the schedule's own


def test_a_closed_runner_tells_and_runs_nothing(bundle: Bundle) -> None:
    runner = EdgeRunner(bundle)
    for call in (lambda: runner.start_times, lambda: runner.time_bare([K])):
        with pytest.raises(ClosedError, match="runner: it is not open"):
            call()
