"""Backends and engines on a GPU; what enqueues an engine's work is added by each backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edge_sdk.errors import ClosedError, EngineError
from edge_sdk.runtime.cuda.closing import close_in_order
from edge_sdk.runtime.cuda.device import CudaDevice, CudaLane, CudaOptions, CudaReport
from edge_sdk.runtime.cuda.memory import CudaBuffer, choose, device_only
from edge_sdk.runtime.cuda.step import CudaStep, Execution
from edge_sdk.runtime.engine import Buffer, Engine, EngineOptions, Lane, check_buffers
from edge_sdk.tensors import TensorSpec


class CudaEngine(ABC):
    """One graph compiled for a GPU; a backend's engine says how its work is enqueued.

    Args:
        device: where it runs; its own part of the device is given back when the engine is closed.
        path: the engine's file, for messages.
        inputs, outputs: of the graph.
    """

    def __init__(
        self,
        device: CudaDevice,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self.device, self.path = device, path
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._steps: list[CudaStep] = []
        self._buffers: list[CudaBuffer] = []
        self._closed = False
        device.enter_user()

    @abstractmethod
    def open_execution(self, addresses: Mapping[str, int]) -> Execution:
        """Tie the engine to addresses, by name, of every input and output. The device's context is current.

        Raises:
            EngineError: the runtime refuses.
        """

    @abstractmethod
    def release(self) -> None:
        """Release the engine itself; every execution is closed. The device's context is current."""

    @property
    def refittable(self) -> tuple[TensorSpec, ...]:
        """Weights that can be exchanged: none, unless a backend's engine knows better."""
        return ()

    def refitted(self, weights: Mapping[str, np.ndarray]) -> Engine:
        """Another engine with other weights.

        Raises:
            EngineError: this engine leaves no weights open.
        """
        raise EngineError(
            f"engine {self.path}: it leaves no weights open.", hint="Give AdaptSettings(swap='engine')."
        )

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> CudaBuffer:
        """A zeroed buffer; it lives until it is closed, or this engine and all steps that use it are.

        Raises:
            ClosedError: the engine is closed.
            EngineError: there is not enough memory, or another thread owns the device.
        """
        self._check_open()
        device = self.device
        try:
            with device:
                buffer = choose(device, spec)(device, spec) if host else device_only(device, spec)
        except device.errors as error:
            raise device.failure(f"buffer '{spec.name}' of {spec.size_bytes} bytes", error) from error
        with device.books:
            self._buffers = [*(found for found in self._buffers if not found.closed), buffer]
        return buffer

    def bind(self, buffers: Mapping[str, Buffer], lane: Lane | None = None) -> CudaStep:
        """Tie every input and output to a buffer's address.

        Args:
            buffers: by graph input or output name.
            lane: where it runs; None for the device's main stream, or a helper's own where a helper starts it.

        Raises:
            ClosedError: the engine or the lane is closed.
            EngineError: a name is missing or unknown, or a buffer or the lane is not of this device.
            ShapeError: a buffer has another shape or dtype than the tensor.
        """
        self._check_open()
        check_buffers(self, buffers)
        mine: dict[str, CudaBuffer] = {}
        for name, buffer in buffers.items():
            if not isinstance(buffer, CudaBuffer) or buffer.device is not self.device or buffer.closed:
                raise EngineError(f"bind: the buffer for '{name}' is closed or not of this engine's device.")
            mine[name] = buffer
        step = CudaStep(self, mine, self._lane(lane))
        with self.device.books:
            self._steps.append(step)
        return step

    def close(self) -> None:
        """Release graphs, executions, the engine and its buffers, in this order; closing twice does nothing.

        With the device's last engine the stream and the context go too.

        Raises:
            EngineError: another thread owns the device, or the first error of those that came up.
        """
        if self._closed:
            return
        self.device.check_thread()
        with self.device.books:
            if self._closed:
                return
            self._closed = True
            steps, self._steps = self._steps, []
            buffers, self._buffers = self._buffers, []
        close_in_order(
            *(step.close for step in steps),
            self._release,
            *(buffer.abandon for buffer in buffers),
            self.device.leave_user,
            quiet=self.device.lost,
        )

    def forget(self, step: CudaStep) -> None:
        """``step`` has been closed."""
        with self.device.books:
            if step in self._steps:
                self._steps.remove(step)

    def _release(self) -> None:
        if self.device.lost:
            self.release()
        else:
            with self.device:
                self.release()

    def _lane(self, lane: Lane | None) -> CudaLane | None:
        if lane is None:
            return None
        if not isinstance(lane, CudaLane) or lane.device is not self.device:
            raise EngineError(f"bind: expected a lane of this engine's device, got {type(lane).__name__}.")
        if lane.stream is None:
            raise ClosedError("lane: it is closed.")
        return lane

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"engine {self.path}: it is closed.")
        self.device.check_usable()


class CudaBackend(ABC):
    """What the backends on a GPU share: a device a thread, opened with the first engine and closed with the last.

    Args:
        options: how it works; None for the defaults.

    Attributes:
        report: what was chosen on this machine when a device was last opened; None before.
    """

    name: str
    owns_thread = True

    def __init__(self, options: CudaOptions | None = None) -> None:
        self.options = CudaOptions() if options is None else options
        self.report: CudaReport | None = None
        self._devices: list[CudaDevice] = []

    @abstractmethod
    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> CudaEngine:
        """Load a graph, or an engine that was built for this machine; see :class:`edge_sdk.runtime.engine.Backend`."""

    def reload(self, path: Path, options: EngineOptions, content: bytes) -> CudaEngine:
        """Load a step with new weights beside the frames; the calling thread joins the device's owner.

        Args:
            path: the step's file in the bundle, for messages.
            options: how it is loaded.
            content: as for :meth:`load`.

        Raises:
            ClosedError: no engine of this backend is open.
            EngineError: the runtime refuses it, or the calling thread cannot join; see :meth:`join_thread`.
        """
        self.join_thread()
        return self.load(path, options, content)

    def join_thread(self) -> None:
        """Let the calling thread prepare engines beside the thread that owns the device, until that is closed.

        Raises:
            ClosedError: no device is open.
            EngineError: several threads have one, so it is not known which is meant, or the device gives no stream.
        """
        devices = self._open_devices()
        if any(device.mine for device in devices):
            return
        if len(devices) > 1:
            raise EngineError(
                f"backend '{self.name}': {len(devices)} threads run engines of it, another can join only one.",
                hint="Give each runner that learns a backend object of its own.",
            )
        if not devices:
            raise ClosedError(f"backend '{self.name}': no engine is open that a thread could help with.")
        devices[0].join()

    def _open_devices(self) -> list[CudaDevice]:
        self._devices = [device for device in self._devices if not device.closed]
        return self._devices

    def open_lane(self) -> CudaLane:
        """A stream beside the main one, of lower priority where the device knows priorities.

        Raises:
            DependencyError: pycuda is not installed.
            EngineError: there is no GPU, or it gives no stream.
        """
        with self.device() as device:
            return CudaLane(device)

    @contextmanager
    def device(self) -> Iterator[CudaDevice]:
        """The calling thread's device, open; closed again where the block fails and nothing else uses it.

        Raises:
            DependencyError: pycuda is not installed.
            EngineError: there is no GPU, or it gives no context.
        """
        device = next((device for device in self._open_devices() if device.admits), None)
        if device is None:
            device = CudaDevice(self.options)
            self._devices.append(device)
        self.report = device.report
        try:
            yield device
        except BaseException:
            device.close_if_unused()
            raise
