"""CUDA graphs through cuda-python, on pycuda's streams: one launch for all kernels of a step."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

# The package's layout since 12.4, and the one before.
MODULES = ("cuda.bindings.driver", "cuda.cuda")


class GraphRefusedError(Exception):
    """Why a step cannot be a graph; it is launched without one."""


class CudaGraph:
    """Work that was captured once and is launched as a whole.

    Args:
        stream: handle of the stream, which is idle.
        enqueue: enqueues the work; it has been done at least once before, and awaited.

    Raises:
        GraphRefusedError: cuda-python is missing, or the work cannot be captured.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]) -> None:
        self._cuda = cuda = bindings()
        self._stream = cuda.CUstream(stream)
        self._executable: Any = None
        graph = self._capture(enqueue)
        try:
            self._executable = self._call(cuda.cuGraphInstantiate, graph, 0)
        finally:
            self._call(cuda.cuGraphDestroy, graph)

    def launch(self) -> None:
        """Enqueue the work on the stream that it was captured from.

        Raises:
            GraphRefusedError: the driver refuses.
        """
        self._call(self._cuda.cuGraphLaunch, self._executable, self._stream)

    def close(self) -> None:
        """Release the graph; closing twice does nothing.

        Raises:
            GraphRefusedError: the driver refuses.
        """
        executable, self._executable = self._executable, None
        if executable is not None:
            self._call(self._cuda.cuGraphExecDestroy, executable)

    def _capture(self, enqueue: Callable[[], None]) -> Any:
        cuda = self._cuda
        # What other threads do meanwhile, torch's allocations for instance, is their own business.
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call(cuda.cuStreamBeginCapture, self._stream, mode)
        try:
            enqueue()
        except Exception as error:
            cuda.cuStreamEndCapture(self._stream)  # else the stream stays in capture
            raise GraphRefusedError(" ".join(str(error).split())) from error
        return self._call(cuda.cuStreamEndCapture, self._stream)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        code, *values = function(*arguments)
        if code != self._cuda.CUresult.CUDA_SUCCESS:
            raise GraphRefusedError(f"{function.__name__} failed: {code.name}")
        return values[0] if values else None


def bindings() -> ModuleType:
    """cuda-python's driver module, of either layout.

    Raises:
        GraphRefusedError: it is not installed, or finds no driver.
    """
    for name in MODULES:
        try:
            return import_module(name)
        except ImportError as error:
            reason = str(error)
    raise GraphRefusedError(f"cuda-python cannot be imported ({reason}): pip install cuda-python")
