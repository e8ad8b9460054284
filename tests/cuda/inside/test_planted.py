"""Bugs planted in the CUDA files or in their use: each is found, by the driver or by an answer that is wrong.

Each test plants one bug and runs what finds it. Without the bug the same is among the other files' tests.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import DeviceLostError, EngineError
from edge_sdk.runtime.background import BackgroundKeyframe, BackgroundKeyframes
from edge_sdk.runtime.cuda.device import CudaDevice
from edge_sdk.runtime.cuda.memory import CudaBuffer
from edge_sdk.runtime.cuda.native import NativeError
from edge_sdk.runtime.cuda.step import CudaStep
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from tests.cuda.inside.test_lifecycle import FRAME, IMAGE, MASK, STATE, Loaded
from tests.cuda.inside.test_runner import IMAGES, SIZE, check_states
from tests.cuda.world import DRIVER, DeviceOrtBackend
from tests.graphs import PAIRS, random_images, residual


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    residual(SIZE).write(tmp_path / "bundle")
    return tmp_path / "bundle" / "keyframe.onnx"


@pytest.fixture(autouse=True)
def driver() -> Any:
    """Each test begins with a driver that has seen nothing, and leaves none of its own."""
    DRIVER.configure()
    yield DRIVER
    while DRIVER.report().live["retained"]:
        DRIVER.call("cuDevicePrimaryCtxRelease_v2", 0)


def problems() -> set[str]:
    return set(DRIVER.report().problems)


def wrong_answers(tmp_path: Path, name: str = "chaining") -> int:
    """Of a stream, how many frames are answered otherwise than by the pair's formulas."""
    pair = PAIRS[name](SIZE)
    made = pair.write(tmp_path / "pair", EverySchedule(interval=4))
    with EdgeRunner(made, backend=DeviceOrtBackend(), threaded=False) as runner:
        results = [runner(image).copy() for image in IMAGES]
    expected = pair.expected(IMAGES, [result.kind for result in results])
    return sum(not np.array_equal(found.mask, mask) for found, mask in zip(results, expected, strict=True))


def test_control(tmp_path: Path) -> None:
    assert wrong_answers(tmp_path) == 0
    assert problems() == set()


