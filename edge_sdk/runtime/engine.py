"""What every backend implements: engines, the buffers they run on, and steps bound to buffers.

A backend is one file. An engine holds weights and no stream's data, so several streams share it; all that belongs to
one stream is in buffers, and a bound step is an engine tied to one choice of buffers, ready to run without allocating.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import Field

from edge_sdk.errors import EngineError, RecipeError, ShapeError
from edge_sdk.gpu import find_gpu
from edge_sdk.settings import Settings
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.runtime.cuda.device import CudaReport

ALIGNMENT_BYTES = 256


class EngineOptions(Settings):
    """How engines are loaded.

    Args:
        threads: CPU threads of one step; None for the backend's own choice.
    """

    threads: int | None = Field(default=None, ge=1, strict=True)


class Buffer(Protocol):
    """Memory of one tensor, allocated once; interchangeable between the engines of one backend."""

    @property
    def spec(self) -> TensorSpec:
        """What it was allocated for."""
        ...

    @property
    def host(self) -> np.ndarray:
        """Its host side, C-contiguous, of the spec's shape and dtype; on a CPU this is the memory itself.

        Raises:
            EngineError: it was allocated without a host side.
        """
        ...


class Lane(Protocol):
    """Where steps run one after another: the caller's own thread or a worker's on a CPU, a stream on a GPU.

    Steps of different lanes run at the same time; nothing but the caller orders them.
    """

    def close(self) -> None:
        """Wait for what was started and release the lane; closing twice does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """What one run took on the device by the device's own clock, in milliseconds.

    Args:
        upload_ms: inputs from the host; 0 where they are not copied.
        compute_ms: the work.
        download_ms: outputs to the host; 0 where they are not copied.
    """

    upload_ms: float
    compute_ms: float
    download_ms: float


class BoundStep(Protocol):
    """An engine tied to buffers and a lane."""

    @property
    def device_times(self) -> DeviceTimes | None:
        """Times of the last run that was waited for; None before the first, and where the host computes."""
        ...

    def run(self) -> None:
        """Run to completion: :meth:`start`, then :meth:`wait`.

        Raises:
            EngineError: the runtime failed; the outputs are undefined.
        """
        ...

    def start(self) -> None:
        """Begin; allocates nothing of ours. Until it has finished, its buffers are nobody else's.

        Input buffers with a host side are read from it; output buffers with one are complete there when it has
        finished.

        Raises:
            EngineError: the runtime failed, or the last start has not been waited for.
        """
        ...

    def finished(self) -> bool:
        """Whether :meth:`wait` would return (or raise) at once; never waits itself."""
        ...

    def wait(self) -> None:
        """Wait for what was started; without anything started it returns at once.

        Raises:
            EngineError: the runtime failed; the outputs are undefined.
        """
        ...


class Engine(Protocol):
    """One graph compiled for one runtime."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every graph input."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Every graph output."""
        ...

    @property
    def refittable(self) -> tuple[TensorSpec, ...]:
        """Weights that :meth:`refitted` can exchange: those that the graph, or the built engine, leaves open."""
        ...

    def refitted(self, weights: Mapping[str, np.ndarray]) -> Engine:
        """Another engine of the same graph with other weights in the open places; this one stays as it is.

        Args:
            weights: for every name in :attr:`refittable`, an array of its shape and dtype.

        Raises:
            EngineError: a name is missing or unknown, or the runtime refuses.
            ShapeError: an array has another shape or dtype.
        """
        ...

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> Buffer:
        """A buffer for ``spec``, aligned to 256 bytes.

        Args:
            spec: shape and dtype; the name is for messages only.
            host: whether it has a host side. State has none: it stays on the device.
        """
        ...

    def bind(self, buffers: Mapping[str, Buffer], lane: Lane | None = None) -> BoundStep:
        """Tie every input and output to a buffer.

        Args:
            buffers: by graph input or output name; one buffer may serve several steps.
            lane: where it runs; None for the backend's main lane.

        Raises:
            EngineError: a name is missing or unknown.
            ShapeError: a buffer has another shape or dtype than the tensor.
        """
        ...

    def close(self) -> None:
        """Release the engine; closing twice does nothing."""
        ...


