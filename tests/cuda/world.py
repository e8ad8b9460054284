"""What tests inside the simulated driver share: the driver itself, and ONNX Runtime as an engine over its addresses."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.runtime.cuda.device import CudaDevice
from edge_sdk.runtime.cuda.engine import CudaBackend, CudaEngine
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import OrtBackend
from edge_sdk.tensors import TensorSpec

MODES = {"eager": 0, "late": 1, "shuffle": 2}
_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
LAUNCH_FAILED, OUT_OF_MEMORY, ILLEGAL_ADDRESS = 719, 2, 700


@dataclass(frozen=True)
class Report:
    """What the driver saw since it was configured.

    Args:
        problems: by kind, how often, and the first in words.
        calls: how often each function was called.
        last: the number of its last call, among all calls.
        live: objects that are alive now.
    """

    problems: dict[str, tuple[int, str]]
    calls: dict[str, int]
    last: dict[str, int]
    live: dict[str, int]


class Driver:
    """The simulated driver, told by tests how to behave and asked what it saw."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.sim_report.restype = ctypes.c_char_p
        self._kept: list[Any] = []

    def configure(
        self, mode: str = "late", seed: int = 1, patience: int = 2, integrated: bool = False
    ) -> None:
        """Forget what was seen. Queued work is done ``mode``; an event that is asked for says no ``patience`` times."""
        self.library.sim_configure(MODES[mode], ctypes.c_uint64(seed), patience, int(integrated))
        self._kept.clear()

    def report(self) -> Report:
        found = json.loads(self.library.sim_report())
        problems = {kind: (count, text) for kind, (count, text) in found["problems"].items()}
        calls, last = ({name: pair[i] for name, pair in found["calls"].items()} for i in (0, 1))
        return Report(problems, calls, last, found["live"])

    def fail(self, name: str, code: int, *, after: int = 0, times: int = 1, sticky: bool = False) -> None:
        """Let a function fail, after some more calls that succeed; sticky errors stay until the context ends."""
        self.library.sim_fail(name.encode(), ctypes.c_long(after), ctypes.c_long(times), code, int(sticky))

    def refuse_capture(self) -> None:
        self.library.sim_refuse_capture(1)

    @property
    def depth(self) -> int:
        """Contexts that the calling thread has pushed and not popped."""
        return int(self.library.sim_depth())

    def kernel(self, work: Any) -> Any:
        """``work`` as something that can be launched; a kernel that raises fails as kernels do."""

        def call(_: int) -> int:
            try:
                work()
            except Exception:  # noqa: BLE001
                return 1
            return 0

        made = _KERNEL(call)
        self._kept.append(made)  # the driver holds the bare address
        return made

    def call(self, name: str, *arguments: Any) -> int:
        """A function of the driver's, called past pycuda."""
        return int(getattr(self.library, name)(*arguments))

    def launch(
        self, stream: int, reads: list[tuple[int, int]], writes: list[tuple[int, int]], kernel: Any
    ) -> int:
        """Enqueue a kernel that uses these ranges of address and bytes; returns the driver's code."""
        ranges = [*((*one, 0) for one in reads), *((*one, 1) for one in writes)]
        count = len(ranges)
        return int(
            self.library.sim_launch(
                ctypes.c_void_p(stream),
                count,
                (ctypes.c_void_p * count)(*(one[0] for one in ranges)),
                (ctypes.c_size_t * count)(*(one[1] for one in ranges)),
                (ctypes.c_ubyte * count)(*(one[2] for one in ranges)),
                kernel,
                None,
            )
        )


DRIVER = Driver()


@contextmanager
def watched(allowed: tuple[str, ...] = (), **how: Any) -> Iterator[Driver]:
    """A block in which nothing may go wrong with the driver except what is ``allowed``, and nothing is left over."""
    DRIVER.configure(**how)
    yield DRIVER
    report = DRIVER.report()
    assert set(report.problems) == set(allowed), report.problems
    if "leak" not in allowed:
        assert not any(report.live.values()), report.live
    assert DRIVER.depth == 0


class DeviceOrtBackend(CudaBackend):
    """ONNX Runtime on "device" memory: everything but the kernels is what TensorRT's backend does."""

    name = "onnxruntime"

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> DeviceOrtEngine:
        options = options.model_copy(update={"threads": 1})  # of tiny graphs more are slower
        with self.device() as device, device:
            # Loads, checks and describes the graph as the backend on the CPU does.
            host = OrtBackend().load(path, options, built)
            inputs, outputs, session = host.inputs, host.outputs, host._session
            return DeviceOrtEngine(device, session, path, inputs, outputs)


class DeviceOrtEngine(CudaEngine):
    def __init__(
        self,
        device: CudaDevice,
        session: Any,
        path: Path,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        super().__init__(device, path, inputs, outputs)
        self.session = session

    def open_execution(self, addresses: Mapping[str, int]) -> DeviceOrtExecution:
        return DeviceOrtExecution(self, addresses)

    def release(self) -> None:
        self.session = None


@dataclass
class DeviceOrtExecution:
    engine: DeviceOrtEngine
    addresses: Mapping[str, int]
    runs: int = 0
    kernel: Any = field(init=False)

    def __post_init__(self) -> None:
        engine = self.engine
        binding, session = engine.session.io_binding(), engine.session
        for bind, specs in ((binding.bind_input, engine.inputs), (binding.bind_output, engine.outputs)):
            for spec in specs:
                bind(spec.name, "cpu", 0, _element(spec), spec.shape, self.addresses[spec.name])

        def work() -> None:
            self.runs += 1
            session.run_with_iobinding(binding)

        self.kernel = DRIVER.kernel(work)

    def enqueue(self, stream: int) -> None:
        reads, writes = (
            [(self.addresses[spec.name], spec.size_bytes) for spec in specs]
            for specs in (self.engine.inputs, self.engine.outputs)
        )
        code = DRIVER.launch(stream, reads, writes, self.kernel)
        if code:
            raise self.engine.device.driver.LogicError(f"launch failed: {code}")

    def close(self) -> None:
        """The kernel stays as long as the driver may hold it."""


def _element(spec: TensorSpec) -> Any:
    return np.dtype(spec.dtype).type
