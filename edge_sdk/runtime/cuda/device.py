"""The GPU as one thread and its helpers see it: its primary context, its streams, and who may call."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Literal

from pydantic import Field

from edge_sdk.errors import ClosedError, DeviceLostError, EngineError
from edge_sdk.optional import require
from edge_sdk.runtime.cuda.closing import close_in_order
from edge_sdk.runtime.cuda.graphs import GraphRefusedError
from edge_sdk.runtime.cuda.native import NativeDriver, NativeError
from edge_sdk.settings import Settings

MemoryName = Literal["pinned", "mapped", "managed"]
# CU_STREAM_NON_BLOCKING: work on the default stream, such as another library's, does not hold ours up.
_NON_BLOCKING = 1
RESTART = "The GPU's errors of this kind stay until the process ends: start it again."


class CudaOptions(Settings):
    """How a GPU backend works.

    Args:
        device: ordinal of the GPU.
        memory: where tensors live that the host reads or writes: ``"pinned"`` has a page-locked host side and copies;
            ``"mapped"`` is the host's memory, read by the GPU in place; ``"managed"`` moves by itself. ``"auto"`` is
            ``"pinned"`` on a GPU with memory of its own, and on a Jetson the fastest of the three, as measured at
            start-up.
        graphs: launch each step as one CUDA graph, where cuda-python is installed.
        spin: wait for a step by asking without pause: a little earlier, for a whole core.
    """

    device: int = Field(default=0, ge=0, strict=True)
    memory: Literal["auto", "pinned", "mapped", "managed"] = "auto"
    graphs: bool = True
    spin: bool = False


@dataclass
class CudaReport:
    """What was chosen on this machine, and why.

    Attributes:
        device: the GPU's name.
        compute_capability: such as ``"8.7"``.
        integrated: it shares the machine's memory, as on a Jetson.
        memory: the kind of memory in use; None before the first buffer.
        memory_reason: why.
        memory_ms: what each kind took for one frame in and out, in milliseconds, where that was measured.
        priorities: ``"on"``, or why keyframes beside the frames have no lower priority.
        graphs: for each step ``"captured"``, or why it is launched without a graph.
    """

    device: str
    compute_capability: str
    integrated: bool
    memory: MemoryName | None = None
    memory_reason: str = ""
    memory_ms: dict[MemoryName, float] = field(default_factory=dict)
    priorities: str = "on"
    graphs: dict[str, str] = field(default_factory=dict)


class CudaDevice:
    """A GPU's primary context, shared with every other library of the process, and the thread that uses it.

    A ``with`` block makes the context current: one push and one pop, so between calls the thread's own context is as
    it was. Everything else that needs the GPU happens inside such a block. The device is closed when the last of its
    users has left.

    Other threads may join as helpers, to prepare engines beside the frames. What a helper runs goes to a stream of its
    own, of lower priority: work that it put on the main stream would stand between two frames, or be captured into the
    graph of another thread's step.

    Attributes:
        stream: the main stream; None when closed. Nobody else may hold it: it ends with the last reference, and an
            error's traceback can hold one for long.
        books: held while the lists and counts of engines, buffers and users change.
        quiet: held by a helper inside its blocks, and while a step is captured: allocating, or waiting for the whole
            context, would spoil a capture. The owner never waits for it, it captures a later run.

    Raises:
        DependencyError: pycuda is not installed.
        EngineError: there is no GPU, or it gives no context.
    """

    # The main stream is a thread's: the owner's.
    of_thread = True

    def __init__(self, options: CudaOptions) -> None:
        self.options = options
        self.driver: ModuleType = require("pycuda.driver", "running on a GPU")
        self.native = NativeDriver()
        self._owner = threading.get_ident()
        self._helpers: dict[int, CudaLane | None] = {}
        self.books, self.quiet = threading.RLock(), threading.RLock()
        self._users = 0
        self._lost: str | None = None
        self._resources: list[Any] = []
        try:
            self.driver.init()
            gpu = self.driver.Device(options.device)
            self._context: Any = gpu.retain_primary_context()
            try:
                self.report = _describe(self.driver, gpu)
                with self:
                    self.stream: Any = self.driver.Stream(_NON_BLOCKING)
                    self._prefer_main()
            except BaseException:
                self.native.release(self._context)
                raise
        except self.driver.Error as error:
            raise EngineError(
                f"GPU {options.device}: it cannot be used: {error}.",
                hint="See what 'edge-sdk doctor' says of this machine.",
            ) from error

    def __enter__(self) -> CudaDevice:
        self.check_usable()
        if self.mine:
            self._context.push()
            return self
        self.quiet.acquire()
        try:
            self._context.push()
        except BaseException:
            self.quiet.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.pop()
        if not self.mine:
            self.quiet.release()

    def check_usable(self) -> None:
        """Check that the device is open, has not failed for good, and belongs to the calling thread.

        Raises:
            ClosedError: it is closed.
            DeviceLostError: it has failed for good.
            EngineError: another thread owns it.
        """
        if self._context is None:
            raise ClosedError("GPU: its last engine is closed.")
        if self._lost is not None:
            raise DeviceLostError(f"GPU: it failed before: {self._lost}.", hint=RESTART)
        self.check_thread()

    def check_thread(self) -> None:
        """Check that the calling thread owns the device.

        Raises:
            EngineError: another thread owns it.
        """
        if not self.admits:
            raise EngineError(
                f"GPU: called from thread '{threading.current_thread().name}'; everything on a GPU happens on the "
                "thread that loaded the engines.",
                hint="Use EdgeRunner(..., threaded=True): its methods may be called from any thread.",
            )

    def failure(self, what: str, error: BaseException) -> EngineError:
        """The error to raise for one of the driver's; what was enqueued before it is over.

        Some errors, such as a kernel that wrote where it must not, stay: every later call fails. Whether this is one
        is found by asking the driver once more.
        """
        self.settle()
        message = f"{what}: {' '.join(str(error).split())}".rstrip(".")
        if self._lost is not None:
            return DeviceLostError(f"{message}.", hint=RESTART)
        return EngineError(f"{message}.")

    def settle(self) -> None:
        """After a failure: wait for everything, so that no memory is in use any more, and see whether calls work."""
        if self._lost is None:
            try:
                with self:
                    self.driver.Context.synchronize()
            except self.driver.Error as error:
                self._lost = str(error)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What calls of the driver raise."""
        return (self.driver.Error, NativeError, GraphRefusedError)

    @property
    def lost(self) -> bool:
        """Whether it has failed for good."""
        return self._lost is not None

    @property
    def mine(self) -> bool:
        """Whether the calling thread owns it."""
        return threading.get_ident() == self._owner

    def join(self) -> None:
        """Let the calling thread help: load, bind, run and close beside the owner. Joining twice does nothing.

        Raises:
            ClosedError: the device is closed.
            DeviceLostError: it has failed for good.
            EngineError: it gives no stream.
        """
        caller = threading.get_ident()
        if self.mine or caller in self._helpers:
            return
        self._helpers[caller] = None
        try:
            lane = self._helpers[caller] = CudaLane(self, helper=True)
        except BaseException:
            del self._helpers[caller]
            raise
        self.keep(lane)

    @property
    def lane(self) -> CudaDevice | CudaLane:
        """Where the calling thread's steps run that are bound to no lane: the main stream, or the helper's own."""
        return self if self.mine else self._helpers.get(threading.get_ident()) or self

    @property
    def admits(self) -> bool:
        """Whether the calling thread may use it: its owner or a helper."""
        return self.mine or threading.get_ident() in self._helpers

    def keep(self, resource: Any) -> None:
        """Close ``resource`` (it has ``close()``) with the device, where it has not been closed before."""
        with self.books:
            self._resources.append(resource)

    def forget(self, resource: Any) -> None:
        """``resource`` has been closed."""
        with self.books, suppress(ValueError):
            self._resources.remove(resource)

    def enter_user(self) -> None:
        """Count one more engine or lane that needs the device."""
        with self.books:
            self._users += 1

    def leave_user(self) -> None:
        """Count one less; after the last one the device is closed: buffers, stream, context."""
        with self.books:
            self._users -= 1
            last = self._users <= 0
        if last:
            self.close()

    def close(self) -> None:
        """Release buffers, the main stream and the context, in this order; closing twice does nothing.

        Raises:
            EngineError: another thread owns it; the first error of those that came up.
        """
        if self._context is None:
            return
        self.check_thread()
        resources, self._resources = self._resources, []
        close_in_order(*(resource.close for resource in resources), self._end, quiet=self.lost)

    def close_if_unused(self) -> None:
        """Close it where no engine and no lane needs it, as after one that could not be loaded."""
        if self._users == 0:
            self.close()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._context is None

    def _end(self) -> None:
        context, self._context = self._context, None
        context.push()
        self.stream = None
        context.pop()
        self.native.release(context, owned=self.mine)

    def _prefer_main(self) -> None:
        try:
            self.native.prefer(self.stream.handle)
        except (NativeError, AttributeError) as error:  # a driver before CUDA 12 has no such function
            self.report.priorities = f"all streams have the same: {error}"


