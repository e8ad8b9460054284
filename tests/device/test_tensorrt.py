"""TensorRT on a GPU: a pair that is built here answers as ONNX Runtime does, alone and beside torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the pair is written with onnx")

from edge_sdk.build.tensorrt import TensorRTSettings, build_plan
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.runtime.tensorrt import MODULES, TensorRtBackend, TensorRtEngine
from tests.device.kernels import require_gpu
from tests.graphs import PAIRS, TinyPair, random_images

pytestmark = pytest.mark.gpu

SIZE = (64, 96)
IMAGES = random_images(20, SIZE)


class Beside(TensorRtBackend):
    """Takes the plan beside a graph, so that a bundle of graphs runs without an engine set."""

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> TensorRtEngine:
        return super().load(path, options, path.with_suffix(".plan").read_bytes())


@pytest.fixture(autouse=True)
def gpu() -> None:
    require_gpu()
    if not any(find_spec(name) for name in MODULES):
        pytest.skip(f"neither {' nor '.join(MODULES)} is installed")


@pytest.fixture(params=list(PAIRS))
def built(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TinyPair, Path]:
    """A pair, and its bundle with a plan beside each graph."""
    pair = PAIRS[request.param](SIZE)
    bundle = pair.write(tmp_path / "bundle", EverySchedule(interval=4))
    for step in ("keyframe", "delta"):
        graph = bundle.path / f"{step}.onnx"
        build_plan(
            graph, graph.with_suffix(".plan"), step=step, precision="float32", settings=TensorRTSettings()
        )
    return pair, bundle.path


@pytest.mark.parametrize("options", [CudaOptions(), CudaOptions(graphs=False), CudaOptions(memory="mapped")])
def test_a_pair_answers_as_its_formulas(built: tuple[TinyPair, Path], options: CudaOptions) -> None:
    """Sums and halves of bytes are exact in float32, so TensorRT has no room to differ."""
    pair, bundle = built
    backend = Beside(options)
    with EdgeRunner(bundle, backend=backend, engine="float32") as runner:
        results = [runner(image).copy() for image in IMAGES]
    expected = pair.expected(IMAGES, [result.kind for result in results])
    for result, mask, image in zip(results, expected, IMAGES, strict=True):
        np.testing.assert_array_equal(result.mask, mask)
        tells = pair.name == "tiny-telling" and result.kind == "delta"
        assert result.trust == (image[0, 0, 2] / 256 if tells else None)
    print(backend.report)


def test_keyframes_beside_the_frames(built: tuple[TinyPair, Path]) -> None:
    pair, bundle = built
    if pair.name == "tiny-chaining":
        pytest.skip("its delta step rewrites the state, so keyframes are run in turn")
    with EdgeRunner(bundle, backend=Beside(), engine="float32", background=BackgroundKeyframes()) as runner:
        for image in IMAGES:
            result = runner(image)
            assert pair.delta_formula is not None
            _, state = pair.keyframe_formula(IMAGES[result.seq - result.state_age], None)
            formula = pair.keyframe_formula if result.kind == "keyframe" else pair.delta_formula
            np.testing.assert_array_equal(result.mask, formula(image, state)[0])


def test_torch_in_the_same_process(built: tuple[TinyPair, Path]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA, or sees no GPU")
    pair, bundle = built
    weights = torch.randn(64, 64, device="cuda", dtype=torch.float64)
    before = (weights @ weights).sum().item()
    results = []
    with EdgeRunner(bundle, backend=Beside(), engine="float32", threaded=False) as runner:
        for image in IMAGES:
            results.append(runner(image).copy())
            assert (weights @ weights).sum().item() == pytest.approx(before)
    expected = pair.expected(IMAGES, [result.kind for result in results])
    assert all(np.array_equal(found.mask, mask) for found, mask in zip(results, expected, strict=True))
    assert (weights @ weights).sum().item() == pytest.approx(before)
