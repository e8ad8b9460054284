"""ONNX Runtime on the CPU: the backend that needs no set-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.errors import ClosedError, EngineError
from edge_sdk.files import require_file
from edge_sdk.optional import require
from edge_sdk.runtime.engine import Buffer, EngineOptions, Lane, aligned_array, check_buffers, check_weights
from edge_sdk.tensors import TensorSpec

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64"} | {
    f"tensor({name})": name
    for name in ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16"]
}
_LOG_ERRORS = 3


def session_settings(ort: Any, *, optimise: bool = True) -> Any:
    """Session options that every session of ours has.

    Args:
        ort: the package.
        optimise: with every graph optimisation; False for a graph that has been through them.
    """
    settings = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    settings.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = _LOG_ERRORS
    # Threads of a session spin after its run; those of the other step's session would then run against them.
    # On two cores this alone made a keyframe and delta pair two to three times slower.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    # It quantises float convolutions between a DequantizeLinear and a QuantizeLinear, to one scale for all channels:
    # the very layers that were kept in float because INT8 harms them.
    settings.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    return settings


class OrtBackend:
    """Loads ONNX graphs on the CPU execution provider, named explicitly: there is no other to fall back to."""

    name = "onnxruntime"
    owns_thread = False
    report = None

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> OrtEngine:
        """Load an ONNX graph with every graph optimisation, or a built engine as it is.

        Raises:
            MissingFileError: no file there.
            DependencyError: onnxruntime is not installed.
            EngineError: ONNX Runtime refuses the graph, or it has an axis of no fixed length.
        """
        file = require_file(path, "graph")
        return self._open(file, options, str(file) if built is None else built, optimise=built is None)

    def reload(self, path: Path, options: EngineOptions, content: bytes) -> OrtEngine:
        """Load the graph ``content``, the step at ``path`` with new weights.

        Raises:
            DependencyError: onnxruntime is not installed.
            EngineError: ONNX Runtime refuses the graph.
        """
        return self._open(path, options, content, optimise=True)

    def _open(self, file: Path, options: EngineOptions, model: str | bytes, *, optimise: bool) -> OrtEngine:
        ort = require("onnxruntime", "running a bundle")
        settings = session_settings(ort, optimise=optimise)
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        try:
            session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        # ONNX Runtime's exceptions have no common base below Exception.
        except Exception as error:
            raise EngineError(
                f"graph {file}: ONNX Runtime {ort.__version__} refuses it: {_one_line(error)}.",
                hint="Export the bundle again, or install the onnxruntime it was exported for.",
            ) from error
        return OrtEngine(session, file)

    def join_thread(self) -> None:
        """Sessions may be used from any thread."""

    def open_lane(self) -> ThreadLane:
        """A worker thread beside the caller's."""
        return ThreadLane()


