"""The TensorRT backend over the simulated driver, with a stand-in for the package ``tensorrt``.

The stand-in has the names that TensorRT's own bindings have (``tests/tensorrt/test_api.py`` holds the backend's against
those) and runs ONNX Runtime over the addresses that it is given. What TensorRT itself does with an engine is seen on a
GPU alone: ``tests/device``.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edge_sdk.errors import DependencyError, EngineError, ShapeError
from edge_sdk.runtime import tensorrt
from edge_sdk.runtime.cuda.device import CudaOptions
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import session_settings
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.runtime.tensorrt import TensorRtBackend, TensorRtEngine
from tests.cuda.inside.test_runner import IMAGES, SIZE
from tests.cuda.world import DRIVER, watched
from tests.fake_student import bright_bundle
from tests.fake_trainer import WEIGHT
from tests.graphs import PAIRS, residual

TYPES = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8"}


class FakeContext:
    def __init__(self, trt: Any, engine: FakeEngine) -> None:
        self.trt, self.engine, self.session = trt, engine, engine.session
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
            for name, value in self.engine.weights.items():
                binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
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
        self.open = {node.name: node for node in self.session.get_overridable_initializers()}
        self.refittable = bool(self.open)
        self.weights: dict[str, np.ndarray] = {}

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
        return FakeContext(self.trt, self) if self.trt.answers.get("context", True) else None

    def _node(self, name: str) -> Any:
        return next(node for node in self.nodes if node.name == name)


class FakeWeights:
    def __init__(self, values: np.ndarray) -> None:
        self.values, self.size = values, values.size
        self.dtype = SimpleNamespace(name={"float32": "FLOAT", "float16": "HALF"}[str(values.dtype)])


class FakeRefitter:
    """As the real one: part of the weights may be new where it does not complete."""

    def __init__(self, engine: FakeEngine, logger: Any) -> None:
        self.engine, self.trt = engine, engine.trt
        self.given: dict[str, np.ndarray] = {}

    def get_all_weights(self) -> list[str]:
        return list(self.engine.open)

    def get_weights_prototype(self, name: str) -> FakeWeights:
        dtype = self.trt.answers.get("weights", np.float32)
        return FakeWeights(np.zeros(self.engine.open[name].shape, dtype))

    def set_named_weights(self, name: str, weights: FakeWeights) -> bool:
        if not self.trt.answers.get("set_named_weights", True):
            self.trt.say("of another type")
            return False
        self.given[name] = weights.values
        return True

    def get_missing_weights(self) -> list[str]:
        return self.trt.answers.get("missing") or [
            name for name in self.engine.open if name not in self.given
        ]

    def refit_cuda_engine(self) -> bool:
        for name, value in self.given.items():
            # Of ONNX Runtime's graph the weights are float32, whatever the stand-in claims.
            self.engine.weights[name] = value.astype(np.float32).reshape(self.engine.open[name].shape)
        return bool(self.trt.answers.get("refit", True))


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
        self.Refitter, self.Weights = FakeRefitter, FakeWeights
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
    assert trt.contexts == (3 if name == "chaining" else 2)


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


class Student:
    """A plan with one open weight on buffers of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = bright_bundle(tmp_path / "bundle", size_hw=SIZE).path / "delta.onnx"
        self.backend = TensorRtBackend()
        self.engine = self.backend.load(self.path, EngineOptions(), self.path.read_bytes())
        self.buffers = {
            spec.name: self.engine.allocate(spec) for spec in (*self.engine.inputs, *self.engine.outputs)
        }

    def answers(self, engine: TensorRtEngine, threshold: float) -> bool:
        self.buffers["frame"].host[:] = IMAGES[0]
        engine.bind(self.buffers).run()
        return bool(np.array_equal(self.buffers["mask"].host, IMAGES[0][..., 0] >= threshold))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_open_weights_are_exchanged_in_a_standby_engine(
    dtype: Any, trt: FakeTensorRt, tmp_path: Path
) -> None:
    """TensorRT knows no shapes of weights; float32 is rounded to what the plan holds."""
    trt.answers = {"weights": dtype}
    with watched(), ThreadPoolExecutor(1) as helper:
        student = Student(tmp_path)
        engine = student.engine
        assert [(spec.name, spec.shape, spec.dtype) for spec in engine.refittable] == [
            (WEIGHT, (1,), np.dtype(dtype).name)
        ]
        helper.submit(student.backend.join_thread).result()
        for threshold in (40, 200, 90):
            values = np.array([[threshold]], np.float32)
            other = helper.submit(engine.refitted, {WEIGHT: values}).result()
            values[:] = 0  # it was copied
            assert other.refittable == engine.refittable
            assert student.answers(other, threshold)
            assert student.answers(engine, 128.0625)
            # And that one can be the next one's origin: all of the weights are given each time.
            last = helper.submit(other.refitted, {WEIGHT: np.array([7], dtype)}).result()
            other.close()
            assert student.answers(last, 7)
            helper.submit(last.close).result()
        engine.close()


