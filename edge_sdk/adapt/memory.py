"""The memory that the runner and its trainer share: frame, label, the trainer's mask, new graphs and new weights.

It has no name in the file system and goes when both processes are gone. What the other side wrote is never trusted:
sizes are checked against the layout, a copy is taken, and the copy's SHA-256 is compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from edge_sdk.errors import ClosedError, OutputError, ShapeError, TrainerError
from edge_sdk.settings import Settings
from edge_sdk.tensors import TensorSpec

Positive = Annotated[int, Field(ge=1, strict=True)]
# Of arrays in the weights area; also ample for vector instructions.
_ALIGNMENT = 64
_LENGTH_BYTES = 8
_PREFIX_BYTES = _LENGTH_BYTES + hashlib.sha256().digest_size
# Of new graphs over those of the bundle: the same tensors, perhaps written another way.
_SPARE, _SPARE_BYTES = 1.25, 1 << 20
_DTYPES = ("float32", "float16")


class Layout(Settings):
    """What lies where in the shared memory; every area begins on a page of its own.

    Args:
        frame_hw: height and width of frame, label and mask.
        graphs: most bytes of each step's new graph (or plan), by step.
        weights: most bytes of the open layers' weights as :func:`pack_weights` writes them; 0 for none.
    """

    frame_hw: tuple[Positive, Positive]
    graphs: dict[str, Positive] = Field(default_factory=dict)
    weights: Annotated[int, Field(ge=0, strict=True)] = 0

    @classmethod
    def of(
        cls, frame_hw: tuple[int, int], graphs: Mapping[str, int], weights: Iterable[TensorSpec] = ()
    ) -> Layout:
        """The layout for a bundle.

        Args:
            frame_hw: height and width of its frames.
            graphs: size in bytes of each graph that will be sent anew, by step, with what it keeps in other files; room
                is left for a quarter and 1 MiB more. Memory that is never written costs nothing.
            weights: the tensors that are exchanged with ``swap="refit"``, see ``Engine.refittable``.
        """
        open_layers = tuple(weights)
        return cls(
            frame_hw=frame_hw,
            graphs={step: int(size * _SPARE) + _SPARE_BYTES for step, size in graphs.items()},
            weights=_packed_bytes(open_layers) if open_layers else 0,
        )

    @property
    def areas(self) -> dict[str, tuple[int, int]]:
        """First byte and size of each area: ``frame``, ``label``, ``mask``, ``graph.<step>``, ``weights``."""
        height, width = self.frame_hw
        sizes = {"frame": height * width * 3, "label": height * width, "mask": height * width}
        sizes |= {f"graph.{step}": size for step, size in self.graphs.items()}
        sizes["weights"] = self.weights
        areas, begin = {}, 0
        for name, size in sizes.items():
            areas[name] = (begin, size)
            begin += _round_up(size, mmap.PAGESIZE)
        return areas

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        begin, size = self.areas["weights"]
        return begin + _round_up(size, mmap.PAGESIZE)


class SharedMemory:
    """The shared memory as one side has it mapped. Safe to use from several threads.

    Args:
        layout: what lies where.
        fd: the memory; it is mapped, not kept, so the caller closes it.

    Raises:
        TrainerError: the memory is not of the layout's size.
    """

    def __init__(self, layout: Layout, fd: int) -> None:
        self.layout = layout
        self._areas = layout.areas
        found = os.fstat(fd).st_size
        if found != layout.size:
            raise TrainerError(f"shared memory: expected {layout.size} bytes by its layout, got {found}.")
        self._map = mmap.mmap(fd, layout.size)
        self._lock = threading.Lock()

    def image(self, area: str) -> np.ndarray:
        """``frame``, (H, W, 3) uint8 BGR, or ``label`` or ``mask``, (H, W) uint8, read-only and *not* copied.

        It shows what the other side writes there later, and keeps the memory mapped while it is held.
        """
        view = self._view(area)
        view.flags.writeable = False
        return view

    def copy(self, area: str) -> np.ndarray:
        """As :meth:`image`, copied."""
        with self._mapped():
            return self._view(area).copy()

    def put(self, area: str, image: np.ndarray) -> None:
        """Write ``frame``, ``label`` or ``mask``.

        Raises:
            ShapeError: not of the area's shape, or not uint8.
        """
        with self._mapped():
            view = self._view(area)
            if image.shape != view.shape or image.dtype != np.uint8:
                raise ShapeError(
                    f"{area}: expected {view.shape} uint8, got {image.shape} {image.dtype}.",
                    hint="Frames, labels and masks of one stream have one size.",
                )
            np.copyto(view, image)

    def write(self, area: str, data: bytes) -> None:
        """Write ``graph.<step>`` or ``weights``.

        Raises:
            TrainerError: there is no such area, or ``data`` does not fit.
        """
        begin = self._begin(area, len(data))
        with self._mapped():
            self._map[begin : begin + len(data)] = data

    def read(self, area: str, size: int) -> bytes:
        """A copy of the first ``size`` bytes of ``graph.<step>`` or ``weights``.

        Raises:
            TrainerError: there is no such area, or it is smaller.
        """
        begin = self._begin(area, size)
        with self._mapped():
            return self._map[begin : begin + size]

    def close(self) -> None:
        """Give the memory back; closing twice does nothing. Views that are still held keep it until they go."""
        with self._lock, contextlib.suppress(BufferError):
            self._map.close()

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """No other thread closes meanwhile. Raises :class:`ClosedError` where it is done."""
        with self._lock:
            if self._map.closed:
                raise ClosedError("the memory shared with the trainer is closed.")
            yield

    def _begin(self, area: str, size: int) -> int:
        if area not in self._areas:
            raise TrainerError(f"shared memory has no area '{area}', it has {', '.join(self._areas)}.")
        begin, room = self._areas[area]
        if not 0 <= size <= room:
            raise TrainerError(f"shared memory: '{area}' has room for {room} bytes, got {size}.")
        return begin

    def _view(self, area: str) -> np.ndarray:
        begin, size = self._areas[area]
        shape = (*self.layout.frame_hw, 3) if area == "frame" else self.layout.frame_hw
        return np.frombuffer(self._map, np.uint8, size, begin).reshape(shape)


def anonymous_memory(size: int) -> int:
    """A file descriptor of ``size`` zero bytes that no path leads to; the caller closes it.

    Raises:
        OutputError: there is no room for it.
    """
    sealable = hasattr(os, "memfd_create")
    fd = -1
    try:
        if sealable:
            fd = os.memfd_create("edge-sdk-adapt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, size)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise OutputError(
            f"memory shared with the trainer: {size} bytes cannot be had ({error.strerror}).",
            hint="Free memory, or space in the folder for temporary files.",
        ) from error
    if sealable:  # a trainer that cut it short would kill the runner at its next read
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class _Header(Settings):
    """Of the weights area."""

    tensors: tuple[TensorSpec, ...]


def pack_weights(weights: Mapping[str, np.ndarray]) -> bytes:
    """Arrays by name as the weights area holds them.

    8 bytes of length, little endian; 32 bytes of SHA-256 of all that follows; a header in JSON, padded with zeros to
    that length; the arrays, each padded to 64 bytes.

    Args:
        weights: float32 or float16 arrays.

    Raises:
        ShapeError: another dtype.
    """
    tensors = tuple(
        TensorSpec(name=name, shape=array.shape, dtype=str(array.dtype)) for name, array in weights.items()
    )
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise ShapeError(f"weights '{tensor.name}': expected {' or '.join(_DTYPES)}, got {tensor.dtype}.")
    header = _header(tensors)
    body = header + b"".join(_padded(array.tobytes()) for array in weights.values())
    return len(header).to_bytes(_LENGTH_BYTES, "little") + hashlib.sha256(body).digest() + body


def unpack_weights(data: bytes) -> dict[str, np.ndarray]:
    """What :func:`pack_weights` wrote, as read-only arrays over ``data``.

    Raises:
        TrainerError: it is damaged, or holds what may not be there.
    """
    if hashlib.sha256(data[_PREFIX_BYTES:]).digest() != data[_LENGTH_BYTES:_PREFIX_BYTES]:
        raise TrainerError("weights from the trainer: their SHA-256 is not the one that stands before them.")
    begin = _PREFIX_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        tensors = _Header.model_validate_json(data[_PREFIX_BYTES:begin].rstrip(b"\0")).tensors
    except ValidationError:
        raise TrainerError("weights from the trainer: their header is not readable.") from None
    _check_tensors(tensors, len(data) - begin)
    weights: dict[str, np.ndarray] = {}
    for tensor in tensors:
        count = tensor.size_bytes // np.dtype(tensor.dtype).itemsize
        weights[tensor.name] = np.frombuffer(data, tensor.dtype, count, begin).reshape(tensor.shape)
        begin += _round_up(tensor.size_bytes, _ALIGNMENT)
    return weights


def _check_tensors(tensors: tuple[TensorSpec, ...], size: int) -> None:
    """Raises :class:`TrainerError` unless arrays like these may come, and fill ``size`` bytes."""
    names = [tensor.name for tensor in tensors]
    for tensor in tensors:
        if tensor.dtype not in _DTYPES or any(side < 0 for side in tensor.shape):
            raise TrainerError(
                f"weights from the trainer: '{tensor.name}' is of {tensor.shape} {tensor.dtype}."
            )
    if len(set(names)) < len(names):
        raise TrainerError(f"weights from the trainer: a name comes twice among {names}.")
    expected = sum(_round_up(tensor.size_bytes, _ALIGNMENT) for tensor in tensors)
    if size != expected:
        raise TrainerError(f"weights from the trainer: expected {expected} bytes, got {size}.")


def _header(tensors: tuple[TensorSpec, ...]) -> bytes:
    header = _Header(tensors=tensors).model_dump_json().encode()
    return header.ljust(_round_up(_PREFIX_BYTES + len(header), _ALIGNMENT) - _PREFIX_BYTES, b"\0")


def _packed_bytes(tensors: tuple[TensorSpec, ...]) -> int:
    arrays = sum(_round_up(tensor.size_bytes, _ALIGNMENT) for tensor in tensors)
    return _PREFIX_BYTES + len(_header(tensors)) + arrays


def _padded(data: bytes) -> bytes:
    return data.ljust(_round_up(len(data), _ALIGNMENT), b"\0")


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
