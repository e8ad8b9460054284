"""TensorRT made to work: one layer in float32 and one in INT8, built and run. Runs in a probe's own process.

Only the bindings and the CUDA driver are used, as a runner would; polygraphy and a CUDA package have rows of their own.
"""

from __future__ import annotations

import ctypes
import time
from types import ModuleType
from typing import Any

from edge_sdk.doctor.models import ADD, CONV_SHAPE, INT8_CONV, model

Answer = tuple[str, str, str]

NO_GPU = "Running needs an NVIDIA GPU with its driver; in a container also --gpus all, on a Jetson --runtime nvidia."
# Names of libraries that TensorRT's own library of a Jetson needs; containers take them from the host.
DLA_LIBRARIES = ("libnvdla_compiler", "libnvcudla", "libnvdla_runtime", "libcudla")


class _Refused(Exception):
    """A step of TensorRT's that gave nothing, with what it logged."""


def exercise(trt: ModuleType) -> Answer:
    """Build an engine of one layer in each precision, run both and compare the numbers.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``, imported.
    """
    import numpy as np

    found = str(trt.__version__)
    log = _log(trt)
    weights = (np.arange(64, dtype=np.float32) - 32).reshape(8, 8)
    x = np.arange(128, dtype=np.float32).reshape(CONV_SHAPE) - 64
    cases = {
        "float32": (ADD, np.array([1.5, -2.0], np.float32), np.array([3.0, -4.0], np.float32)),
        "INT8": (INT8_CONV, x, np.einsum("oi,nihw->nohw", weights * 0.5, x)),
    }
    began = time.perf_counter()
    try:
        builder = _builder(trt, log)
        plans = {name: _build(trt, builder, log, model(text)) for name, (text, _, _) in cases.items()}
    except _Refused as refused:
        return "problem", f"{found}: cannot build a layer: {refused}", ""
    built = (
        f"{found}: built a float32 and an INT8 layer in {time.perf_counter() - began:.1f} s{_dla(builder)}"
    )
    try:
        wrong = [
            f"{name} off by {worst:.3g}"
            for name, (_, given, wanted) in cases.items()
            if not (worst := float(np.abs(_run(trt, log, plans[name], given) - wanted).max())) <= 1e-3
        ]
    except _Refused as refused:
        return "problem", f"{built}, cannot run it: {refused}", NO_GPU
    if wrong:
        return "problem", f"{built}, computes wrongly: {', '.join(wrong)}", ""
    return "ok", f"{built} and computed right", ""


def _log(trt: ModuleType) -> Any:
    """A logger that keeps what TensorRT says of errors; a run's last words are in ``errors``."""

    class Log(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))

        def refuse(self, what: str) -> _Refused:
            return _Refused(f"{what}: {self.errors[-1]}" if self.errors else what)

    return Log()


def _builder(trt: ModuleType, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except Exception as error:  # pybind11 raises what a null pointer makes it raise
        raise log.refuse(f"no builder ({' '.join(str(error).split())})") from error


def _build(trt: ModuleType, builder: Any, log: Any, graph: bytes) -> Any:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise log.refuse(f"the parser refuses it ({parser.get_error(0).desc()})")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise log.refuse("the builder gives nothing")
    return plan


def _dla(builder: Any) -> str:
    cores = int(getattr(builder, "num_DLA_cores", 0) or 0)
    return f", {cores} DLA core{'' if cores == 1 else 's'}" if cores > 0 else ""


def _run(trt: ModuleType, log: Any, plan: Any, given: Any) -> Any:
    """The plan's answer for ``given``; its answer has the same shape and type."""
    import numpy as np

    driver = _Driver(log)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise log.refuse("the plan does not load")
    context = engine.create_execution_context()
    if context is None:
        raise log.refuse("no execution context")
    answer = np.empty_like(given)
    x, y, stream = driver.allocate(given.nbytes), driver.allocate(answer.nbytes), driver.stream()
    driver.call("cuMemcpyHtoD_v2", x, given.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(given.nbytes))
    for name, address in (("x", x), ("y", y)):
        if not context.set_tensor_address(name, address.value):
            raise log.refuse(f"no address for '{name}'")
    if not context.execute_async_v3(stream.value or 0):
        raise log.refuse("the run fails")
    driver.call("cuStreamSynchronize", stream)
    driver.call("cuMemcpyDtoH_v2", answer.ctypes.data_as(ctypes.c_void_p), y, ctypes.c_size_t(answer.nbytes))
    return answer


class _Driver:
    """The CUDA driver's own functions, on the GPU's primary context; the process ends soon and gives all of it back."""

    def __init__(self, log: Any) -> None:
        self._log = log
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise _Refused("no CUDA driver (libcuda.so.1 is not there)") from error
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxPushCurrent_v2", context)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise self._log.refuse(f"the CUDA driver answers {name} with error {code}")

    def allocate(self, size_bytes: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address

    def stream(self) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), 1)  # 1: does not wait for the default stream
        return made
