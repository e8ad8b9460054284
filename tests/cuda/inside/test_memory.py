"""Buffers, and which kind of memory is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import EngineError, RecipeError
from edge_sdk.runtime.cuda import memory
from edge_sdk.runtime.cuda.device import CudaDevice, CudaOptions
from edge_sdk.runtime.cuda.native import FUNCTIONS, NativeDriver, NativeError
from edge_sdk.runtime.engine import ALIGNMENT_BYTES, EngineOptions
from edge_sdk.settings import parse_settings
from edge_sdk.tensors import TensorSpec
from tests.cuda.world import DRIVER, OUT_OF_MEMORY, DeviceOrtBackend, watched
from tests.graphs import residual

SPEC = TensorSpec(name="frame", shape=(20, 30, 3), dtype="uint8")


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    with watched():
        made = CudaDevice(CudaOptions())
        yield made
        made.close()


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from(["uint8", "int8", "float16", "float32", "int64", "bool"]),
    kind=st.sampled_from([*memory.KINDS.values()]),
)
def test_a_buffer_is_aligned_zeroed_and_reached_from_both_sides(
    shape: tuple[int, ...], dtype: str, kind: memory.Memory
) -> None:
    spec = TensorSpec(name="any", shape=shape, dtype=dtype)
    with watched():
        device = CudaDevice(CudaOptions())
        with device:
            buffer = kind(device, spec)
            assert buffer.address % ALIGNMENT_BYTES == 0
            assert (buffer.host.shape, buffer.host.dtype) == (shape, np.dtype(dtype))
            assert buffer.host.flags.c_contiguous
            assert not buffer.host.any()
            buffer.host[...] = 1
            if buffer.copied and spec.size_bytes:
                device.driver.memcpy_htod(buffer.address, buffer.host)
            found = np.zeros(max(1, spec.size_bytes), np.uint8)
            device.driver.memcpy_dtoh(found, buffer.address)
            assert found[: spec.size_bytes].tobytes() == np.ones(shape, dtype).tobytes()
        device.close()
        del buffer


def test_state_stays_on_the_device(device: CudaDevice) -> None:
    with device:
        buffer = memory.device_only(device, SPEC)
    assert not buffer.has_host
    assert "cuMemHostRegister_v2" not in DRIVER.report().calls


def test_a_gpu_with_memory_of_its_own_copies(device: CudaDevice) -> None:
    with device:
        assert memory.choose(device, SPEC) is memory.pinned
    assert device.report.memory_reason == "the GPU has memory of its own"
    assert device.report.memory_ms == {}


@pytest.mark.parametrize("fastest", memory.KINDS)
def test_on_a_jetson_the_fastest_is_kept(fastest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {name: 2.0 - (name == fastest) for name in memory.KINDS}
    kinds = {kind: name for name, kind in memory.KINDS.items()}
    monkeypatch.setattr(memory, "measure", lambda device, spec, kind: times[kinds[kind]])
    with watched(integrated=True):
        device = CudaDevice(CudaOptions())
        with device:
            assert memory.choose(device, SPEC) is memory.KINDS[fastest]
            # Once: what is in use is not changed by a later buffer.
            times[fastest] = 9.0
            assert memory.choose(device, SPEC) is memory.KINDS[fastest]
        assert device.report.memory == fastest
        assert device.report.memory_reason == "the fastest for one frame in and out"
        device.close()


def test_kinds_are_measured_for_real_and_leave_nothing() -> None:
    with watched(integrated=True) as driver:
        device = CudaDevice(CudaOptions())
        with device:
            chosen = memory.choose(device, SPEC)
        report = device.report
        assert set(report.memory_ms) == {"pinned", "mapped", "managed"}
        assert all(time > 0 for time in report.memory_ms.values())
        assert memory.KINDS[min(report.memory_ms, key=report.memory_ms.__getitem__)] is chosen
        live = driver.report().live
        assert (live["memory"], live["events"]) == (0, 0)
        device.close()


def test_the_least_of_many_rounds_counts(device: CudaDevice) -> None:
    # Begin and end of each round, in seconds: the first two are warm-up and do not count.
    lengths = [0.001, 0.001, *[0.009] * 5, 0.004, *[0.009] * 4]
    ticks = iter([tick for length in lengths for tick in (0.0, length)])
    with device:
        assert memory.measure(device, SPEC, memory.pinned, lambda: next(ticks)) == pytest.approx(4.0)


def test_a_kind_that_does_not_work_is_named() -> None:
    with watched(integrated=True) as driver:
        device = CudaDevice(CudaOptions())
        driver.fail("cuMemAllocManaged", OUT_OF_MEMORY)
        with device:
            memory.choose(device, SPEC)
        assert set(device.report.memory_ms) == {"pinned", "mapped"}
        assert "managed: cuMemAllocManaged failed: out of memory" in device.report.memory_reason
        device.close()


def test_managed_memory_belongs_to_one_stream(tmp_path: Path) -> None:
    made = residual((8, 8)).write(tmp_path / "bundle")
    with watched():
        backend = DeviceOrtBackend(CudaOptions(memory="managed"))
        engine = backend.load(made.path / "keyframe.onnx", EngineOptions())
        lane = backend.open_lane()
        buffers = {spec.name: engine.allocate(spec) for spec in (*engine.inputs, *engine.outputs)}
        engine.bind(buffers)
        engine.bind(buffers)
        with pytest.raises(
            EngineError, match=r"managed memory belongs to the steps of one stream.*memory='pinned'"
        ):
            engine.bind(buffers, lane)
        del buffers
        lane.close()
        engine.close()


def test_options_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"'memory'.*'auto', 'pinned', 'mapped' or 'managed'"):
        parse_settings({"memory": "unified"}, CudaOptions, "options")


def test_the_driver_s_functions_exist() -> None:
    library = NativeDriver()._library
    for name in FUNCTIONS:
        assert getattr(library, name)


def test_pages_are_locked_once(device: CudaDevice) -> None:
    pages, _ = memory._pages(SPEC)
    with device:
        device.native.lock_pages(pages.ctypes.data, pages.nbytes)
        with pytest.raises(
            NativeError, match="cuMemHostRegister_v2 failed: part or all of the requested memory"
        ):
            device.native.lock_pages(pages.ctypes.data, pages.nbytes)
        device.native.unlock_pages(pages.ctypes.data)
