"""The engines of a bundle's steps, loaded once for any number of streams."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.bundle import FLOAT32, Bundle, EngineSet, PairSpec, StepName, set_name
from edge_sdk.errors import BundleError
from edge_sdk.identity import open_engine
from edge_sdk.runtime.engine import Backend, BoundStep, Engine, EngineOptions
from edge_sdk.tensors import TensorSpec

# ONNX Runtime plans its memory in the first run and uses the plan from the second on.
_WARM_UP_RUNS = 2
_MS_PER_NS = 1e-6


@dataclass(frozen=True, slots=True)
class StepEngines:
    """One engine a step; they hold no stream's data. ``delta`` is None where no delta step is wanted.

    Attributes:
        pair: what the engines take and give.
        background: a keyframe engine with its own share of the cores, for keyframes beside the frames; None where
            ``keyframe`` serves for those too.
    """

    pair: PairSpec
    keyframe: Engine
    delta: Engine | None
    background: Engine | None = None

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        backend: Backend,
        options: EngineOptions,
        *,
        engine: str = FLOAT32,
        with_delta: bool,
        background: EngineOptions | None = None,
    ) -> StepEngines:
        """Load the step graphs of ``bundle``.

        Args:
            bundle: where they are.
            backend: what runs them.
            options: how they are loaded.
            engine: name of an engine set, or ``"float32"`` for the exported graphs.
            with_delta: whether the delta step is wanted too.
            background: load the keyframe step once more with these options.

        Raises:
            BundleError: a graph has other inputs or outputs than the manifest says, or there is no such step.
            EngineError: the backend refuses a graph.
        """
        pair = bundle.pair(engine)
        with ExitStack() as opened:

            def load(step: StepName, how: EngineOptions) -> Engine:
                engine = _load_step(bundle, pair, step, backend, how)
                opened.callback(engine.close)
                return engine

            keyframe = load("keyframe", options)
            delta = load("delta", options) if with_delta else None
            beside = load("keyframe", background) if background is not None else None
            opened.pop_all()  # from here on they are the caller's to close
        return cls(pair, keyframe, delta, beside)

    def close(self) -> None:
        """Close the engines; closing twice does nothing."""
        for engine in (self.background, self.delta, self.keyframe):
            if engine is not None:
                engine.close()


def _load_step(
    bundle: Bundle, pair: PairSpec, name: StepName, backend: Backend, options: EngineOptions
) -> Engine:
    step = pair.steps.keyframe if name == "keyframe" else pair.steps.delta or bundle.step(name)
    path = bundle.path / step.graph
    engine = (
        backend.load(path, options, _checked(bundle, pair, name, path))
        if isinstance(pair, EngineSet)
        else backend.load(path, options)
    )
    try:
        _check_graph(step.graph, engine.inputs, step.inputs)
        _check_graph(step.graph, engine.outputs, step.outputs)
    except BaseException:
        engine.close()
        raise
    return engine


def _checked(bundle: Bundle, built: EngineSet, name: StepName, path: Path) -> bytes:
    """The content of an engine that is whole and built for this machine, from the graph that the bundle holds."""
    manifest = bundle.manifest
    origin = manifest.variants.get(set_name(built.backend, built.precision))
    steps = manifest.steps if origin is None else origin.steps
    graph = steps.keyframe if name == "keyframe" else steps.delta or bundle.step(name)
    content, _ = open_engine(
        path,
        backend=built.backend,
        rebuild="edge-sdk build RECIPE",
        step=name,
        precision=built.precision,
        graph_sha256=manifest.files[graph.graph].sha256,
    )
    return content


def _check_graph(graph: str, found: Iterable[TensorSpec], recorded: Iterable[TensorSpec]) -> None:
    """The graph's own inputs or outputs are those that the manifest records, in any order."""
    in_graph, in_manifest = ({spec.name: spec for spec in specs} for specs in (found, recorded))
    for name in sorted(in_graph | in_manifest):
        left, right = in_graph.get(name), in_manifest.get(name)
        if left != right:
            raise BundleError(
                f"graph {graph}: '{name}' is {_text(left)} in the graph and {_text(right)} in the manifest.",
                hint="Export the bundle again.",
            )


def _text(spec: TensorSpec | None) -> str:
    return f"{spec.shape} {spec.dtype}" if spec else "not there"


def check_beside(rewritten: Sequence[str], *, background: bool, learning: bool) -> None:
    """Refuse what a rewritten state does not allow.

    Args:
        rewritten: names of the state tensors that the delta step rewrites.
        background: whether keyframes are to run beside the frames.
        learning: whether the student is to learn.

    Raises:
        BundleError: the delta step rewrites state, and one of the two is wanted.
    """
    if background and rewritten:
        raise BundleError(
            f"background keyframes: the delta step rewrites the state '{rewritten[0]}', so a keyframe that comes "
            "later would undo what the deltas have added to it.",
            hint="Run this pair without background keyframes.",
        )
    if learning and rewritten:
        raise BundleError(
            f"adapt: the delta step rewrites the state '{rewritten[0]}', which new weights could not take over.",
            hint="Export a student that reads its state only.",
        )


def warmed_up(steps: Mapping[str, Sequence[BoundStep]]) -> tuple[dict[str, float], dict[str, float]]:
    """Run every binding twice; the first and second run of each step's first binding, in milliseconds by name."""
    rounds: list[dict[str, float]] = []
    for _ in range(_WARM_UP_RUNS):
        times: dict[str, float] = {}
        for name, bindings in steps.items():
            for step in bindings:
                began_ns = time.perf_counter_ns()
                step.run()
                times.setdefault(name, (time.perf_counter_ns() - began_ns) * _MS_PER_NS)
        rounds.append(times)
    return rounds[0], rounds[1]
