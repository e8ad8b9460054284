"""The TensorRT backend over the simulated driver, with a stand-in for the package ``tensorrt``.

The stand-in has the names that TensorRT's own bindings have (``tests/tensorrt/test_api.py`` holds the backend's against
those) and runs ONNX Runtime over the addresses that it is given. What TensorRT itself does with an engine is seen on a
GPU alone: ``tests/device``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from edge_sdk.errors import DependencyError, EngineError
from edge_sdk.runtime import tensorrt
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import session_settings
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.runtime.tensorrt import TensorRtBackend, TensorRtEngine
from tests.cuda.inside.test_runner import IMAGES, SIZE
from tests.cuda.world import DRIVER, watched
from tests.graphs import PAIRS, residual

TYPES = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8"}


class FakeContext:
    def __init__(self, trt: Any, session: Any) -> None:
        self.trt, self.session = trt, session
        self.addresses: dict[str, int] = {}
        self.kernel: Any = None

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.trt.answers.get("set_tensor_address", True)

    def execute_async_v3(self, stream: int) -> bool:
        if not self.trt.answers.get("execute_async_v3", True):
            self.trt.say("the stream is of no use")
            return False
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if self.kernel is None:
            binding = self.session.io_binding()
            for bind, nodes in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
                for node in nodes:
                    dtype = {"FLOAT": "float32", "UINT8": "uint8"}[TYPES[node.type]]
                    bind(node.name, "cpu", 0, dtype, node.shape, self.addresses[node.name])
            self.kernel = DRIVER.kernel(lambda: self.session.run_with_iobinding(binding))
        ranges = [[(self.addresses[node.name], 1) for node in nodes] for nodes in (inputs, outputs)]
        return DRIVER.launch(stream, ranges[0], ranges[1], self.kernel) == 0


class FakeEngine:
    def __init__(self, trt: Any, plan: bytes) -> None:
        self.trt = trt
        settings = session_settings(ort)
        settings.intra_op_num_threads = 1
        self.session = ort.InferenceSession(plan, settings, providers=["CPUExecutionProvider"])
        self.nodes = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.nodes)

    def get_tensor_name(self, index: int) -> str:
        return str(self.nodes[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in [node.name for node in self.session.get_inputs()] else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.trt.answers.get("shape") or self._node(name).shape

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.trt.answers.get("dtype") or TYPES[self._node(name).type])

    def create_execution_context(self) -> FakeContext | None:
        self.trt.contexts += 1
        return FakeContext(self.trt, self.session) if self.trt.answers.get("context", True) else None

    def _node(self, name: str) -> Any:
        return next(node for node in self.nodes if node.name == name)


class FakeTensorRt(ModuleType):
    """``answers`` holds what is to go wrong."""

    __version__ = "10.3.0"
    TensorIOMode = SimpleNamespace(INPUT="INPUT")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            pass

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.answers: dict[str, Any] = {}
        self.contexts = 0
        self.logger: Any = None
        module = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                module.logger = logger
                self.engine_host_code_allowed = False

            def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
                if module.answers.get("refuse"):
                    module.say("Version tag does not match.\n Expected 240, got 242.")
                    return None
                return FakeEngine(module, plan)

        self.Runtime = Runtime

    def say(self, text: str) -> None:
        self.logger.log(self.ILogger.WARNING, "of no interest")
        self.logger.log(self.ILogger.ERROR, text)


class Built(TensorRtBackend):
    """Takes graphs for engines; and the float32 graphs of a bundle are this backend's own."""

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> TensorRtEngine:
        return super().load(path, options, path.read_bytes())


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    made = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name == "tensorrt")
    return made


@pytest.mark.parametrize("memory", ["pinned", "mapped", "managed"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_bundle_runs(name: str, memory: Any, trt: FakeTensorRt, tmp_path: Path) -> None:
    pair = PAIRS[name](SIZE)
    made = pair.write(tmp_path / "bundle", EverySchedule(interval=4))
    with watched():
        with EdgeRunner(made, backend=Built(CudaOptions(memory=memory)), engine="float32") as runner:
            results = [runner(image).copy() for image in IMAGES]
        expected = pair.expected(IMAGES, [result.kind for result in results])
        assert [result.mask.tobytes() for result in results] == [mask.tobytes() for mask in expected]
    # An execution context for each graph: a keyframe's, and a delta's for each slot of a state that it rewrites.
    assert trt.contexts == {"residual": 2, "chaining": 3}[name]


def test_a_graph_is_no_engine(trt: FakeTensorRt, tmp_path: Path) -> None:
    made = residual(SIZE).write(tmp_path / "bundle")
    with pytest.raises(EngineError, match=r"TensorRT runs engines that were built.*edge-sdk build RECIPE"):
        TensorRtBackend().load(made.path / "keyframe.onnx", EngineOptions())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"refuse": True},
            r"TensorRT 10.3.0 refuses it: Version tag does not match. Expected 240, got 242. Build it",
        ),
        ({"context": False}, "no execution context"),
        ({"set_tensor_address": False}, "no address for 'frame'"),
        ({"execute_async_v3": False}, "it was not enqueued: the stream is of no use"),
        ({"shape": (-1, 3)}, r"'frame' has an axis of no fixed length: \(-1, 3\)"),
        ({"dtype": "FP8"}, "'frame' is FP8; expected one of BOOL, UINT8"),
    ],
)
def test_every_status_is_looked_at(
    answers: dict[str, Any], message: str, trt: FakeTensorRt, tmp_path: Path
) -> None:
    graph = residual(SIZE).write(tmp_path / "bundle").path / "keyframe.onnx"
    trt.answers = answers
    with watched(), pytest.raises(EngineError, match=message):
        run_once(graph)


def run_once(graph: Path) -> None:
    engine = Built().load(graph, EngineOptions())
    try:
        engine.bind({spec.name: engine.allocate(spec) for spec in (*engine.inputs, *engine.outputs)}).run()
    finally:
        engine.close()


def test_without_tensorrt_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    with watched(), pytest.raises(DependencyError, match=r"needs the package tensorrt.*nvidia-jetpack"):
        TensorRtBackend().load(tmp_path / "keyframe.plan", EngineOptions(), b"plan")


BOTH = set(tensorrt.MODULES)


@pytest.mark.parametrize(("installed", "used"), [({"tensorrt_rtx"}, "tensorrt_rtx"), (BOTH, "tensorrt")])
def test_the_module_that_is_installed_is_used(
    installed: set[str], used: str, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: name in installed)

    def require(name: str, purpose: str) -> FakeTensorRt:
        asked.append(name)
        return trt

    monkeypatch.setattr(tensorrt, "require", require)
    graph = residual(SIZE).write(tmp_path / "bundle").path / "keyframe.onnx"
    with watched():
        TensorRtBackend().load(graph, EngineOptions(), graph.read_bytes()).close()
        TensorRtBackend(module="tensorrt_rtx").load(graph, EngineOptions(), graph.read_bytes()).close()
    assert asked == [used, "tensorrt_rtx"]
