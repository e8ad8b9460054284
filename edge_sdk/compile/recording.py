"""A backend that watches: it runs another backend's engines and shows what each run receives.

It stands behind the same protocols as any backend, so that the runner drives it as it drives them and nothing in the
runtime knows of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.manifest import StepName
from edge_sdk.runtime.engine import Backend, BoundStep, Buffer, Engine, EngineOptions
from edge_sdk.tensors import TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """What a graph input is about to read.

    Args:
        token: the same for what is surely the same content, another for any other.
        array: the memory itself, not a copy; it changes with the next run.
    """

    token: int
    array: np.ndarray


Observer = Callable[[StepName, Mapping[str, Received]], None]


class RecordingBackend:
    """Wraps a backend; while ``observer`` is set it is called before each run.

    The runs that warm up a stream happen while the runner opens; set ``observer`` after that.

    Args:
        inner: what really runs.
        bundle: its step graphs are told by their paths.
    """

    def __init__(self, inner: Backend, bundle: Bundle) -> None:
        self.name = inner.name
        self.observer: Observer | None = None
        self._inner = inner
        steps = bundle.manifest.steps.items()
        self._steps: dict[Path, StepName] = {bundle.path / spec.graph: name for name, spec in steps}
        self._contents = _Contents()

    def load(self, path: Path, options: EngineOptions) -> Engine:
        """Load a step graph; arguments and errors are the wrapped backend's."""
        return _Engine(self._inner.load(path, options), self, self._steps[path])

    def show(self, step: StepName, inputs: Mapping[str, Buffer]) -> None:
        """Call the observer, where there is one."""
        if self.observer is not None:
            self.observer(step, {name: self._contents.of(buffer) for name, buffer in inputs.items()})

    def bound(self, outputs: Mapping[str, Buffer]) -> None:
        """Some step writes these buffers."""
        self._contents.written(outputs)


class _Contents:
    """Which content each buffer holds. What no step writes comes from the host, and is new at every run."""

    def __init__(self) -> None:
        self._next = itertools.count()
        # By identity; the buffer itself is held so that no other can come to have its identity.
        self._tokens: dict[int, tuple[Buffer, int]] = {}

    def of(self, buffer: Buffer) -> Received:
        known = self._tokens.get(id(buffer))
        return Received(next(self._next) if known is None else known[1], buffer.host)

    def written(self, buffers: Mapping[str, Buffer]) -> None:
        for buffer in buffers.values():
            self._tokens[id(buffer)] = buffer, next(self._next)


class _Engine:
    def __init__(self, inner: Engine, backend: RecordingBackend, step: StepName) -> None:
        self._inner, self._backend, self._step = inner, backend, step
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> Buffer:
        # What is recorded must be readable, state included.
        return self._inner.allocate(spec, host=True)

    def bind(self, buffers: Mapping[str, Buffer]) -> BoundStep:
        inner = self._inner.bind(buffers)
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
        backend.bound(writes)

    def run(self) -> None:
        self._backend.show(self._step, self._reads)
        self._inner.run()
        self._backend.bound(self._writes)
