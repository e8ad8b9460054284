"""TensorRT: engines that were built for this machine, with buffers managed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge_sdk.errors import EngineError, ShapeError
from edge_sdk.optional import require
from edge_sdk.runtime.cuda.device import CudaDevice, CudaOptions
from edge_sdk.runtime.cuda.engine import CudaBackend, CudaEngine
from edge_sdk.runtime.engine import EngineOptions, check_weight_names
from edge_sdk.tensors import TensorSpec

# JetPack's and the desktop's own, and its drop-in for RTX cards.
MODULES = ("tensorrt", "tensorrt_rtx")
_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64", "HALF": "float16",
    "FLOAT": "float32",
}  # fmt: skip
_BUILD = "Build it on this machine: edge-sdk build RECIPE"


class TensorRtBackend(CudaBackend):
    """Runs engines that ``edge-sdk build`` made, on ``tensorrt`` or its drop-in ``tensorrt_rtx``.

    Args:
        options: how the GPU is used; None for the defaults.
        module: which of the two; None for the one that is installed, ``tensorrt`` first.
    """

    name = "tensorrt"

    def __init__(self, options: CudaOptions | None = None, module: str | None = None) -> None:
        super().__init__(options)
        self._module = module

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> TensorRtEngine:
        """Deserialise an engine.

        Args:
            path: its file, for messages.
            options: unused: threads are the CPU's.
            built: its content, checked by :func:`edge_sdk.identity.open_engine`. An engine can hold code of its own, so
                nothing that was not checked is deserialised.

        Raises:
            DependencyError: TensorRT or pycuda is not installed.
            EngineError: ``path`` is a graph that has not been built, or TensorRT refuses the engine.
        """
        if built is None:
            raise EngineError(
                f"graph {path}: TensorRT runs engines that were built for this machine, this is a graph.",
                hint=_BUILD,
            )
        name = self._module or next((name for name in MODULES if find_spec(name)), MODULES[0])
        trt = require(name, "running an engine")
        with self.device() as device, device:
            return TensorRtEngine(trt, device, path, built)


class TensorRtEngine(CudaEngine):
    """One engine; made by :class:`TensorRtBackend`. The device's context is current.

    Raises:
        EngineError: TensorRT refuses it, or a tensor has no fixed shape or a type that NumPy lacks.
    """

    def __init__(self, trt: ModuleType, device: CudaDevice, path: Path, built: bytes) -> None:
        self._trt, self._log = trt, _logger(trt)
        self._runtime: Any = trt.Runtime(self._log)
        # A version-compatible plan holds code; the plan's checksum is that of what was built here.
        self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(built)
        if engine is None:
            raise self._failure(f"engine {path}: TensorRT {trt.__version__} refuses it", _BUILD)
        self._engine: Any = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        specs = {name: _spec(engine, name, path) for name in names}
        super().__init__(
            device,
            path,
            [specs[name] for name in inputs],
            [specs[name] for name in names if name not in inputs],
        )
        # A standby engine is made of it for each exchange of weights.
        self._built = built if engine.refittable else b""
        self._open = self._open_weights() if engine.refittable else ()

    @property
    def refittable(self) -> tuple[TensorSpec, ...]:
        """The weights that the plan leaves open. TensorRT knows their number, not their shape: each is one row."""
        return self._open

    def refitted(self, weights: Mapping[str, np.ndarray]) -> TensorRtEngine:
        """A standby engine of the same plan with other weights; one that TensorRT refuses to complete is discarded.

        Args:
            weights: for every name in :attr:`refittable` as many values, in any shape; of the plan's own type, or
                float32 where that is float16.

        Raises:
            ClosedError: the engine is closed.
            EngineError: the plan leaves none open, a name is missing or unknown, a value is too large for float16, or
                TensorRT refuses.
            ShapeError: an array has another number of values or type.
        """
        self._check_open()
        if not self._open:
            raise EngineError(
                f"engine {self.path}: its plan leaves no weights open.",
                hint="Build with 'tensorrt: {refittable: true}', or give AdaptSettings(swap='engine').",
            )
        check_weight_names(self, weights)
        values = {spec.name: _values(weights[spec.name], spec) for spec in self._open}
        with self.device:
            other = TensorRtEngine(self._trt, self.device, self.path, self._built)
            try:
                other._refit(values)
            except BaseException:
                other.close()
                raise
        return other

    def _refit(self, values: Mapping[str, np.ndarray]) -> None:
        """Give the engine, which has no executions yet, every open weight.

        Raises:
            EngineError: TensorRT refuses; part of the weights may be new then.
        """
        refitter = self._trt.Refitter(self._engine, self._log)
        for name, value in values.items():
            if not refitter.set_named_weights(name, self._trt.Weights(value)):
                raise self._failure(f"refit {self.path}: TensorRT takes no weights for '{name}'")
        if missing := sorted(refitter.get_missing_weights()):
            raise self._failure(f"refit {self.path}: TensorRT asks for more weights, first '{missing[0]}'")
        if not refitter.refit_cuda_engine():
            raise self._failure(f"refit {self.path}: TensorRT did not complete it, the engine is discarded")

    def _open_weights(self) -> tuple[TensorSpec, ...]:
        refitter = self._trt.Refitter(self._engine, self._log)
        specs = []
        for name in sorted(refitter.get_all_weights()):
            weights = refitter.get_weights_prototype(name)
            specs.append(
                TensorSpec(name=name, shape=(weights.size,), dtype=_dtype(weights.dtype, name, self.path))
            )
        return tuple(specs)

    def open_execution(self, addresses: Mapping[str, int]) -> TensorRtExecution:
        """An execution context of its own, with an address for every tensor.

        Raises:
            EngineError: TensorRT gives no context or refuses an address.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise self._failure(f"engine {self.path}: no execution context")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failure(f"engine {self.path}: no address for '{name}'")
        return TensorRtExecution(context, lambda: self._failure(f"engine {self.path}: it was not enqueued"))

    def release(self) -> None:
        """Release the engine, then its runtime."""
        self._engine = None
        self._runtime = None
        self._built = b""

    def _failure(self, what: str, hint: str = "") -> EngineError:
        heard = self._log.last()
        return EngineError(f"{what}: {heard}." if heard else f"{what}.", hint=hint)


