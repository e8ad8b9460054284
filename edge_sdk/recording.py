"""A backend that watches: it runs another backend's engines and shows what each run receives and gives.

It stands behind the same protocols as any backend, so that the runner drives it as it drives them and nothing in the
runtime knows of it. What is recorded belongs to one float32 pair, which is told by the SHA-256 of its graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError
from edge_sdk.manifest import StepName
from edge_sdk.runtime.engine import Backend, BoundStep, Buffer, DeviceTimes, Engine, EngineOptions, Lane
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.runtime.cuda.device import CudaReport


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What is in the buffer of a graph input or output now.

    Args:
        token: the same for what is surely the same content, another for any other.
        array: the memory itself, not a copy; it changes with the next run.
    """

    token: int
    array: np.ndarray


class Observer(Protocol):
    """Sees every run."""

    def before(self, step: StepName, inputs: Mapping[str, Content]) -> None:
        """``step`` is about to read ``inputs``, by graph input."""
        ...

    def after(self, step: StepName, outputs: Mapping[str, Content]) -> None:
        """``step`` has written ``outputs``, by graph output."""
        ...


class RecordingBackend:
    """Wraps a backend; while ``observer`` is set it sees each run.

    The runs that warm up a stream happen while the runner opens; set ``observer`` after that.

    Args:
        inner: what really runs.
        bundle: its step graphs or engines are told by their paths.
        engine: name of the engine set that will be loaded, or ``"float32"``.
    """

    def __init__(self, inner: Backend, bundle: Bundle, engine: str = FLOAT32) -> None:
        self.name, self.owns_thread = inner.name, inner.owns_thread
        self.observer: Observer | None = None
        self._inner = inner
        steps = bundle.pair(engine).steps.items()
        self._steps: dict[Path, StepName] = {bundle.path / spec.graph: name for name, spec in steps}
        self._contents = _Contents()

    @property
    def report(self) -> CudaReport | None:
        """That of the wrapped backend."""
        return self._inner.report

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> Engine:
        """Load a step graph; arguments and errors are the wrapped backend's."""
        return _Engine(self._inner.load(path, options, built), self, self._steps[path])

    def reload(self, path: Path, options: EngineOptions, content: bytes) -> Engine:
        """Load a step with new weights; arguments and errors are the wrapped backend's."""
        return _Engine(self._inner.reload(path, options, content), self, self._steps[path])

    def join_thread(self) -> None:
        """Let the calling thread prepare engines; errors are the wrapped backend's."""
        self._inner.join_thread()

    def open_lane(self) -> Lane:
        """A lane of the wrapped backend."""
        return self._inner.open_lane()

    def before(self, step: StepName, inputs: Mapping[str, Buffer]) -> None:
        """Show what a step is about to read, where there is an observer."""
        if self.observer is not None:
            self.observer.before(step, self._contents.of(inputs))

    def after(self, step: StepName, outputs: Mapping[str, Buffer]) -> None:
        """Show what a step has written, where there is an observer."""
        self._contents.written(outputs)
        if self.observer is not None:
            self.observer.after(step, self._contents.of(outputs))

    def bound(self, outputs: Mapping[str, Buffer]) -> None:
        """Some step will write these buffers."""
        self._contents.written(outputs)


class _Contents:
    """Which content each buffer holds. What no step writes comes from the host, and is new at every run."""

    def __init__(self) -> None:
        self._next = itertools.count()
        # By identity; the buffer itself is held so that no other can come to have its identity.
        self._tokens: dict[int, tuple[Buffer, int]] = {}

    def of(self, buffers: Mapping[str, Buffer]) -> dict[str, Content]:
        return {name: Content(self._token(buffer), buffer.host) for name, buffer in buffers.items()}

    def _token(self, buffer: Buffer) -> int:
        known = self._tokens.get(id(buffer))
        return next(self._next) if known is None else known[1]

    def written(self, buffers: Mapping[str, Buffer]) -> None:
        for buffer in buffers.values():
            self._tokens[id(buffer)] = buffer, next(self._next)


class _Engine:
    def __init__(self, inner: Engine, backend: RecordingBackend, step: StepName) -> None:
        self._inner, self._backend, self._step = inner, backend, step
        self.inputs, self.outputs, self.refittable = inner.inputs, inner.outputs, inner.refittable

    def refitted(self, weights: Mapping[str, np.ndarray]) -> Engine:
        return _Engine(self._inner.refitted(weights), self._backend, self._step)

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> Buffer:
        # What is recorded must be readable, state included.
        return self._inner.allocate(spec, host=True)

    def bind(self, buffers: Mapping[str, Buffer], lane: Lane | None = None) -> BoundStep:
        inner = self._inner.bind(buffers, lane)
        reads = {spec.name: buffers[spec.name] for spec in self.inputs}
        writes = {spec.name: buffers[spec.name] for spec in self.outputs}
        return _Step(inner, self._backend, self._step, reads, writes)

    def close(self) -> None:
        self._inner.close()


class _Step:
    def __init__(
        self,
        inner: BoundStep,
        backend: RecordingBackend,
        step: StepName,
        reads: Mapping[str, Buffer],
        writes: Mapping[str, Buffer],
    ) -> None:
        self._inner, self._backend, self._step = inner, backend, step
        self._reads, self._writes = reads, writes
        self._started = False
        backend.bound(writes)

    @property
    def device_times(self) -> DeviceTimes | None:
        return self._inner.device_times

    def run(self) -> None:
        self.start()
        self.wait()

    def start(self) -> None:
        self._backend.before(self._step, self._reads)
        self._inner.start()
        self._started = True

    def finished(self) -> bool:
        return self._inner.finished()

    def wait(self) -> None:
        started, self._started = self._started, False
        self._inner.wait()
        if started:
            self._backend.after(self._step, self._writes)


def graph_hashes(bundle: Bundle) -> dict[StepName, str]:
    """Hex SHA-256 of each float32 step graph of a bundle."""
    manifest = bundle.manifest
    return {step: manifest.files[spec.graph].sha256 for step, spec in manifest.steps.items()}


def check_pair(recorded: Mapping[StepName, str], name: str, bundle: Bundle, where: str, hint: str) -> None:
    """Check that something was recorded with the float32 pair of ``bundle``.

    Args:
        recorded: hex SHA-256 of each step graph that it was recorded with.
        name: of that pair.
        bundle: the pair that it is wanted for.
        where: begins the message.
        hint: ends it.

    Raises:
        BundleError: naming the step and both graphs.
    """
    theirs = graph_hashes(bundle)
    for step in sorted(theirs.keys() | recorded.keys()):
        ours, other = recorded.get(step), theirs.get(step)
        if ours != other:
            raise BundleError(
                f"{where}: it was recorded with another pair, '{name}': its {step} graph is {_short(ours)}, "
                f"that of bundle {bundle.path} is {_short(other)}.",
                hint=hint,
            )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."
