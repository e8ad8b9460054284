"""Buffers on the GPU, and three kinds of memory that the host can reach.

A host side of the first two kinds is ordinary memory of this process, page-locked while the buffer is open: results
that are views of it stay readable when the GPU is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from edge_sdk.errors import EngineError
from edge_sdk.runtime.cuda.closing import close_in_order
from edge_sdk.runtime.cuda.device import CudaDevice, CudaLane, MemoryName
from edge_sdk.runtime.engine import ALIGNMENT_BYTES
from edge_sdk.tensors import TensorSpec

# Two page-locked regions must not share a page.
_PAGE_BYTES = 4096
_WARM_UP, _ROUNDS = 2, 10
_MS_PER_S = 1e3


class CudaBuffer:
    """Memory of one tensor on the device, and its host side where it has one.

    Args:
        device: where it is; the buffer is closed with it at the latest, and before that with the engine that
            allocated it, when the last step that uses it is closed.
        spec: what it is for.
        address: of the device's side, a multiple of 256 bytes.
        host: the host's side; None where there is none.
        copied: the two sides are different memory, so a step copies between them.
        release: gives the memory back; called once, on the device's thread, with its context current.
        attach: ties memory that moves by itself to the stream of a handle; None where there is no such thing.
    """

    def __init__(
        self,
        device: CudaDevice,
        spec: TensorSpec,
        address: int,
        host: np.ndarray | None,
        *,
        copied: bool,
        release: Callable[[], None],
        attach: Callable[[int], None] | None = None,
    ) -> None:
        if address % ALIGNMENT_BYTES:
            release()
            raise EngineError(f"buffer '{spec.name}': its address {address:#x} is not aligned to 256 bytes.")
        self.device, self.spec, self.address, self.copied = device, spec, address, copied
        self._host = host
        self._release: Callable[[], None] | None = release
        self._attach = attach
        self._lane: CudaDevice | CudaLane | None = None
        self._steps = 0
        self._abandoned = False
        device.keep(self)

    @property
    def host(self) -> np.ndarray:
        """Its host side; changes by the host count from the next start of a step on.

        Raises:
            EngineError: it was allocated without one, or is closed.
        """
        if self._host is None:
            raise EngineError(f"buffer '{self.spec.name}': it has no host side.")
        return self._host

    @property
    def has_host(self) -> bool:
        """Whether it has a host side."""
        return self._host is not None

    @property
    def closed(self) -> bool:
        """Whether its memory has been given back."""
        return self._release is None

    @property
    def moves(self) -> bool:
        """Whether it is memory that moves by itself."""
        return self._attach is not None

    def attach(self, lane: CudaDevice | CudaLane) -> None:
        """Say that steps of one stream use it, and of no other: the host may touch it whenever that one is idle.

        Between the main stream and those of helpers it goes back and forth: their threads take turns with a step.

        The device's context is current.

        Raises:
            EngineError: it has been attached to another stream.
        """
        if self._attach is None or self._lane is lane:
            return
        if self._lane is not None and not (self._lane.of_thread and lane.of_thread):
            raise EngineError(
                f"buffer '{self.spec.name}': managed memory belongs to the steps of one stream, "
                "it is bound to two.",
                hint="Give each lane buffers of its own, or use memory='pinned'.",
            )
        self._attach(lane.stream.handle)
        self._lane = lane

    def enter_step(self) -> None:
        """Count one more step that uses it."""
        with self.device.books:
            self._steps += 1

    def leave_step(self) -> None:
        """Count one less; where its engine is closed and this was the last, it is closed too."""
        with self.device.books:
            self._steps -= 1
            unused = self._abandoned and self._steps == 0
        if unused:
            self.close()

    def abandon(self) -> None:
        """Its engine is closed; so is the buffer, as soon as no other engine's steps use it."""
        with self.device.books:
            self._abandoned = True
            unused = self._steps == 0
        if unused:
            self.close()

    def close(self) -> None:
        """Give the memory back; closing twice does nothing. A host side that somebody still holds stays readable.

        Raises:
            EngineError: another thread owns the device.
        """
        if self._release is None:
            return
        self.device.check_thread()
        with self.device.books:
            release, self._release = self._release, None
        if release is None:
            return
        self._host = self._attach = self._lane = None
        self.device.forget(self)
        if not self.device.lost:
            with self.device:
                release()


class Memory(Protocol):
    """One kind of memory."""

    def __call__(self, device: CudaDevice, spec: TensorSpec) -> CudaBuffer:
        """A zeroed buffer with a host side. The device's context is current."""
        ...


def device_only(device: CudaDevice, spec: TensorSpec) -> CudaBuffer:
    """A zeroed buffer without a host side. The device's context is current."""
    allocation = _device_memory(device, spec)
    return CudaBuffer(device, spec, int(allocation), None, copied=False, release=allocation.free)


