"""What pycuda has no (working) function for, asked of the CUDA driver itself.

``register_host_memory`` crashes with NumPy 2 (pycuda 2024.1 to 2026.1), streams have no priorities, a primary context
that is released stays on the thread's stack, and managed memory can only be freed by the thread that took it.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from edge_sdk.gpu import DRIVER

# Of cuda.h: CU_MEMHOSTREGISTER_DEVICEMAP, CU_LAUNCH_ATTRIBUTE_PRIORITY, and the size of CUlaunchAttributeValue.
_DEVICE_MAP, _PRIORITY, _ATTRIBUTE_BYTES = 2, 8, 64
# CU_MEM_ATTACH_HOST and CU_MEM_ATTACH_SINGLE.
_HOST, _SINGLE = 2, 4
# Every function that is used, by its name in the library.
FUNCTIONS = (
    "cuGetErrorString",
    "cuCtxGetCurrent",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetStreamPriorityRange",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuMemAllocManaged",
    "cuMemFree_v2",
    "cuStreamAttachMemAsync",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemHostGetDevicePointer_v2",
    "cuStreamSetAttribute",
)


class NativeError(Exception):
    """The driver answered a call with an error."""


class NativeDriver:
    """The driver's library, which pycuda has loaded already."""

    def __init__(self, library: str = DRIVER) -> None:
        self._library = ctypes.CDLL(library)

    def lock_pages(self, address: int, size_bytes: int) -> None:
        """Page-lock memory of ours, so that copies from and to it run beside the host; devices may address it too.

        Raises:
            NativeError: the driver refuses.
        """
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), _DEVICE_MAP)

    def unlock_pages(self, address: int) -> None:
        """Undo :meth:`lock_pages`; the memory stays what it is.

        Raises:
            NativeError: the driver refuses.
        """
        self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def device_address(self, address: int) -> int:
        """Where the device finds page-locked memory.

        Raises:
            NativeError: the device cannot address it.
        """
        found = ctypes.c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(found), ctypes.c_void_p(address), 0)
        return found.value

    def managed(self, device: int, size_bytes: int) -> ctypes.Array[ctypes.c_ubyte]:
        """Managed memory, at the same address for the host and the device.

        It is freed when the last thing that refers to it is gone, in whatever thread that happens; until then it keeps
        the device's primary context.

        Raises:
            NativeError: there is not enough, or the device has none.
        """
        address, context = ctypes.c_uint64(), ctypes.c_void_p()
        # The host's until it is attached: a helper zeroes it while another stream's kernels run.
        self._call("cuMemAllocManaged", ctypes.byref(address), ctypes.c_size_t(size_bytes), _HOST)
        memory = (ctypes.c_ubyte * size_bytes).from_address(address.value)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        weakref.finalize(memory, self._free, address, context, device).atexit = False
        return memory

    def attach(self, stream: int, address: int) -> None:
        """Tie managed memory to a stream: the host may touch it whenever that stream is idle, whatever others do.

        Raises:
            NativeError: it is no managed memory.
        """
        self._call("cuStreamAttachMemAsync", ctypes.c_void_p(stream), ctypes.c_uint64(address), 0, _SINGLE)

    def prefer(self, stream: int) -> None:
        """Give a stream the highest priority there is; without this a stream has the lowest.

        Raises:
            NativeError: the driver is too old (before CUDA 12) or the device knows no priorities.
        """
        least, greatest = ctypes.c_int(), ctypes.c_int()
        self._call("cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
        value = (ctypes.c_int * (_ATTRIBUTE_BYTES // ctypes.sizeof(ctypes.c_int)))(greatest.value)
        self._call("cuStreamSetAttribute", ctypes.c_void_p(stream), _PRIORITY, ctypes.byref(value))

    def release(self, context: Any, *, owned: bool = True) -> None:
        """Let go of a primary context, which is not current, and leave the thread's stack of contexts as it was.

        pycuda makes the context current to release it, and counts on that to end; a primary context's does not.

        Args:
            context: pycuda's.
            owned: the calling thread retained it; in another pycuda releases it only where it is current.
        """
        before = self._pop_all()
        self._push_all(before)
        if not owned:
            context.push()
        context.detach()
        self._pop_all()
        self._push_all(before)

    def _pop_all(self) -> list[ctypes.c_void_p]:
        """The thread's contexts, the one that was current last; afterwards there is none."""
        found: list[ctypes.c_void_p] = []
        while self._current() is not None:
            popped = ctypes.c_void_p()
            self._call("cuCtxPopCurrent_v2", ctypes.byref(popped))
            found.insert(0, popped)
        return found

    def _push_all(self, contexts: list[ctypes.c_void_p]) -> None:
        for context in contexts:
            self._call("cuCtxPushCurrent_v2", context)

    def _free(self, address: ctypes.c_uint64, context: ctypes.c_void_p, device: int) -> None:
        # A finaliser has nobody to tell of errors, and a GPU that has failed gives some.
        library, popped = self._library, ctypes.c_void_p()
        if not library.cuCtxPushCurrent_v2(context):
            library.cuMemFree_v2(address)
            library.cuCtxPopCurrent_v2(ctypes.byref(popped))
        library.cuDevicePrimaryCtxRelease_v2(device)

    def _current(self) -> int | None:
        found = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(found))
        return found.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise NativeError(f"{name} failed: {(text.value or b'unknown error').decode()}")
