"""Contexts, threads, errors and the order of closing."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ClosedError, EdgeSdkError, EngineError, ShapeError
from edge_sdk.runtime.cuda.device import CudaLane, CudaOptions
from edge_sdk.runtime.cuda.memory import CudaBuffer
from edge_sdk.runtime.cuda.step import CudaStep
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.tensors import TensorSpec
from tests.cuda.world import DRIVER, OUT_OF_MEMORY, DeviceOrtBackend, DeviceOrtEngine, Driver, watched
from tests.graphs import random_images, residual

SIZE = (32, 48)
FRAME = TensorSpec(name="frame", shape=(*SIZE, 3), dtype="uint8")
MASK = TensorSpec(name="mask", shape=SIZE, dtype="uint8")
STATE = TensorSpec(name="memory", shape=SIZE, dtype="float32")
IMAGE = random_images(1, SIZE)[0]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    residual(SIZE).write(tmp_path / "bundle")
    return tmp_path / "bundle" / "keyframe.onnx"


@pytest.fixture
def driver() -> Iterator[Driver]:
    with watched() as found:
        yield found


class Loaded:
    """A keyframe step with its buffers."""

    def __init__(self, graph: Path, **options: Any) -> None:
        self.backend = DeviceOrtBackend(CudaOptions(**options))
        self.engine: DeviceOrtEngine = self.backend.load(graph, EngineOptions())
        self.frame = self.engine.allocate(FRAME)
        self.mask = self.engine.allocate(MASK)
        self.state = self.engine.allocate(STATE, host=False)
        self.step = self.bind()

    def bind(self, lane: CudaLane | None = None, **others: CudaBuffer) -> CudaStep:
        buffers = {"frame": self.frame, "mask": self.mask, "state.memory.next": self.state}
        return self.engine.bind({**buffers, **others}, lane)

    def answer(self) -> np.ndarray:
        self.frame.host[:] = IMAGE
        self.step.run()
        return self.mask.host.copy()


def test_everything_is_closed_in_order(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    lane = loaded.backend.open_lane()
    loaded.answer()
    loaded.answer()
    assert loaded.step.captured
    lane.close()
    loaded.engine.close()
    last = driver.report().last
    order = ["cuGraphExecDestroy", "cuEventDestroy_v2", "cuMemFree_v2", "cuMemHostUnregister", "cuStreamDestroy_v2",
             "cuDevicePrimaryCtxRelease_v2"]  # fmt: skip
    numbers = [last[name] for name in order]
    assert numbers[0] < numbers[1] < min(numbers[2:4])
    assert max(numbers[2:4]) < numbers[4] < numbers[5]
    assert loaded.engine.session is None


@pytest.mark.parametrize("lane_first", [True, False])
def test_the_device_stays_until_its_last_user_has_left(graph: Path, driver: Driver, lane_first: bool) -> None:
    loaded = Loaded(graph)
    lane, second = loaded.backend.open_lane(), loaded.backend.load(graph, EngineOptions())
    assert second.device is loaded.engine.device
    users: list[Any] = [lane, loaded.engine, second]
    for user in users if lane_first else reversed(users):
        assert driver.report().live["retained"] == 1
        user.close()
        user.close()
    assert driver.report().live["retained"] == 0
    # And a new one can be opened.
    again = Loaded(graph)
    np.testing.assert_array_equal(again.answer(), IMAGE[..., 0] // 64)
    again.engine.close()


def test_buffers_and_steps_may_be_closed_before_their_engine(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    for _ in range(3):
        other = loaded.engine.allocate(MASK)
        step = loaded.bind(mask=other)
        step.run()
        step.close()
        step.close()
        other.close()
        other.close()
    before = driver.report().live
    step = loaded.bind()
    step.close()
    assert driver.report().live == before
    loaded.engine.close()


@pytest.mark.parametrize("owner_first", [True, False])
def test_a_buffer_lives_as_long_as_a_step_uses_it(graph: Path, driver: Driver, owner_first: bool) -> None:
    """Several engines use the buffers of one; whichever is closed first, none finds memory that is gone."""
    loaded = Loaded(graph)
    keeper, other = (loaded.backend.load(graph, EngineOptions()) for _ in range(2))
    step = other.bind({"frame": loaded.frame, "mask": loaded.mask, "state.memory.next": loaded.state})
    mask = loaded.mask.host
    if owner_first:
        loaded.frame.host[:] = IMAGE
        loaded.engine.close()
        assert driver.report().live["memory"] > 0
        step.run()
        np.testing.assert_array_equal(mask, IMAGE[..., 0] // 64)
        other.close()
    else:
        other.close()
        loaded.answer()
        loaded.engine.close()
    # Nothing is kept for the sake of the device, which goes on.
    assert driver.report().live["memory"] == 0
    keeper.close()


def test_a_step_that_runs_is_waited_for(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    lane = loaded.backend.open_lane()
    beside = loaded.bind(lane)
    beside.start()
    lane.close()
    loaded.engine.close()
    for step in (beside, loaded.step):
        with pytest.raises(ClosedError, match="is closed"):
            step.start()


def test_the_first_error_is_raised_and_the_rest_is_released(graph: Path) -> None:
    with watched(allowed=("leak",)) as driver:
        loaded = Loaded(graph)
        loaded.answer()
        assert loaded.step.captured
        driver.fail("cuGraphExecDestroy", OUT_OF_MEMORY)
        driver.fail("cuMemHostUnregister", 1)
        with pytest.raises(Exception, match="cuGraphExecDestroy failed: CUDA_ERROR_OUT_OF_MEMORY"):
            loaded.engine.close()
        loaded.engine.close()
        # What could not be released, and nothing else.
        assert driver.report().problems["leak"][0] == 2
        assert driver.report().live["retained"] == 0


def test_between_calls_the_thread_has_the_context_that_it_had(graph: Path, driver: Driver) -> None:
    """As with torch in the same thread: the primary context is current, and is neither popped nor ended."""
    context, popped = ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuInit", 0)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    driver.call("cuCtxSetCurrent", context)
    loaded = Loaded(graph)
    assert driver.depth == 1
    loaded.answer()
    assert driver.depth == 1
    loaded.engine.close()
    assert driver.depth == 1
    assert driver.call("cuCtxSynchronize") == 0
    driver.call("cuCtxPopCurrent_v2", ctypes.byref(popped))
    driver.call("cuDevicePrimaryCtxRelease_v2", 0)
    assert popped.value == context.value


def test_no_context_of_its_own(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    assert driver.depth == 0
    loaded.answer()
    loaded.engine.close()
    calls = driver.report().calls
    assert "cuCtxCreate_v4" not in calls
    assert calls["cuDevicePrimaryCtxRetain"] == calls["cuDevicePrimaryCtxRelease_v2"] == 1
    assert calls["cuCtxPushCurrent_v2"] == calls["cuCtxPopCurrent_v2"]


CALLS: dict[str, Any] = {
    "allocate": lambda loaded: loaded.engine.allocate(MASK),
    "bind": lambda loaded: loaded.bind(),
    "start": lambda loaded: loaded.step.start(),
    "run": lambda loaded: loaded.step.run(),
    "recapture": lambda loaded: loaded.step.recapture(),
    "close a step": lambda loaded: loaded.step.close(),
    "close a buffer": lambda loaded: loaded.mask.close(),
    "close the engine": lambda loaded: loaded.engine.close(),
    "close the device": lambda loaded: loaded.engine.device.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_from_another_thread_are_refused(name: str, graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    caught = in_thread(lambda: CALLS[name](loaded))
    assert isinstance(caught, EngineError)
    assert "called from thread 'stranger'; everything on a GPU happens on the thread that loaded" in str(
        caught
    )
    assert "EdgeRunner(..., threaded=True)" in caught.hint
    # Nothing has happened to it.
    np.testing.assert_array_equal(loaded.answer(), IMAGE[..., 0] // 64)
    loaded.engine.close()


@pytest.mark.parametrize("name", ["wait", "finished"])
def test_what_runs_is_asked_about_by_its_own_thread(name: str, graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    loaded.step.start()
    caught = in_thread(getattr(loaded.step, name))
    assert isinstance(caught, EngineError)
    loaded.step.wait()
    loaded.engine.close()


def in_thread(work: Any) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            caught.append(error)

    thread = threading.Thread(target=run, name="stranger")
    thread.start()
    thread.join()
    return caught[0] if caught else None


def test_one_backend_serves_two_threads_with_a_device_each(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)

    def other() -> None:
        engine = loaded.backend.load(graph, EngineOptions())
        assert engine.device is not loaded.engine.device
        with pytest.raises(EngineError, match="closed or not of this engine's device"):
            engine.bind({"frame": loaded.frame, "mask": loaded.mask, "state.memory.next": loaded.state})
        engine.close()

    assert in_thread(other) is None
    loaded.answer()
    loaded.engine.close()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (lambda loaded: loaded.engine.bind({}), EngineError, "no buffer was given for"),
        (lambda loaded: loaded.bind(mask=loaded.frame), ShapeError, "'mask' expects"),
        (lambda loaded: loaded.bind(object()), EngineError, "expected a lane of this engine's device, got object"),
        (lambda loaded: loaded.state.host, EngineError, "buffer 'memory': it has no host side"),
        (lambda loaded: (loaded.step.start(), loaded.step.start()), EngineError, "started again before"),
        (lambda loaded: (loaded.step.start(), loaded.step.recapture()), EngineError, "it is running"),
    ],
)  # fmt: skip
def test_wrong_use(what: Any, error: type[Exception], message: str, graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    with pytest.raises(error, match=message):
        what(loaded)
    loaded.step.wait()
    loaded.engine.close()
    for closed in (lambda: loaded.engine.allocate(MASK), loaded.bind):
        with pytest.raises(ClosedError, match="closed"):
            closed()


@pytest.mark.parametrize(
    ("function", "where"),
    [
        ("cuDevicePrimaryCtxRetain", "GPU 0: it cannot be used"),
        ("cuStreamCreate", "GPU 0: it cannot be used: cuStreamCreate failed"),
        ("cuMemAlloc_v2", "buffer 'mask' of 1536 bytes: cuMemAlloc failed: out of memory"),
        ("cuMemHostRegister_v2", "buffer 'frame' of 4608 bytes: cuMemHostRegister_v2 failed"),
        ("cuEventCreate", "keyframe.onnx: it cannot be bound"),
    ],
)
def test_what_the_driver_refuses_is_named_and_nothing_is_left(
    function: str, where: str, graph: Path, driver: Driver
) -> None:
    # pycuda collects garbage and asks for memory once more.
    memory = function == "cuMemAlloc_v2"
    driver.fail(function, OUT_OF_MEMORY, after=int(memory), times=1 + memory)
    backend = DeviceOrtBackend()
    with pytest.raises(EdgeSdkError, match=where):
        use(backend, graph)
    # It was for once: the same again works.
    use(backend, graph)


def use(backend: DeviceOrtBackend, graph: Path) -> None:
    engine = backend.load(graph, EngineOptions())
    try:
        buffers = {"frame": engine.allocate(FRAME), "mask": engine.allocate(MASK)}
        engine.bind({**buffers, "state.memory.next": engine.allocate(STATE, host=False)}).run()
    finally:
        engine.close()


def test_a_graph_that_does_not_load_leaves_no_context(tmp_path: Path, driver: Driver) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match="refuses it"):
        DeviceOrtBackend().load(tmp_path / "broken.onnx", EngineOptions())
    assert driver.report().live["retained"] == 0


def test_the_gpu_is_timed_on_the_stream_that_works(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    assert loaded.step.device_times is None
    # The driver's clock: 1 us an operation and 1 ns a byte read or written. A span ends with its second event.
    upload_ns = 2000 + 2 * FRAME.size_bytes
    work_ns = 2000 + FRAME.size_bytes + MASK.size_bytes + STATE.size_bytes
    download_ns = 2000 + 2 * MASK.size_bytes
    for _ in range(3):
        loaded.answer()
        times = loaded.step.device_times
        assert times is not None
        assert times.upload_ms == pytest.approx(upload_ns * 1e-6, rel=1e-4)
        assert times.compute_ms == pytest.approx(work_ns * 1e-6, rel=1e-4)
        assert times.download_ms == pytest.approx(download_ns * 1e-6, rel=1e-4)
    loaded.engine.close()


@pytest.mark.parametrize("memory", ["mapped", "managed"])
def test_what_is_not_copied_takes_no_time(memory: str, graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph, memory=memory)
    loaded.answer()
    times = loaded.step.device_times
    assert times is not None
    assert (times.upload_ms, times.download_ms) == (0.0, 0.0)
    assert times.compute_ms > 0
    loaded.engine.close()


@pytest.mark.parametrize(("spin", "flags"), [(False, {0, 1}), (True, {0})])
def test_the_event_that_is_waited_for_blocks_unless_asked_to_spin(
    spin: bool, flags: set[int], graph: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(graph, spin=spin)
    module, given = loaded.engine.device.driver, []
    event = module.Event

    def made(flags: int = 0) -> Any:
        given.append(int(flags))
        return event(flags)

    monkeypatch.setattr(module, "Event", made)
    step = loaded.bind()
    monkeypatch.undo()
    assert (len(given), set(given)) == (4, flags)
    step.close()
    loaded.engine.close()


def test_the_main_stream_has_the_higher_priority(graph: Path, driver: Driver) -> None:
    loaded = Loaded(graph)
    lane = loaded.backend.open_lane()
    device, value = loaded.engine.device, ctypes.c_int()
    found = []
    with device:
        for owner in (device, lane):
            DRIVER.call("cuStreamGetPriority", ctypes.c_void_p(owner.stream.handle), ctypes.byref(value))
            found.append(value.value)
    assert found == [-5, 0]
    assert device.report.priorities == "on"
    lane.close()
    loaded.engine.close()


def test_a_driver_without_priorities_is_said(graph: Path, driver: Driver) -> None:
    driver.fail("cuStreamSetAttribute", 801)
    loaded = Loaded(graph)
    assert "all streams have the same: cuStreamSetAttribute failed" in loaded.engine.device.report.priorities
    loaded.answer()
    loaded.engine.close()