@pytest.mark.parametrize(("mode", "wrong"), [("late", True), ("eager", False)])
def test_a_missing_wait(mode: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found because work is done late; a GPU that happens to be quick hides it."""

    def wait(step: CudaStep) -> None:
        step._pending = False

    monkeypatch.setattr(CudaStep, "wait", wait)
    DRIVER.configure(mode=mode)
    assert (wrong_answers(tmp_path) > 0) is wrong


def test_a_wait_for_the_wrong_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the work, not that of the copy behind it."""
    start = CudaStep.start

    def started(step: CudaStep) -> None:
        start(step)
        step._done, step._computed = step._computed, step._done

    monkeypatch.setattr(CudaStep, "start", started)
    with pytest.raises(EngineError, match="cuEventElapsedTime"):
        wrong_answers(tmp_path)


def test_a_frame_slot_that_is_reused_early(graph: Path) -> None:
    loaded = Loaded(graph)
    loaded.frame.host[:] = IMAGE
    loaded.step.start()
    loaded.frame.host[:] = 0  # the next frame, before this one has been copied
    loaded.step.wait()
    assert not np.array_equal(loaded.mask.host, IMAGE[..., 0] // 64)
    # The same, one frame after the other.
    np.testing.assert_array_equal(loaded.answer(), IMAGE[..., 0] // 64)
    loaded.engine.close()


def test_pageable_memory(graph: Path) -> None:
    """It would make every copy wait, and nobody would see why."""
    loaded = Loaded(graph)
    ((address, _),) = loaded.step._copies_in
    loaded.step._copies_in = ((address, np.array(IMAGE)),)
    loaded.step.run()
    loaded.engine.close()
    # The array may lie where memory of the driver's was, which is then used after it was freed.
    assert {"pageable copy"} <= problems() <= {"pageable copy", "use after free"}


def test_the_default_stream(graph: Path) -> None:
    loaded = Loaded(graph)
    device: CudaDevice = loaded.engine.device
    with device:
        device.driver.memcpy_dtoh_async(loaded.mask.host, loaded.mask.address)
    loaded.engine.close()
    assert problems() == {"default stream"}


@pytest.mark.parametrize(
    ("what", "plant"),
    [
        ("a buffer", lambda loaded: lose_buffer(loaded)),
        ("a host side", lambda loaded: setattr(loaded.frame, "_release", lambda: None)),
        ("a step", lambda loaded: loaded.engine.forget(loaded.step)),
        ("a graph", lambda loaded: keep_graph(loaded)),
        ("a lane", lambda loaded: loaded.backend.open_lane()),
    ],
)
def test_a_leak(what: str, plant: Callable[[Loaded], Any], graph: Path) -> None:
    loaded = Loaded(graph)
    # Held here, so that no reference count does what close() should have done.
    held = [loaded.step, loaded.state, loaded.frame, plant(loaded)]
    loaded.engine.close()
    if loaded.engine.device._users:
        loaded.engine.device.close()
    assert "leak" in problems() or DRIVER.report().live["retained"], what
    del held


def lose_buffer(loaded: Loaded) -> None:
    loaded.engine.device.forget(loaded.state)
    loaded.engine._buffers.remove(loaded.state)


def keep_graph(loaded: Loaded) -> None:
    loaded.answer()
    loaded.step._drop_graph = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize("side", ["device", "host"])
def test_a_double_free(side: str, graph: Path) -> None:
    loaded = Loaded(graph)
    buffer: CudaBuffer = loaded.frame
    address, pages = buffer.address, buffer.host.ctypes.data
    buffer.close()
    with loaded.engine.device as device:
        if side == "device":
            DRIVER.call("cuMemFree_v2", ctypes.c_uint64(address))
        else:
            with pytest.raises(device.errors):
                device.native.unlock_pages(pages)
    loaded.engine.close()
    assert problems() == {"double free"}


def test_memory_that_is_freed_while_it_is_used(graph: Path) -> None:
    loaded = Loaded(graph)
    loaded.step.start()
    loaded.state.close()
    loaded.step.wait()
    loaded.engine.close()
    assert problems() == {"use after free"}


def test_a_buffer_that_is_too_small(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded(graph)
    small = loaded.engine.allocate(MASK.model_copy(update={"shape": (8, 8)}))
    monkeypatch.setattr("edge_sdk.runtime.cuda.engine.check_buffers", lambda engine, buffers: None)
    loaded.bind(mask=small).run()
    loaded.engine.close()
    assert problems() == {"out of bounds"}


def test_a_call_from_the_wrong_thread(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not refused by us, the driver would still see that no context is current there."""
    loaded = Loaded(graph)
    monkeypatch.setattr(CudaDevice, "check_usable", lambda device: None)
    monkeypatch.setattr(loaded.engine.device._context, "push", lambda: None, raising=False)
    caught: list[BaseException] = []

    def stranger() -> None:
        try:
            loaded.step._began.record(loaded.engine.device.stream)
        except Exception as error:  # noqa: BLE001
            caught.append(error)

    thread = threading.Thread(target=stranger)
    thread.start()
    thread.join()
    monkeypatch.undo()
    loaded.engine.close()
    assert "invalid device context" in str(caught[0])
    assert problems() == {"no context"}


def test_no_current_context(graph: Path) -> None:
    loaded = Loaded(graph)
    with pytest.raises(loaded.engine.device.errors, match="launch failed: 201"):
        loaded.step._execution.enqueue(loaded.engine.device.stream.handle)  # type: ignore[union-attr]
    loaded.engine.close()
    assert problems() == {"no context"}


def test_a_push_without_its_pop(graph: Path) -> None:
    loaded = Loaded(graph)
    loaded.engine.device.__enter__()
    assert DRIVER.depth == 1  # control: zero, in every other test
    with pytest.raises(NativeError, match="context is destroyed"):
        loaded.engine.close()
    assert problems() == {"dead context"}


@pytest.mark.parametrize("mode", ["late", "shuffle"])
def test_state_that_is_swapped_before_its_event(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keyframe beside the frames is taken for finished when it has only been started."""

    def collect(keyframe: BackgroundKeyframe) -> tuple[int, int] | None:
        if keyframe._bank is None:
            return None
        bank, keyframe._bank = keyframe._bank, None
        keyframe._steps[bank]._pending = False  # type: ignore[attr-defined]
        return bank, keyframe._seq

    monkeypatch.setattr(BackgroundKeyframe, "collect", collect)
    DRIVER.configure(mode=mode, seed=3)
    images = random_images(40, SIZE, seed=2)
    made = residual(SIZE).write(tmp_path / "pair", EverySchedule(interval=3))
    with EdgeRunner(
        made, backend=DeviceOrtBackend(), background=BackgroundKeyframes(), threaded=False
    ) as runner:
        results = [runner(image).copy() for image in images]
    # The driver sees two streams at one state; and where work is late, answers rest on another state than they say.
    assert problems() == {"race"}
    if mode == "late":
        with pytest.raises(AssertionError):
            check_states(results, images)


def test_two_lanes_at_one_state(graph: Path) -> None:
    loaded = Loaded(graph)
    lane = loaded.backend.open_lane()
    beside = loaded.bind(lane, mask=loaded.engine.allocate(MASK), frame=loaded.engine.allocate(FRAME))
    loaded.step.start()
    beside.start()
    loaded.step.wait()
    beside.wait()
    lane.close()
    loaded.engine.close()
    assert problems() == {"race"}


def test_two_lanes_one_after_the_other_are_no_race(graph: Path) -> None:
    loaded = Loaded(graph)
    lane = loaded.backend.open_lane()
    beside = loaded.bind(lane, **{"state.memory.next": loaded.engine.allocate(STATE, host=False)})
    for step in (loaded.step, beside, loaded.step, beside):
        step.run()
    lane.close()
    loaded.engine.close()
    assert problems() == set()


def test_a_kernel_that_fails_is_not_taken_for_an_answer(graph: Path) -> None:
    loaded = Loaded(graph)
    execution: Any = loaded.step._execution
    execution.kernel = DRIVER.kernel(lambda: 1 / 0)
    with pytest.raises(DeviceLostError, match="unspecified launch failure"):
        loaded.answer()
    with pytest.raises(DeviceLostError, match="it failed before"):
        loaded.backend.load(graph, EngineOptions()).allocate(MASK)
    loaded.engine.close()
