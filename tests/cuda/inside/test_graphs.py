"""CUDA graphs through real cuda-python: captured once, launched, refused, captured again."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.runtime.cuda import graphs
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.engine import EngineOptions
from tests.cuda.world import OUT_OF_MEMORY, DeviceOrtBackend, DeviceOrtEngine, watched
from tests.graphs import random_images, residual

SIZE = (16, 24)
IMAGES = random_images(6, SIZE)


class Step:
    def __init__(self, folder: Path, **options: Any) -> None:
        graph = residual(SIZE).write(folder / "bundle").path / "keyframe.onnx"
        self.backend = DeviceOrtBackend(CudaOptions(**options))
        self.engine: DeviceOrtEngine = self.backend.load(graph, EngineOptions())
        self.buffers = {
            spec.name: self.engine.allocate(spec) for spec in (*self.engine.inputs, *self.engine.outputs)
        }
        self.step = self.engine.bind(self.buffers)

    def check(self, image: np.ndarray) -> None:
        self.buffers["frame"].host[:] = image
        self.step.run()
        np.testing.assert_array_equal(self.buffers["mask"].host, image[..., 0] // 64)

    @property
    def note(self) -> str:
        return self.engine.device.report.graphs["keyframe"]


def test_the_first_run_is_plain_and_the_others_are_one_launch(tmp_path: Path) -> None:
    with watched() as driver:
        step = Step(tmp_path)
        assert not step.step.captured
        for image in IMAGES:
            step.check(image)
        assert step.note == "captured"
        calls = driver.report().calls
        # Enqueued plainly once, and once more into the capture.
        assert (calls["sim_launch"], calls["cuGraphLaunch"]) == (2, len(IMAGES) - 1)
        assert calls["cuStreamBeginCapture_v2"] == calls["cuGraphInstantiateWithFlags"] == 1
        step.engine.close()


def test_after_a_swap_it_is_captured_anew(tmp_path: Path) -> None:
    with watched() as driver:
        step = Step(tmp_path)
        step.check(IMAGES[0])
        step.check(IMAGES[1])
        step.step.recapture()
        assert not step.step.captured
        assert driver.report().live["executables"] == 0
        step.check(IMAGES[2])
        assert step.step.captured
        step.check(IMAGES[3])
        calls = driver.report().calls
        assert (calls["cuStreamBeginCapture_v2"], calls["sim_launch"], calls["cuGraphLaunch"]) == (2, 4, 2)
        step.engine.close()


def test_a_refusal_is_kept_and_the_step_goes_on(tmp_path: Path) -> None:
    with watched() as driver:
        driver.refuse_capture()
        step = Step(tmp_path)
        for image in IMAGES:
            step.check(image)
        assert step.note == "cuStreamBeginCapture failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        assert driver.report().calls["cuStreamBeginCapture_v2"] == 1
        step.engine.close()


def test_a_capture_that_fails_half_way_leaves_a_stream_that_works(tmp_path: Path) -> None:
    with watched() as driver:
        step = Step(tmp_path)
        driver.fail("cuGraphInstantiateWithFlags", OUT_OF_MEMORY)
        for image in IMAGES:
            step.check(image)
        assert step.note == "cuGraphInstantiate failed: CUDA_ERROR_OUT_OF_MEMORY"
        assert driver.report().live["graphs"] == 0
        step.engine.close()


def test_what_must_not_be_captured_is_refused(tmp_path: Path) -> None:
    """As TensorRT's own work may: it waits, or allocates, and the capture is void."""
    with watched(allowed=("capture violation",)):
        step = Step(tmp_path)
        execution: Any = step.step._execution
        plain = execution.enqueue

        def allocating(stream: int) -> None:
            if execution.runs:
                step.engine.device.driver.mem_alloc(16)
            plain(stream)

        execution.enqueue = allocating
        step.check(IMAGES[0])
        execution.enqueue = plain
        assert "operation not permitted when stream is capturing" in step.note
        for image in IMAGES:
            step.check(image)
        assert not step.step.captured
        step.engine.close()


def test_turned_off(tmp_path: Path) -> None:
    with watched() as driver:
        step = Step(tmp_path, graphs=False)
        for image in IMAGES:
            step.check(image)
        assert step.note == "turned off"
        assert "cuGraphLaunch" not in driver.report().calls
        step.engine.close()


def test_without_cuda_python_the_reason_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*graphs.MODULES, "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with watched():
        step = Step(tmp_path)
        for image in IMAGES:
            step.check(image)
        assert "cuda-python cannot be imported" in step.note
        assert "pip install cuda-python" in step.note
        step.engine.close()


def test_the_layout_that_is_installed_is_used() -> None:
    """The file is run with each of the two, by ``tests/cuda/test_simulated.py``."""
    try:
        import_module("cuda.bindings")
    except ImportError:
        assert graphs.bindings().__name__ == "cuda.cuda"
    else:
        assert graphs.bindings().__name__ == "cuda.bindings.driver"
