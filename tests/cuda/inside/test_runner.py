"""Whole runners on the GPU's code path: their answers are those of the ONNX Runtime backend, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.bundle import Bundle
from edge_sdk.errors import DeviceLostError, EngineError
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import DriftSchedule, EverySchedule
from edge_sdk.runtime.several import MultiRunner
from edge_sdk.video.frame import Frame
from tests.cuda.world import DRIVER, OUT_OF_MEMORY, DeviceOrtBackend, Driver, watched
from tests.graphs import PAIRS, random_images, residual, telling, trusted
from tests.parity_world import INT8, with_int8

SIZE = (32, 48)
IMAGES = random_images(14, SIZE)
MODES = ["eager", "late", "shuffle"]
KINDS = ["pinned", "mapped", "managed"]


def answers(bundle: Bundle, backend: Any = "onnxruntime", **how: Any) -> list[tuple[Any, ...]]:
    """Everything of each result that does not depend on time; with a gap and a keyframe that was asked for."""
    found = []
    with EdgeRunner(bundle, backend=backend, threads=1, **how) as runner:
        for index, image in enumerate(IMAGES):
            if index == 7:
                runner.request_keyframe()
            result = runner(Frame(image, index + (index > 10), 0.0))
            found.append((result.kind, result.seq, result.state_age, result.mask.tobytes()))
    return found


@pytest.fixture(params=[*PAIRS, "int8-residual", "int8-chaining"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bundle, dict[str, Any]]:
    """A bundle, and which of its engines."""
    name = request.param.removeprefix("int8-")
    pair = PAIRS[name](SIZE)
    made = pair.write(tmp_path / "bundle", EverySchedule(interval=4))
    if name == request.param:
        return made, {}
    return with_int8(made, pair), {"engine": INT8}


@pytest.mark.parametrize("memory", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_the_cpu(bundle: tuple[Bundle, dict[str, Any]], mode: str, memory: Any) -> None:
    made, engine = bundle
    expected = answers(made, **engine)
    with watched(mode=mode, seed=5):
        backend = DeviceOrtBackend(CudaOptions(memory=memory))
        assert answers(made, backend, **engine) == expected
    assert backend.report is not None
    assert backend.report.memory == memory
    assert backend.report.graphs == {"keyframe": "captured", "delta": "captured"}
    assert {kind for kind, *_ in expected} == {StepKind.KEYFRAME, StepKind.DELTA}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_order_of_asynchronous_work(seed: int, tmp_path: Path) -> None:
    made = PAIRS["chaining"](SIZE).write(tmp_path / "bundle", EverySchedule(interval=5))
    with watched(mode="shuffle", seed=seed):
        assert answers(made, DeviceOrtBackend(), threaded=False) == answers(made)


@pytest.mark.parametrize("memory", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_what_a_delta_tells_reaches_the_schedule(mode: str, memory: Any, tmp_path: Path) -> None:
    """A scalar among the outputs: it is copied behind the answer, and read when both are there."""
    made = telling(SIZE).write(tmp_path / "bundle", DriftSchedule(below=0.5, min_interval=2))
    expected = told(made, "onnxruntime")
    assert {kind for kind, *_ in expected} == {StepKind.KEYFRAME, StepKind.DELTA}
    assert expected != told(made, "onnxruntime", schedule=EverySchedule(interval=4))
    with watched(mode=mode, seed=7):
        assert told(made, DeviceOrtBackend(CudaOptions(memory=memory))) == expected


def told(bundle: Bundle, backend: Any, **how: Any) -> list[tuple[StepKind, int, float | None]]:
    with EdgeRunner(bundle, backend=backend, threads=1, **how) as runner:
        results = [runner(image) for image in IMAGES]
    return [(result.kind, result.state_age, result.trust) for result in results]


def test_trust_costs_one_small_copy_a_delta(tmp_path: Path) -> None:
    made = telling(SIZE).write(tmp_path / "bundle", EverySchedule(interval=2))
    with (
        watched() as driver,
        EdgeRunner(made, backend=DeviceOrtBackend(CudaOptions(memory="pinned"))) as runner,
    ):
        driver.configure()
        for image in IMAGES:
            runner(image)
        calls = driver.report().calls
        assert calls["cuMemcpyDtoHAsync_v2"] == len(IMAGES) + len(IMAGES) // 2
        assert calls["cuEventSynchronize"] == len(IMAGES)


@pytest.mark.parametrize("mode", MODES)
def test_drift_with_keyframes_beside_the_frames(mode: str, tmp_path: Path) -> None:
    made = telling(SIZE).write(tmp_path / "bundle", DriftSchedule(below=0.5))
    low, high = (trusted(IMAGES[0], level) for level in (0, 255))
    with watched(mode=mode, seed=3):
        how: dict[str, Any] = {"background": BackgroundKeyframes(), "backend": DeviceOrtBackend()}
        with EdgeRunner(made, **how) as runner:
            quiet = [runner(high).state_age for _ in range(20)]
            assert quiet == list(range(20)), "a state that holds is kept"
            runner(low)
            ages = [runner(high).state_age for _ in range(20)]
    # One keyframe, of the frame after the drift; from where it is taken over the ages go on from its own.
    fresh = [index for index, age in enumerate(ages) if age == index]
    assert fresh
    assert ages == [index if index >= fresh[0] else 21 + index for index in range(20)]


def test_a_frame_makes_nothing_and_waits_once(tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle", EverySchedule(interval=4))
    with watched() as driver, EdgeRunner(made, backend=DeviceOrtBackend()) as runner:
        driver.configure()
        for _ in range(5):
            for image in IMAGES:
                runner(image)
        frames = 5 * len(IMAGES)
        calls = driver.report().calls
        assert calls == {
            # Once to start and once to wait; a block inside another would be more.
            "cuCtxPushCurrent_v2": 2 * frames,
            "cuCtxPopCurrent_v2": 2 * frames,
            "cuMemcpyHtoDAsync_v2": frames,
            "cuGraphLaunch": frames,
            "cuMemcpyDtoHAsync_v2": frames,
            "cuEventRecord": 4 * frames,
            "cuEventSynchronize": frames,
            "cuEventElapsedTime_v2": 3 * frames,
        }


@pytest.mark.parametrize("memory", KINDS)
def test_the_device_s_times_are_stages_of_a_frame(memory: Any, tmp_path: Path) -> None:
    """By the driver's clock: 1 us an operation, a record of an event too, and 1 ns a byte read or written."""
    made = residual(SIZE).write(tmp_path / "bundle", EverySchedule(interval=2))
    pixels = SIZE[0] * SIZE[1]
    frame_bytes, mask_bytes, state_bytes = 3 * pixels, pixels, 4 * pixels
    compute_ms = (2_000 + frame_bytes + mask_bytes + state_bytes) * 1e-6
    copied = memory == "pinned"
    upload_ms, download_ms = ((2_000 + 2 * size) * 1e-6 * copied for size in (frame_bytes, mask_bytes))
    with watched(), EdgeRunner(made, backend=DeviceOrtBackend(CudaOptions(memory=memory))) as runner:
        for image in IMAGES:
            times = runner(image).times
            assert times.gpu_ms == pytest.approx(compute_ms, rel=1e-4)
            assert times.copy_out_ms == pytest.approx(download_ms, rel=1e-4)
            assert times.copy_in_ms > upload_ms
            assert times.step_ms > 0
            stages = times.copy_in_ms + times.step_ms + times.copy_out_ms + times.decode_ms
            assert stages <= times.total_ms
        kinds = [StepKind.KEYFRAME, StepKind.DELTA, StepKind.DELTA]
        for found in runner.time_bare(kinds):
            assert found.gpu_ms == pytest.approx(compute_ms, rel=1e-4)
            assert found.wall_ms > 0