class CudaLane:
    """A stream beside the main one, of lower priority where the device knows priorities.

    Args:
        device: of which.
        helper: it is a helper's own: it keeps no device open, and ends with it.

    Attributes:
        of_thread: what a thread starts without a lane runs there.
    """

    def __init__(self, device: CudaDevice, *, helper: bool = False) -> None:
        self.device, self.of_thread = device, helper
        try:
            with device:
                self.stream: Any = device.driver.Stream(_NON_BLOCKING)
        except device.errors as error:
            raise device.failure("GPU: it gives no stream", error) from error
        if not helper:
            device.enter_user()

    def close(self) -> None:
        """Wait for what was started and release the stream; closing twice does nothing.

        Raises:
            EngineError: another thread owns the device, or what was started failed.
        """
        if self.stream is None:
            return
        self.device.check_thread()
        leave = () if self.of_thread else (self.device.leave_user,)
        close_in_order(self._finish, self._drop, *leave, quiet=self.device.lost)

    def _finish(self) -> None:
        if not self.device.lost:
            with self.device:
                self.stream.synchronize()

    def _drop(self) -> None:
        if self.device.lost:
            self.stream = None
            return
        with self.device:
            self.stream = None


def _describe(driver: ModuleType, gpu: Any) -> CudaReport:
    attributes = driver.device_attribute
    return CudaReport(
        device=gpu.name(),
        compute_capability=".".join(map(str, gpu.compute_capability())),
        integrated=bool(gpu.get_attribute(attributes.INTEGRATED)),
    )