class OrtEngine:
    """One graph in an ONNX Runtime session; made by :class:`OrtBackend`.

    Args:
        session: of the graph; several engines may share it.
        path: the graph's file, for messages.
        weights: what is read in place of the open initialisers; None for the graph's own.
    """

    def __init__(self, session: Any, path: Path, weights: Mapping[str, OrtBuffer] | None = None) -> None:
        self._session = session
        self._weights = dict(weights or {})
        self.path = path
        # The names of initialisers that are listed among the graph's inputs too: their values are defaults.
        self.refittable = tuple(_spec(node, path) for node in session.get_overridable_initializers())
        self.inputs = tuple(_spec(node, path) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in session.get_outputs())

    def refitted(self, weights: Mapping[str, np.ndarray]) -> OrtEngine:
        """An engine that shares the session and reads other weights in the open places; they are copied.

        Raises:
            ClosedError: the engine is closed.
            EngineError: a name is missing or unknown.
            ShapeError: an array has another shape or dtype.
        """
        if self._session is None:
            raise ClosedError(f"engine {self.path}: it is closed.")
        check_weights(self, weights)
        copies = {spec.name: self.allocate(spec) for spec in self.refittable}
        for name, buffer in copies.items():
            np.copyto(buffer.host, weights[name])
        return OrtEngine(self._session, self.path, copies)

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> OrtBuffer:
        """A zeroed buffer; device and host are the same memory here, so ``host`` makes no difference."""
        return OrtBuffer(spec, aligned_array(spec))

    def bind(self, buffers: Mapping[str, Buffer], lane: Lane | None = None) -> OrtStep:
        """Tie every input and output to a buffer's memory; without a lane a step runs in the caller's thread.

        Raises:
            ClosedError: the engine is closed.
            EngineError: a name is missing or unknown.
            ShapeError: a buffer has another shape or dtype than the tensor.
        """
        if self._session is None:
            raise ClosedError(f"engine {self.path}: it is closed.")
        check_buffers(self, buffers)
        binding = self._session.io_binding()
        for spec in self.inputs:
            binding.bind_input(spec.name, *_memory(buffers[spec.name]))
        for spec in self.outputs:
            binding.bind_output(spec.name, *_memory(buffers[spec.name]))
        for name, buffer in self._weights.items():
            binding.bind_input(name, *_memory(buffer))
        if lane is not None and not isinstance(lane, ThreadLane):
            raise EngineError(f"bind: expected a lane of this backend, got {type(lane).__name__}.")
        return OrtStep(self._session, binding, [*buffers.values(), *self._weights.values()], lane)

    def close(self) -> None:
        """Let go of the session; it is freed when the last step bound to it is gone."""
        self._session = None


@dataclass(frozen=True, slots=True, eq=False)
class OrtBuffer:
    """Aligned numpy memory."""

    spec: TensorSpec
    host: np.ndarray


class ThreadLane:
    """A worker thread that runs steps one after another."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="edge-sdk-lane")

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Queue ``work``.

        Raises:
            ClosedError: the lane is closed.
        """
        if self._pool is None:
            raise ClosedError("lane: it is closed.")
        return self._pool.submit(work)

    def close(self) -> None:
        """Wait for what was started and end the thread; closing twice does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)


class OrtStep:
    """A session tied to buffers; made by :meth:`OrtEngine.bind`."""

    __slots__ = ("_binding", "_buffers", "_lane", "_pending", "_run")

    def __init__(
        self, session: Any, binding: Any, buffers: Sequence[Buffer], lane: ThreadLane | None = None
    ) -> None:
        self._run = session.run_with_iobinding
        self._binding = binding
        self._buffers = buffers  # the binding holds bare addresses: their memory must live as long
        self._lane = lane
        self._pending: Future[None] | None = None

    @property
    def device_times(self) -> None:
        """The host computes."""
        return None

    def run(self) -> None:
        """Run to completion.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        self.start()
        self.wait()

    def start(self) -> None:
        """Begin; without a lane this is the whole run.

        Raises:
            EngineError: ONNX Runtime failed, or the last start has not been waited for.
        """
        if self._pending is not None:
            raise EngineError("step: it was started again before it was waited for.")
        if self._lane is None:
            self._compute()
        else:
            self._pending = self._lane.submit(self._compute)

    def finished(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return self._pending is None or self._pending.done()

    def wait(self) -> None:
        """Wait for what was started.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _compute(self) -> None:
        try:
            self._run(self._binding)
        # ONNX Runtime's exceptions have no common base below Exception.
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {_one_line(error)}.") from error


def _memory(buffer: Buffer) -> tuple[str, int, Any, tuple[int, ...], int]:
    array = buffer.host
    return "cpu", 0, array.dtype.type, buffer.spec.shape, array.ctypes.data


def _spec(node: Any, path: Path) -> TensorSpec:
    if not all(isinstance(length, int) for length in node.shape):
        raise EngineError(
            f"graph {path}: '{node.name}' has an axis of no fixed length: {node.shape}.",
            hint="Export it with static shapes.",
        )
    if node.type not in _DTYPES:
        raise EngineError(
            f"graph {path}: '{node.name}' is {node.type}; expected one of {', '.join(_DTYPES)}.",
            hint="Export it with another type of input and output.",
        )
    return TensorSpec(name=node.name, shape=tuple(node.shape), dtype=_DTYPES[node.type])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