class TensorRtExecution:
    """An execution context whose addresses are set; ``failure`` makes the error where it is not enqueued."""

    def __init__(self, context: Any, failure: Any) -> None:
        self._context, self._failure = context, failure

    def enqueue(self, stream: int) -> None:
        """Enqueue one inference.

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise self._failure()

    def close(self) -> None:
        """Release the context; closing twice does nothing."""
        self._context = None


def _spec(engine: Any, name: str, path: Path) -> TensorSpec:
    shape = tuple(engine.get_tensor_shape(name))
    if any(length < 0 for length in shape):
        raise EngineError(
            f"engine {path}: '{name}' has an axis of no fixed length: {shape}.",
            hint="Export the bundle with static shapes, and build it again.",
        )
    return TensorSpec(name=name, shape=shape, dtype=_dtype(engine.get_tensor_dtype(name), name, path))


def _dtype(dtype: Any, name: str, path: Path) -> str:
    if dtype.name not in _DTYPES:
        raise EngineError(f"engine {path}: '{name}' is {dtype.name}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype.name]


def _values(given: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """``given`` as one row of the type that the plan holds; contiguous."""
    halved = (str(given.dtype), spec.dtype) == ("float32", "float16")
    if given.size != spec.shape[0] or not (halved or str(given.dtype) == spec.dtype):
        raise ShapeError(
            f"refit: '{spec.name}' expects {spec.shape[0]} values of {spec.dtype}, got {given.shape} {given.dtype}."
        )
    if halved and not bool((np.abs(given) <= np.finfo(np.float16).max).all()):
        raise EngineError(f"refit: '{spec.name}' has values that float16 cannot hold.")
    return np.ascontiguousarray(given, spec.dtype).reshape(-1)


def _logger(trt: ModuleType) -> Any:
    """Keeps TensorRT's last error, which its calls do not return."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors[:] = [" ".join(message.split())]

        def last(self) -> str:
            return self._errors[0].rstrip(".") if self._errors else ""

    return Log()
