"""Buffers, streams, graphs, swaps and errors on a GPU, with kernels of our own: neither TensorRT nor a compiler needed.

Over the simulated driver the same tests run everywhere (``tests/cuda/test_simulated.py``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the pair's bundle is written with onnx")

from edge_sdk.bundle import Bundle
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.result import Result, StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.runtime.several import MultiRunner
from tests.device.kernels import SIZE, STEPS, KernelBackend, require_gpu
from tests.graphs import random_images, residual

pytestmark = pytest.mark.gpu

PAIR = residual(SIZE)
IMAGES = random_images(40, SIZE)


@pytest.fixture(autouse=True)
def gpu() -> None:
    require_gpu()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return PAIR.write(tmp_path / "bundle", EverySchedule(interval=4))


def check(results: list[Result], images: list[np.ndarray] = IMAGES) -> None:
    """Every answer is the formulas', for the state whose age it tells."""
    assert PAIR.delta_formula is not None
    for result, image in zip(results, images, strict=True):
        _, state = PAIR.keyframe_formula(images[result.seq - result.state_age], None)
        formula = PAIR.keyframe_formula if result.kind is StepKind.KEYFRAME else PAIR.delta_formula
        np.testing.assert_array_equal(result.mask, formula(image, state)[0])


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("memory", ["auto", "pinned", "mapped", "managed"])
def test_a_pair_of_kernels_answers_as_its_formulas(bundle: Bundle, memory: Any, graphs: bool) -> None:
    backend = KernelBackend(CudaOptions(memory=memory, graphs=graphs))
    with EdgeRunner(bundle, backend=backend) as runner:
        results = [runner(image).copy() for image in IMAGES]
    check(results)
    report = backend.report
    assert report is not None
    assert memory in ("auto", report.memory)
    for state in report.graphs.values():
        assert state == "captured" or "cuda-python" in state if graphs else state == "turned off"
    print(report)


@pytest.mark.parametrize("spin", [True, False])
def test_waiting_with_and_without_spinning(bundle: Bundle, spin: bool) -> None:
    with EdgeRunner(bundle, backend=KernelBackend(CudaOptions(spin=spin))) as runner:
        check([runner(image).copy() for image in IMAGES])


def test_keyframes_beside_the_frames(bundle: Bundle) -> None:
    with EdgeRunner(bundle, backend=KernelBackend(), background=BackgroundKeyframes()) as runner:
        results = [runner(image).copy() for image in IMAGES]
        assert runner.keyframe_failures == 0
    check(results)
    assert [result.kind for result in results].count(StepKind.KEYFRAME) == 1
    assert len({result.seq - result.state_age for result in results}) > 1


def test_streams_share_a_pair(bundle: Bundle) -> None:
    clips = [random_images(12, SIZE, seed=seed) for seed in range(4)]
    with MultiRunner(bundle, streams=4, backend=KernelBackend()) as runner:
        found = [[runner(s, clips[s][i]).copy() for s in range(4)] for i in range(12)]
    for stream, clip in enumerate(clips):
        check([row[stream] for row in found], clip)


def test_a_result_outlives_the_gpu(bundle: Bundle) -> None:
    for memory in ("pinned", "mapped", "managed"):
        with EdgeRunner(bundle, backend=KernelBackend(CudaOptions(memory=memory))) as runner:
            result = runner(IMAGES[0])
        check([result], IMAGES[:1])


def test_a_swap_is_captured_anew(bundle: Bundle) -> None:
    """Another kernel in the same engine: the old graph would launch the old one."""
    engine = KernelBackend().load(bundle.path / "keyframe.onnx", EngineOptions())
    buffers = {spec.name: engine.allocate(spec) for specs in STEPS["keyframe"] for spec in specs}
    step = engine.bind(buffers)
    buffers["frame"].host[:] = IMAGES[0]
    step.run()
    step.run()
    np.testing.assert_array_equal(buffers["mask"].host, IMAGES[0][..., 0] // 64)
    engine.function = engine.kernels["delta"]
    step.recapture()
    buffers["frame"].host[:] = IMAGES[1]
    for _ in range(2):
        step.run()
        state = PAIR.keyframe_formula(IMAGES[0], None)[1]
        assert PAIR.delta_formula is not None
        np.testing.assert_array_equal(buffers["mask"].host, PAIR.delta_formula(IMAGES[1], state)[0])
    times = step.device_times
    assert times is not None
    assert times.compute_ms > 0
    # Both are copied, unless the memory is one.
    assert (times.upload_ms > 0) == (times.download_ms > 0) == buffers["frame"].copied
    engine.close()


def test_opening_and_closing_again_and_again_takes_no_memory(bundle: Bundle) -> None:
    free = []
    backend = KernelBackend()
    outer = backend.load(bundle.path / "keyframe.onnx", EngineOptions())  # keeps the context
    for _ in range(6):
        with EdgeRunner(bundle, backend=backend, threaded=False) as runner:
            check([runner(image).copy() for image in IMAGES[:8]], IMAGES[:8])
        with outer.device as device:
            free.append(device.driver.mem_get_info()[0])
    outer.close()
    assert free[1:] == free[:1] * 5


def test_torch_in_the_same_process(bundle: Bundle) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA, or sees no GPU")
    ones = torch.ones(1000, device="cuda")
    with EdgeRunner(bundle, backend=KernelBackend(), threaded=False) as runner:
        for index, image in enumerate(IMAGES):
            check_one = runner(image).copy()
            check([check_one], [image]) if check_one.kind is StepKind.KEYFRAME else None
            ones += 1
            assert int(ones.sum().item()) == 1000 * (index + 2)
    # It goes on when we are gone: the context was never ours alone.
    assert int((ones @ ones).item()) == 1000 * (len(IMAGES) + 1) ** 2


_LOST = """
import sys
from pathlib import Path
from edge_sdk.errors import DeviceLostError
from edge_sdk.runtime.engine import EngineOptions
from tests.device.kernels import STEPS, KernelBackend
engine = KernelBackend().load(Path("keyframe.onnx"), EngineOptions())
step = engine.bind({spec.name: engine.allocate(spec) for specs in STEPS["keyframe"] for spec in specs})
engine.function = engine.kernels["broken"]
errors = []
for _ in range(2):
    try:
        step.run()
    except DeviceLostError as error:
        errors.append(error)
engine.close()
print(len(errors), errors[0])
sys.exit(errors[0].exit_code)
"""


def test_an_error_that_stays_ends_the_process_with_its_own_code() -> None:
    """In a process of its own: nothing on the GPU works in it afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", _LOST], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 75, done.stderr[-2000:]
    assert done.stdout.startswith("2 step of keyframe.onnx: ")
    assert "start it again" in done.stdout
