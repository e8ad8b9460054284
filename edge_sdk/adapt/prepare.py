"""New engines from what the trainer sends, made beside the stream; and the CPU cores that learning stays on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle, PairSpec, StepName
from edge_sdk.errors import BundleError, EngineError, RecipeError
from edge_sdk.runtime.engine import Backend, Engine, EngineOptions


def learning_cores(settings: AdaptSettings) -> tuple[int, ...]:
    """The CPU cores that learning stays on: the last of those that this process may use; empty where none can be named.

    Raises:
        RecipeError: the process has fewer.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cores = sorted(os.sched_getaffinity(0))
    if settings.cores > len(cores):
        raise RecipeError(
            f"adapt: 'cores' asks for {settings.cores} CPU cores for learning, this process may use {len(cores)}.",
            hint="Give AdaptSettings(cores=...) fewer.",
        )
    return tuple(cores[-settings.cores :])


@contextmanager
def thread_on(cores: tuple[int, ...]) -> Iterator[None]:
    """Have the calling thread on ``cores`` alone, as long as the block lasts; does nothing without any.

    Its priority stays what it is: a thread of low priority may lose the CPU while it holds Python's lock, and then the
    thread that runs the frames waits for both.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Engines of new weights.

    Args:
        keyframe: None where the keyframe step has none of the weights that learn.
        delta: the student.
    """

    keyframe: Engine | None
    delta: Engine

    def close(self) -> None:
        """Close the engines."""
        for engine in (self.delta, self.keyframe):
            if engine is not None:
                engine.close()


class Preparation:
    """Makes engines of new weights for one stream.

    Args:
        bundle: whose manifest says which steps learn.
        backend: of the engines in use.
        options: how those were loaded.
        engine: which set they are of.
        cores: where the work is done.

    Attributes:
        engine: name of the set.
        pair: steps and state of the engines.
        learns: the steps that new weights come for.

    Raises:
        BundleError: the bundle has no student that can learn.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, options: EngineOptions, engine: str, cores: tuple[int, ...]
    ) -> None:
        online = bundle.manifest.online
        self.engine = engine
        self.pair: PairSpec = bundle.pair(engine)
        delta = self.pair.steps.delta
        if online is None or delta is None or "delta" not in online.tensors:
            raise BundleError(
                f"adapt: bundle {bundle.path} has no student that can learn on a stream.",
                hint="Export one with an 'online' recipe: see docs/online.md.",
            )
        self.learns: tuple[StepName, ...] = tuple(
            name for name, _ in self.pair.steps.items() if name in online.tensors
        )
        self._paths = {name: bundle.path / step.graph for name, step in self.pair.steps.items()}
        self._backend, self._options = backend, options
        # The threads of a session's own stay on the cores of the thread that loads it, and later answer frames.
        self._cores = cores if options.threads == 1 else ()

    def size_bytes(self, step: StepName) -> int:
        """Size of the step's graph, or engine, as the bundle has it; new weights make one of about that size."""
        return self._paths[step].stat().st_size

    def name_of(self, step: StepName) -> str:
        """Name of the step's graph, or engine, in the bundle; a kept version has it under the same."""
        return dict(self.pair.steps.items())[step].graph

    def join_thread(self) -> None:
        """Let the calling thread prepare engines from now on, see :class:`edge_sdk.runtime.engine.Backend`."""
        self._backend.join_thread()

    def load(self, graphs: Mapping[StepName, bytes]) -> Prepared:
        """Engines of whole graphs, or of engines that the trainer built for this machine.

        Args:
            graphs: the content of each step that learns.

        Raises:
            EngineError: the backend refuses one, or a step is missing.
        """
        return self._each(
            graphs, lambda name: self._backend.reload(self._paths[name], self._options, graphs[name])
        )

    def refit(self, in_use: Mapping[StepName, Engine], weights: Mapping[str, np.ndarray]) -> Prepared:
        """Engines of the same graphs as those in use, with other weights in the open places.

        Args:
            in_use: engine of each step that learns.
            weights: by name in the graph.

        Raises:
            EngineError: a weight is missing, or the runtime refuses.
            ShapeError: an array has another shape or dtype than its place.
        """

        def make(name: StepName) -> Engine:
            engine = in_use[name]
            places = [spec.name for spec in engine.refittable]
            if missing := [place for place in places if place not in weights]:
                raise EngineError(f"refit: the trainer sent no '{missing[0]}' for the {name} step.")
            return engine.refitted({place: weights[place] for place in places})

        return self._each(in_use, make)

    def _each(self, given: Mapping[StepName, object], make: Callable[[StepName], Engine]) -> Prepared:
        if missing := [name for name in self.learns if name not in given]:
            raise EngineError(f"adapt: the trainer sent nothing for the {missing[0]} step.")
        made: dict[StepName, Engine] = {}
        try:
            with thread_on(self._cores):
                for name in self.learns:
                    made[name] = make(name)
        except BaseException:
            for engine in made.values():
                engine.close()
            raise
        return Prepared(made.get("keyframe"), made["delta"])