def pinned(device: CudaDevice, spec: TensorSpec) -> CudaBuffer:
    """Memory of the device, and a page-locked host side to copy from or to."""
    pages, host = _pages(spec)
    address = pages.ctypes.data
    device.native.lock_pages(address, pages.nbytes)
    try:
        allocation = _device_memory(device, spec)
    except BaseException:
        device.native.unlock_pages(address)
        raise

    def release() -> None:
        close_in_order(allocation.free, lambda: device.native.unlock_pages(address))

    return CudaBuffer(device, spec, int(allocation), host, copied=True, release=release)


def mapped(device: CudaDevice, spec: TensorSpec) -> CudaBuffer:
    """The host's memory, page-locked, which the device reads and writes in place."""
    pages, host = _pages(spec)
    address = pages.ctypes.data
    native = device.native
    native.lock_pages(address, pages.nbytes)
    try:
        found = native.device_address(address)
    except BaseException:
        native.unlock_pages(address)
        raise
    return CudaBuffer(device, spec, found, host, copied=False, release=lambda: native.unlock_pages(address))


def managed(device: CudaDevice, spec: TensorSpec) -> CudaBuffer:
    """Memory that the driver moves, or shares, between host and device; it lives until its last view is gone."""
    native = device.native
    memory: Any = native.managed(device.options.device, max(1, spec.size_bytes))
    pages = np.frombuffer(memory, np.uint8)
    pages[:] = 0
    host = pages[: spec.size_bytes].view(spec.dtype).reshape(spec.shape)
    address = pages.ctypes.data
    return CudaBuffer(
        device, spec, address, host, copied=False, release=lambda: None,
        attach=lambda stream: native.attach(stream, address),
    )  # fmt: skip


KINDS: dict[MemoryName, Memory] = {"pinned": pinned, "mapped": mapped, "managed": managed}


def choose(device: CudaDevice, spec: TensorSpec) -> Memory:
    """The kind of memory for tensors that the host reaches; decided once and recorded in the device's report.

    Args:
        spec: the tensor to measure with, where it has to be measured: the frame.

    Raises:
        EngineError: no kind of memory works here.
    """
    report, wanted = device.report, device.options.memory
    if report.memory is not None:
        return KINDS[report.memory]
    if wanted != "auto":
        chosen, reason = wanted, "as asked"
    elif not report.integrated:
        chosen, reason = "pinned", "the GPU has memory of its own"
    else:
        chosen, reason = _fastest(device, spec)
    report.memory, report.memory_reason = chosen, reason
    return KINDS[chosen]


def _fastest(device: CudaDevice, spec: TensorSpec) -> tuple[MemoryName, str]:
    times, refused = device.report.memory_ms, []
    for name, kind in KINDS.items():
        try:
            times[name] = measure(device, spec, kind)
        except device.errors as error:
            refused.append(f"{name}: {error}")
    if not times:
        raise EngineError(f"GPU: no kind of memory works here: {'; '.join(refused)}.")
    return min(times, key=times.__getitem__), "; ".join(["the fastest for one frame in and out", *refused])


def measure(
    device: CudaDevice, spec: TensorSpec, kind: Memory, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The least time, in milliseconds, for ``spec`` written by the host, moved on the device and read by the host.

    The device's part is a copy from one buffer to another. The device's context is current.
    """
    driver = device.driver
    image, answer = (np.zeros(spec.shape, spec.dtype) for _ in range(2))
    times = []
    source = kind(device, spec)
    try:
        target = kind(device, spec)
        try:
            for buffer in (source, target):
                buffer.attach(device)
            device.stream.synchronize()
            for _ in range(_WARM_UP + _ROUNDS):
                began = clock()
                np.copyto(source.host, image)
                if source.copied:
                    driver.memcpy_htod_async(source.address, source.host, device.stream)
                driver.memcpy_dtod_async(target.address, source.address, spec.size_bytes, device.stream)
                if target.copied:
                    driver.memcpy_dtoh_async(target.host, target.address, device.stream)
                device.stream.synchronize()
                np.copyto(answer, target.host)
                times.append(clock() - began)
        finally:
            target.close()
    finally:
        source.close()
    return min(times[_WARM_UP:]) * _MS_PER_S


def _device_memory(device: CudaDevice, spec: TensorSpec) -> Any:
    size_bytes = max(1, spec.size_bytes)
    allocation = device.driver.mem_alloc(size_bytes)
    device.driver.memset_d8(int(allocation), 0, size_bytes)
    return allocation


def _pages(spec: TensorSpec) -> tuple[np.ndarray, np.ndarray]:
    """Zeroed whole pages for ``spec``, and the tensor in them."""
    size_bytes = -(-max(1, spec.size_bytes) // _PAGE_BYTES) * _PAGE_BYTES
    raw = np.zeros(size_bytes + _PAGE_BYTES, np.uint8)
    start = -raw.ctypes.data % _PAGE_BYTES
    pages = raw[start : start + size_bytes]
    return pages, pages[: spec.size_bytes].view(spec.dtype).reshape(spec.shape)
