"""One step on a GPU: copies, work and copies on a stream, and the one wait."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from edge_sdk.errors import ClosedError, EngineError
from edge_sdk.runtime.cuda.closing import close_in_order
from edge_sdk.runtime.cuda.device import CudaDevice, CudaLane
from edge_sdk.runtime.cuda.graphs import CudaGraph, GraphRefusedError
from edge_sdk.runtime.cuda.memory import CudaBuffer
from edge_sdk.runtime.engine import DeviceTimes
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.runtime.cuda.engine import CudaEngine

_log = logging.getLogger(__name__)


class Execution(Protocol):
    """An engine tied to the addresses of every input and output."""

    def enqueue(self, stream: int) -> None:
        """Enqueue the work on the stream of that handle; waits for nothing.

        Raises:
            EngineError: the runtime refuses.
        """
        ...

    def close(self) -> None:
        """Release it; closing twice does nothing."""
        ...


class CudaStep:
    """An engine tied to buffers and a stream; made by :meth:`CudaEngine.bind`.

    Per frame nothing is allocated, and the host waits once, for the event behind the last copy. The first run is
    enqueued plainly; what follows is a CUDA graph, where that is possible. A helper's runs of a step without a lane are
    always plain: the graph belongs to the main stream.

    Args:
        engine: what is run.
        buffers: by name of each input and output.
        lane: where it runs; None for the stream of the thread that starts it.

    Attributes:
        device_times: of the last run that was waited for, by events on its stream; None before the first.
    """

    def __init__(self, engine: CudaEngine, buffers: Mapping[str, CudaBuffer], lane: CudaLane | None) -> None:
        self._engine, self._device, self._lane = engine, engine.device, lane
        self._at: CudaDevice | CudaLane | None = None  # where it was started last
        self._buffers = dict(buffers)
        self._moving = tuple(buffer for buffer in buffers.values() if buffer.moves)
        self._copies_in = self._copied(engine.inputs)
        self._copies_out = self._copied(engine.outputs)
        self._graph: CudaGraph | None = None
        self._may_capture = engine.device.options.graphs
        self._pending = False
        self.device_times: DeviceTimes | None = None
        device = self._device
        driver = device.driver
        try:
            with device:
                if lane is not None or device.mine:
                    self._attach(lane or device)
                # Before the uploads, before and after the work; the last, after the downloads, is waited for.
                self._began, self._uploaded, self._computed = (driver.Event() for _ in range(3))
                self._done: Any = driver.Event(0 if device.options.spin else driver.event_flags.BLOCKING_SYNC)
                addresses = {name: buffer.address for name, buffer in self._buffers.items()}
                self._execution: Execution | None = engine.open_execution(addresses)
        except device.errors as error:
            self._drop()
            raise device.failure(f"engine {engine.path}: it cannot be bound", error) from error
        except BaseException:
            self._drop()
            raise
        for buffer in self._buffers.values():
            buffer.enter_step()
        if not self._may_capture:
            self._note_graph("turned off")

    def run(self) -> None:
        """Run to completion.

        Raises:
            EngineError: the runtime failed; the outputs are undefined.
        """
        self.start()
        self.wait()

    def start(self) -> None:
        """Enqueue copies, work and copies, and an event behind them; waits for nothing.

        Raises:
            ClosedError: the step is closed.
            EngineError: the runtime failed, the last start has not been waited for, or another thread owns the device.
        """
        if self._execution is None:
            raise ClosedError(f"step of {self._engine.path}: it is closed.")
        if self._pending:
            raise EngineError("step: it was started again before it was waited for.")
        device = self._device
        driver = device.driver
        lane = self._lane or device.lane
        if lane.stream is None:
            raise ClosedError("lane: it is closed.")
        try:
            with device:
                self._attach(lane)
                if self._copies_in:
                    self._began.record(lane.stream)
                    for address, host in self._copies_in:
                        driver.memcpy_htod_async(address, host, lane.stream)
                self._uploaded.record(lane.stream)
                if self._graph is None or not self._captures(lane):
                    self._execution.enqueue(lane.stream.handle)
                else:
                    self._graph.launch()
                self._computed.record(lane.stream)
                for address, host in self._copies_out:
                    driver.memcpy_dtoh_async(host, address, lane.stream)
                self._done.record(lane.stream)
        except device.errors as error:
            raise device.failure(f"step of {self._engine.path}", error) from error
        except BaseException:
            device.settle()
            raise
        self._at, self._pending = lane, True

    def finished(self) -> bool:
        """Whether :meth:`wait` would return or raise at once.

        Raises:
            EngineError: another thread owns the device.
        """
        if not self._pending:
            return True
        try:
            with self._device:
                return bool(self._done.query())
        except self._device.errors:
            return True  # it has failed: wait() says how

    def wait(self) -> None:
        """Wait for what was started.

        Raises:
            EngineError: the runtime failed, or another thread owns the device.
        """
        if not self._pending:
            return
        device = self._device
        device.check_usable()
        self._pending = False
        try:
            with device:
                self._done.synchronize()
                self.device_times = DeviceTimes(
                    self._uploaded.time_since(self._began) if self._copies_in else 0.0,
                    self._computed.time_since(self._uploaded),
                    self._done.time_since(self._computed) if self._copies_out else 0.0,
                )
                if self._may_capture and self._graph is None and self._captures(self._at):
                    self._capture()
        except device.errors as error:
            raise device.failure(f"step of {self._engine.path}", error) from error

    def recapture(self) -> None:
        """Let go of the graph, as after the engine's weights were changed; the next run is plain and captured anew.

        Raises:
            EngineError: the step is running, or another thread owns the device.
        """
        if self._pending:
            raise EngineError("step: it is running, wait for it before it is captured again.")
        with self._device:
            self._drop_graph()
        self._may_capture = self._device.options.graphs

    @property
    def captured(self) -> bool:
        """Whether the next start launches a graph."""
        return self._graph is not None

    def close(self) -> None:
        """Wait for what was started; release graph, execution and events, in this order; twice does nothing.

        Raises:
            EngineError: another thread owns the device, or the first error of those that came up.
        """
        if self._execution is None:
            return
        self._device.check_thread()
        buffers = tuple(self._buffers.values())
        close_in_order(
            self._finish,
            self._release,
            lambda: self._engine.forget(self),
            *(buffer.leave_step for buffer in buffers),
            quiet=self._device.lost,
        )

    def _finish(self) -> None:
        pending, self._pending = self._pending, False
        if pending and not self._device.lost:
            with self._device:
                self._done.synchronize()

    def _release(self) -> None:
        execution, self._execution = self._execution, None
        if self._device.lost:
            close_in_order(execution.close if execution else lambda: None, self._drop)
            return
        with self._device:
            close_in_order(self._drop_graph, execution.close if execution else lambda: None, self._drop)

    def _drop(self) -> None:
        self._began = self._uploaded = self._computed = self._done = None
        self._buffers.clear()
        self._moving = self._copies_in = self._copies_out = ()

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _copied(self, specs: Sequence[TensorSpec]) -> tuple[tuple[int, Any], ...]:
        """Address and host side of each of the tensors that has to be copied."""
        buffers = (self._buffers[spec.name] for spec in specs)
        return tuple((buffer.address, buffer.host) for buffer in buffers if buffer.copied)

    def _attach(self, lane: CudaDevice | CudaLane) -> None:
        for buffer in self._moving:
            buffer.attach(lane)

    def _captures(self, lane: CudaDevice | CudaLane | None) -> bool:
        """Whether runs there are captured: those of its own lane, and without one those of the main stream."""
        return lane is (self._lane or self._device)

    def _capture(self) -> None:
        """Once, when no helper is at work: a refusal is kept and told, and the step goes on without a graph."""
        execution, handle = self._execution, (self._lane or self._device).stream.handle
        if execution is None or not self._device.quiet.acquire(blocking=False):
            return
        self._may_capture = False
        try:
            self._graph = CudaGraph(handle, lambda: execution.enqueue(handle))
        except GraphRefusedError as error:
            _log.info("%s runs without a CUDA graph: %s", self._engine.path.name, error)
            self._note_graph(str(error))
        else:
            self._note_graph("captured")
        finally:
            self._device.quiet.release()

    def _note_graph(self, state: str) -> None:
        self._device.report.graphs[self._engine.path.stem] = state