def test_bare_runs_do_what_a_frame_does_on_the_device(tmp_path: Path) -> None:
    made = PAIRS["chaining"](SIZE).write(tmp_path / "bundle", EverySchedule(interval=4))
    with watched() as driver, EdgeRunner(made, backend=DeviceOrtBackend()) as runner:
        counts = []
        for work in (lambda: [runner(image) for image in IMAGES[:4]], lambda: runner.time_bare(
            [StepKind.KEYFRAME, *[StepKind.DELTA] * 3]
        )):  # fmt: skip
            driver.configure()
            work()
            counts.append(driver.report().calls)
        assert counts[0] == counts[1]
        # The frames go on with their own keyframe.
        assert [runner(image).kind for image in IMAGES[4:6]] == [StepKind.KEYFRAME, StepKind.DELTA]


def test_a_start_on_a_device_is_told(tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle", EverySchedule(interval=5))
    with watched(), EdgeRunner(made, backend=DeviceOrtBackend(), background=BackgroundKeyframes()) as runner:
        times = runner.start_times
        assert set(times.first_ms) == set(times.second_ms) == {"keyframe", "delta", "background keyframe"}
        assert min(times.load_ms, times.bind_ms, *times.first_ms.values(), *times.second_ms.values()) > 0
        report = runner.device_report
        assert report is not None
        assert (report.memory, report.graphs) == ("pinned", {"keyframe": "captured", "delta": "captured"})


@pytest.mark.parametrize("memory", ["mapped", "managed"])
def test_memory_that_is_shared_is_not_copied(memory: Any, tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle")
    with watched() as driver:
        answers(made, DeviceOrtBackend(CudaOptions(memory=memory)))
        calls = driver.report().calls
    assert not {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"} & set(calls)


@pytest.mark.parametrize("memory", KINDS)
def test_a_result_is_readable_when_the_gpu_is_gone(memory: Any, tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle")
    DRIVER.configure()
    with EdgeRunner(made, backend=DeviceOrtBackend(CudaOptions(memory=memory))) as runner:
        result = runner(IMAGES[0])
        before = result.mask.copy()
    np.testing.assert_array_equal(result.mask, before)
    del result, runner
    report = DRIVER.report()
    assert not report.problems
    assert not any(report.live.values())


@pytest.mark.parametrize("mode", MODES)
def test_keyframes_beside_the_frames(mode: str, tmp_path: Path) -> None:
    """Each answer is exactly what the pair's formulas give for the state whose age the result tells."""
    pair = residual(SIZE)
    made = pair.write(tmp_path / "bundle", EverySchedule(interval=5))
    images = random_images(60, SIZE, seed=2)
    with watched(mode=mode, seed=9, patience=2) as driver:
        backend = DeviceOrtBackend()
        with EdgeRunner(made, backend=backend, background=BackgroundKeyframes()) as runner:
            results = [runner(image).copy() for image in images]
            assert runner.keyframe_failures == 0
        assert driver.report().calls["cuStreamSetAttribute"] == 1
    check_states(results, images)
    # The state in use is that of a keyframe beside the frames, one after another, and no frame waited for one.
    assert [result.kind for result in results].count(StepKind.KEYFRAME) == 1
    keyframes, grid = {result.seq - result.state_age for result in results}, set(range(0, 60, 5))
    assert keyframes == grid if mode != "shuffle" else keyframes <= grid and len(keyframes) > 4


def check_states(results: list[Result], images: list[np.ndarray]) -> None:
    pair = residual(SIZE)
    assert pair.delta_formula is not None
    for result, image in zip(results, images, strict=True):
        _, state = pair.keyframe_formula(images[result.seq - result.state_age], None)
        expected, _ = (
            pair.keyframe_formula(image, None)
            if result.kind is StepKind.KEYFRAME
            else pair.delta_formula(image, state)
        )
        np.testing.assert_array_equal(result.mask, expected)


@pytest.mark.parametrize("mode", ["late", "shuffle"])
def test_several_streams_share_one_pair(mode: str, tmp_path: Path) -> None:
    made = PAIRS["chaining"](SIZE).write(tmp_path / "bundle", EverySchedule(interval=4))
    clips = [random_images(10, SIZE, seed=seed) for seed in range(3)]
    with watched(mode=mode, seed=4), MultiRunner(made, streams=3, backend=DeviceOrtBackend()) as runner:
        found = [
            [runner(stream, clips[stream][index]).mask.copy() for stream in range(3)] for index in range(10)
        ]
    for stream, clip in enumerate(clips):
        schedule = runner.schedules[stream]
        with EdgeRunner(made, schedule=schedule, threads=1) as alone:
            for index, image in enumerate(clip):
                np.testing.assert_array_equal(found[index][stream], alone(image).mask)


def test_frames_may_be_submitted_from_any_thread(tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle")
    with watched(), EdgeRunner(made, backend=DeviceOrtBackend()) as runner:
        runner.submit(Frame(IMAGES[0], 0, 0.0))
        result = runner.latest(after=-1, timeout_s=60)
        assert result is not None
        np.testing.assert_array_equal(result.mask, IMAGES[0][..., 0] // 64)


@pytest.mark.parametrize(
    "name", ["cuMemcpyHtoDAsync_v2", "cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"]
)
def test_an_error_that_passes_costs_a_frame_and_a_keyframe(name: str, tmp_path: Path) -> None:
    made = PAIRS["chaining"](SIZE).write(tmp_path / "bundle", EverySchedule(interval=100))
    with watched() as driver, EdgeRunner(made, backend=DeviceOrtBackend(), threaded=False) as runner:
        runner(IMAGES[0])
        runner(IMAGES[1])
        driver.fail(name, OUT_OF_MEMORY)
        with pytest.raises(EngineError, match=r"step of .*delta.onnx: .*(out of|OUT_OF)") as caught:
            runner(IMAGES[2])
        assert type(caught.value) is EngineError
        result = runner(IMAGES[3])
        assert result.kind is StepKind.KEYFRAME
        np.testing.assert_array_equal(result.mask, IMAGES[3][..., 0] // 64)


def test_an_error_that_stays_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = residual(SIZE).write(tmp_path / "bundle")
    # A GPU that has failed frees nothing; its context takes all with it.
    with watched(allowed=("leak",)) as driver:
        runner = EdgeRunner(made, backend=DeviceOrtBackend(), threaded=False).open()
        runner(IMAGES[0])
        break_a_kernel(driver, runner)
        for _ in range(2):
            with pytest.raises(
                DeviceLostError, match="stay until the process ends: start it again"
            ) as caught:
                runner(IMAGES[1])
        assert caught.value.exit_code == 75
        runner.close()
        assert driver.report().live["retained"] == 0


def break_a_kernel(driver: Driver, runner: EdgeRunner) -> None:
    def broken() -> None:
        raise RuntimeError("wrote where it must not")

    assert runner._opening is not None
    step = runner._opening.streams[0]._keyframes[0]
    with step._device:  # type: ignore[attr-defined]
        driver.launch(step._device.stream.handle, [], [], driver.kernel(broken))  # type: ignore[attr-defined]