class Backend(Protocol):
    """Loads graphs as engines.

    Attributes:
        name: of the backend.
        owns_thread: everything must happen on the one thread that loaded the engines, as a GPU's context asks.
    """

    name: str
    owns_thread: bool

    @property
    def report(self) -> CudaReport | None:
        """What was chosen on this machine, from the first engine on; None where there is nothing to choose."""
        ...

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> Engine:
        """Load a graph, or an engine that was built for this machine.

        Args:
            path: the file, for messages too.
            options: how it is loaded.
            built: the engine's content where it has been checked already, see :func:`edge_sdk.identity.open_engine`;
                None for a graph.

        Raises:
            DependencyError: the runtime is not installed on this machine.
            EngineError: the runtime refuses the graph.
        """
        ...

    def reload(self, path: Path, options: EngineOptions, content: bytes) -> Engine:
        """Load a step with new weights, as a trainer made it for this backend; any thread may do so.

        Args:
            path: the step's file in the bundle, for messages.
            options: how it is loaded.
            content: a graph, or, where the backend only runs what was built for the machine, such an engine.

        Raises:
            EngineError: the runtime refuses it.
        """
        ...

    def join_thread(self) -> None:
        """Let the calling thread load, bind, run and close beside the one that loaded the engines in use.

        A thread that prepares engines beside the frames calls it first; without ``owns_thread`` it does nothing. What
        such a thread starts without a lane runs beside the frames; nobody but the two threads orders it.

        Raises:
            ClosedError: no engine of this backend is open.
            EngineError: it is not known which thread's engines are meant, or the machine refuses.
        """
        ...

    def open_lane(self) -> Lane:
        """A lane beside the main one, of lower priority where the machine knows priorities."""
        ...


_BACKENDS = {
    "onnxruntime": ("edge_sdk.runtime.onnxruntime", "OrtBackend"),
    "tensorrt": ("edge_sdk.runtime.tensorrt", "TensorRtBackend"),
}
# What each needs: one package of each group.
_PACKAGES = {"onnxruntime": (("onnxruntime",),), "tensorrt": (("tensorrt", "tensorrt_rtx"), ("pycuda",))}


def backend_available(name: str) -> bool:
    """Whether this edge_sdk has such a backend, and this machine the packages and the GPU that it needs."""
    if name not in _BACKENDS or not all(any(map(find_spec, group)) for group in _PACKAGES[name]):
        return False
    return name != "tensorrt" or find_gpu() is not None


def backend_named(name: str) -> Backend:
    """The backend of that name, imported now.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in _BACKENDS:
        raise RecipeError(f"backend: expected one of {', '.join(sorted(_BACKENDS))}, got {name!r}.")
    module, attribute = _BACKENDS[name]
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def aligned_array(spec: TensorSpec) -> np.ndarray:
    """Zeroed C-contiguous memory for ``spec`` that starts at a multiple of 256 bytes."""
    raw = np.zeros(spec.size_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[start : start + spec.size_bytes].view(spec.dtype).reshape(spec.shape)


def check_buffers(engine: Engine, buffers: Mapping[str, Buffer]) -> None:
    """Check that ``buffers`` covers every input and output of ``engine``, in shape and dtype; for backends.

    Raises:
        EngineError: a name is missing or unknown.
        ShapeError: a buffer has another shape or dtype than the tensor.
    """
    specs = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
    for name, spec in specs.items():
        if name not in buffers:
            raise EngineError(f"bind: no buffer was given for '{name}'.")
        given = buffers[name].spec
        if (given.shape, given.dtype) != (spec.shape, spec.dtype):
            raise ShapeError(
                f"bind: '{name}' expects {spec.shape} {spec.dtype}, its buffer is {given.shape} {given.dtype}."
            )
    if unknown := sorted(set(buffers) - set(specs)):
        raise EngineError(f"bind: the graph has no '{unknown[0]}', only {', '.join(sorted(specs))}.")


def check_weights(engine: Engine, weights: Mapping[str, np.ndarray]) -> None:
    """Check that ``weights`` has every open place of ``engine`` and nothing else; for backends.

    Raises:
        EngineError: a name is missing or unknown.
        ShapeError: an array has another shape or dtype.
    """
    check_weight_names(engine, weights)
    for spec in engine.refittable:
        name, given = spec.name, weights[spec.name]
        if (given.shape, str(given.dtype)) != (spec.shape, spec.dtype):
            raise ShapeError(
                f"refit: '{name}' expects {spec.shape} {spec.dtype}, got {given.shape} {given.dtype}."
            )


def check_weight_names(engine: Engine, names: Iterable[str]) -> None:
    """Check that ``names`` are those of the open places of ``engine``; for backends.

    Raises:
        EngineError: one is missing or unknown.
    """
    places = {spec.name for spec in engine.refittable}
    for name in sorted(places ^ set(names)):
        what = "is missing" if name in places else "is no weight that the engine leaves open"
        raise EngineError(
            f"refit: '{name}' {what}.", hint="Export the bundle with the layers to be exchanged under 'open'."
        )
