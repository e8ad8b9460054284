"""What the NVIDIA driver says of the GPU that TensorRT would use; asked without any package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
# CUdevice_attribute of cuda.h.
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Args:
        name: the driver's name for it, with the number of its multiprocessors: an Orin NX and an Orin Nano are both
            called "Orin", and engines for one are not engines for the other.
        compute_capability: such as ``"8.7"``.
        memory_bytes: all of its memory; on a Jetson that is the machine's.
        cuda: the newest CUDA version that the driver speaks, such as ``"12.6"``.
        integrated: it shares the machine's memory, as on a Jetson.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str
    integrated: bool


def find_gpu(driver: str = DRIVER) -> Gpu | None:
    """The first GPU that the driver shows to this process; ``None`` without a driver or a GPU."""
    cuda = _load(driver)
    if cuda is None:
        return None
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    version = ctypes.c_int()
    answers = (
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        cuda.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(answers):
        return None
    count, integrated, major, minor = (
        _attribute(cuda, number, device) for number in (_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR)
    )
    return Gpu(
        name=f"{name.value.decode(errors='replace')}, {count} multiprocessors",
        compute_capability=f"{major}.{minor}",
        memory_bytes=memory.value,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        integrated=bool(integrated),
    )


def free_gpu_memory(driver: str = DRIVER) -> int | None:
    """Free memory of the first GPU, in bytes; ``None`` without one.

    Makes the GPU's primary context for a moment, which takes memory of its own: ask in a process that will use the GPU.
    """
    cuda = _load(driver)
    device = ctypes.c_int()
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    memory = _memory(cuda, device)
    return None if memory is None else memory[0]


def gpu_address(driver: str = DRIVER) -> str | None:
    """Where the first GPU sits on the PCI bus, such as ``"0000:01:00.0"``; ``None`` without one.

    Other libraries number GPUs in another order; this is the same for all.
    """
    cuda = _load(driver)
    device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if cuda.cuDeviceGetPCIBusId(address, len(address), device):
        return None
    return address.value.decode(errors="replace")


def used_gpu_memory(driver: str = DRIVER) -> int | None:
    """Memory in use on the first GPU by all processes, in bytes; on a Jetson that is memory of the whole machine.

    ``None`` without a GPU, and while this process does not use it: asking would make its context, which takes time and
    memory.
    """
    cuda = _load(driver)
    device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    if cuda is None or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) or not active.value:
        return None
    memory = _memory(cuda, device)
    return None if memory is None else memory[1] - memory[0]


def _memory(cuda: ctypes.CDLL, device: ctypes.c_int) -> tuple[int, int] | None:
    """Free and total memory of a GPU, in bytes."""
    context = ctypes.c_void_p()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        free, total, popped = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
        if cuda.cuCtxPushCurrent_v2(context):
            return None
        failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(popped))
        return None if failed else (free.value, total.value)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def _load(driver: str) -> ctypes.CDLL | None:
    try:
        cuda = ctypes.CDLL(driver)
        return None if cuda.cuInit(0) else cuda
    except (OSError, AttributeError):  # no such library, or something else of that name
        return None


def _attribute(cuda: ctypes.CDLL, number: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value
