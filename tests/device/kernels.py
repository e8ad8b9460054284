"""The pair ``residual`` of ``tests/graphs.py`` as two CUDA kernels behind the engine protocol, without TensorRT."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.gpu import DRIVER, find_gpu
from edge_sdk.runtime.cuda.device import CudaDevice
from edge_sdk.runtime.cuda.engine import CudaBackend, CudaEngine
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.tensors import TensorSpec

PTX = Path(__file__).with_name("kernels.ptx")
SIZE = (96, 128)
_THREADS = 128
_FRAME = TensorSpec(name="frame", shape=(*SIZE, 3), dtype="uint8")
_MASK = TensorSpec(name="mask", shape=SIZE, dtype="uint8")
_READ, _WRITTEN = (
    TensorSpec(name=name, shape=SIZE, dtype="float32") for name in ("state.memory", "state.memory.next")
)
STEPS = {"keyframe": ((_FRAME,), (_MASK, _WRITTEN)), "delta": ((_FRAME, _READ), (_MASK,))}


def require_gpu() -> None:
    """Skip the test, with the reason, where its GPU code cannot run."""
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU: the CUDA driver (libcuda.so.1) is not there or shows none")
    pytest.importorskip(
        "pycuda.driver", reason="pycuda is not installed: pip install 'edge_sdk[desktop-gpu]'"
    )


class KernelBackend(CudaBackend):
    """Takes the name of a graph's file for the kernel's; a bundle of the pair ``residual`` runs as it is."""

    name = "onnxruntime"

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> KernelEngine:
        with self.device() as device, device:
            return KernelEngine(device, path)


class KernelEngine(CudaEngine):
    """One kernel; ``function`` may be swapped for another."""

    def __init__(self, device: CudaDevice, path: Path) -> None:
        self.library = ctypes.CDLL(DRIVER)
        self._module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(self._module), PTX.read_bytes() + b"\0")
        self.kernels = {name: self._named(name) for name in ("keyframe", "delta", "broken")}
        self.function = self.kernels[path.stem]
        super().__init__(device, path, *STEPS[path.stem])

    def _named(self, name: str) -> ctypes.c_void_p:
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), self._module, name.encode())
        return function

    def open_execution(self, addresses: Mapping[str, int]) -> KernelExecution:
        return KernelExecution(self, addresses)

    def release(self) -> None:
        self.call("cuModuleUnload", self._module)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise AssertionError(f"{name} answers {code}")


class KernelExecution:
    """A launch on addresses."""

    def __init__(self, engine: KernelEngine, addresses: Mapping[str, int]) -> None:
        state = next(address for name, address in addresses.items() if name.startswith("state."))
        count = SIZE[0] * SIZE[1]
        values = [ctypes.c_uint64(found) for found in (addresses["frame"], addresses["mask"], state)]
        self._values = (*values, ctypes.c_int(count))
        self._parameters = (ctypes.c_void_p * 4)(*(ctypes.addressof(value) for value in self._values))
        self._blocks = -(-count // _THREADS)
        self._engine = engine

    def enqueue(self, stream: int) -> None:
        shape = (self._blocks, 1, 1, _THREADS, 1, 1, 0)
        self._engine.call(
            "cuLaunchKernel", self._engine.function, *shape, ctypes.c_void_p(stream), self._parameters, None
        )

    def close(self) -> None:
        pass