@pytest.mark.parametrize(
    ("answers", "weights", "error", "message"),
    [
        ({}, {}, EngineError, "'threshold' is missing"),
        ({}, {WEIGHT: [1.0], "more": [1.0]}, EngineError, "'more' is no weight that the engine leaves open"),
        ({}, {WEIGHT: [1.0, 2.0]}, ShapeError, r"expects 1 values of float32, got \(2,\) float32"),
        ({}, {WEIGHT: np.ones(1)}, ShapeError, r"got \(1,\) float64"),
        ({}, {WEIGHT: np.ones(1, np.float16)}, ShapeError, r"got \(1,\) float16"),
        ({"weights": np.float16}, {WEIGHT: [7e4]}, EngineError, "values that float16 cannot hold"),
        ({"weights": np.float16}, {WEIGHT: [np.nan]}, EngineError, "values that float16 cannot hold"),
        (
            {"set_named_weights": False},
            {WEIGHT: [1.0]},
            EngineError,
            "no weights for 'threshold': of another",
        ),
        ({"missing": ["z", "bias"]}, {WEIGHT: [1.0]}, EngineError, "asks for more weights, first 'bias'"),
        ({"refit": False}, {WEIGHT: [1.0]}, EngineError, "did not complete it, the engine is discarded"),
    ],
)
def test_a_refit_that_is_not_complete_leaves_nothing(
    answers: dict[str, Any], weights: dict[str, Any], error: type[Exception], message: str, trt: FakeTensorRt,
    tmp_path: Path,
) -> None:  # fmt: skip
    trt.answers = answers
    given = {name: np.asarray(value, getattr(value, "dtype", np.float32)) for name, value in weights.items()}
    with watched():
        student = Student(tmp_path)
        before = DRIVER.report().live
        with pytest.raises(error, match=message):
            student.engine.refitted(given)
        assert DRIVER.report().live == before
        assert student.answers(student.engine, 128.0625), "the engine in use is as it was"
        student.engine.close()


def test_a_plan_without_open_weights_says_so(trt: FakeTensorRt, tmp_path: Path) -> None:
    graph = residual(SIZE).write(tmp_path / "bundle").path / "keyframe.onnx"
    with watched():
        engine = TensorRtBackend().load(graph, EngineOptions(), graph.read_bytes())
        assert engine.refittable == ()
        with pytest.raises(EngineError, match=r"leaves no weights open. Build with 'tensorrt: \{refittable"):
            engine.refitted({})
        engine.close()


def test_a_graph_in_place_of_a_new_plan_is_refused(trt: FakeTensorRt, tmp_path: Path) -> None:
    with watched():
        student = Student(tmp_path)
        trt.answers = {"refuse": True}
        with pytest.raises(EngineError, match="refuses it: Version tag"):
            student.backend.reload(student.path, EngineOptions(), b"graph")
        student.engine.close()
