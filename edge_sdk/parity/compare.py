"""``edge-sdk compare``: run every engine set that this machine can run, and hold it against the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, model_validator

from edge_sdk.bundle import FLOAT32, Bundle, EngineSet
from edge_sdk.conditions import Conditions
from edge_sdk.errors import DependencyError, EngineError, OutputError, RecipeError
from edge_sdk.files import require_writable
from edge_sdk.parity.comparison import Comparison, EngineParity, NotRun, ReferenceFacts, Trace
from edge_sdk.parity.deviation import first_grown
from edge_sdk.parity.record import record_reference
from edge_sdk.parity.reference import BACKEND, Reference, ReferenceSettings
from edge_sdk.parity.steps import compare_steps
from edge_sdk.parity.stream import StreamParity, answers_change_at, compare_stream
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.engine import Backend, EngineOptions, backend_named
from edge_sdk.settings import Settings


class CompareRecipe(Settings):
    """What is compared with which reference.

    Args:
        bundle: the pair, with the engines that were built into it.
        record: what a new reference is made of; None where ``reference`` is there already.
        reference: the reference's file: written where ``record`` is given, else read. None keeps a new reference for
            this comparison alone.
        engines: names of engine sets, ``"float32"`` for the exported pair; None for all that this machine can run.
        threads: CPU threads of one step; None for the backend's own choice.
        max_drop: points that an engine may lose against the reference, see
            :class:`edge_sdk.parity.comparison.EngineParity`; None where nothing is asked.
        grown: relative error of an output (p99 over the largest value) above which it counts as grown.
        trace: also compare every tensor inside the variants' graphs, on ONNX Runtime; needs onnx.
        out: folder for the JSON and the HTML report; None where only the table is wanted.
    """

    bundle: Path
    record: ReferenceSettings | None = None
    reference: Path | None = None
    engines: tuple[str, ...] | None = Field(default=None, min_length=1)
    threads: int | None = Field(default=None, ge=1)
    max_drop: float | None = Field(default=None, ge=0)
    grown: float = Field(default=0.05, gt=0)
    trace: bool = False
    out: Path | None = None

    @model_validator(mode="after")
    def _some_reference(self) -> CompareRecipe:
        if self.record is None and self.reference is None:
            raise ValueError("expected a source to record a reference from, or the file of one")
        return self


def compare(recipe: CompareRecipe, *, progress: Progress | None = None) -> Comparison:
    """Compare.

    Raises:
        MissingFileError, FileFormatError, BundleError: bundle or reference is not whole, or they are not of one pair.
        OutputError: ``reference`` is to be written and is there already, or a place cannot be written to.
        EngineError, DependencyError: an engine set that was named cannot be run here.
    """
    watcher = progress or Silent()
    if recipe.out is not None:
        require_writable(recipe.out)
    bundle = Bundle.open(recipe.bundle)
    wanted = _wanted(bundle, recipe.engines)
    with _reference_of(recipe, bundle, watcher) as reference:
        engines: list[EngineParity] = []
        not_run = [] if recipe.engines is not None else _without_engines(bundle)
        for name in wanted:
            try:
                engines.append(_engine_parity(bundle, name, reference, recipe, watcher))
            except (EngineError, DependencyError) as error:
                if recipe.engines is not None:
                    raise
                not_run.append(NotRun(engine=name, reason=str(error)))
        return Comparison(
            bundle=bundle.manifest.name,
            bundle_path=str(bundle.path),
            metric=bundle.task.score().headline()[0],
            grown=recipe.grown,
            max_drop=recipe.max_drop,
            reference=_facts(reference),
            engines=tuple(engines),
            not_run=tuple(not_run),
            traces=_traces(bundle, reference, recipe, watcher),
            conditions=Conditions.now(recipe.threads),
        )


def _wanted(bundle: Bundle, named: tuple[str, ...] | None) -> list[str]:
    """Names of the engine sets to run; those that were asked for are there."""
    if named is None:
        return [FLOAT32, *bundle.manifest.engines]
    for name in named:
        bundle.pair(name)
    return list(dict.fromkeys(named))


def _without_engines(bundle: Bundle) -> list[NotRun]:
    manifest = bundle.manifest
    reason = "its graphs are there and no engines; build them on this machine with: edge-sdk build RECIPE"
    return [NotRun(engine=name, reason=reason) for name in manifest.variants if name not in manifest.engines]


@contextmanager
def _reference_of(recipe: CompareRecipe, bundle: Bundle, watcher: Progress) -> Iterator[Reference]:
    if recipe.record is None:
        if recipe.reference is None:
            raise RecipeError("expected a source to record a reference from, or the file of one.")
        found = Reference.open(recipe.reference)
        found.check_for(bundle)
        yield found
    elif recipe.reference is not None:
        if recipe.reference.exists():
            raise OutputError(
                f"reference {recipe.reference}: it is there already.",
                hint="Leave SOURCE out to compare with it, or remove it to record another.",
            )
        yield record_reference(bundle, recipe.record, recipe.reference, progress=watcher)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield record_reference(bundle, recipe.record, Path(folder) / "reference.npz", progress=watcher)


def _engine_parity(
    bundle: Bundle, name: str, reference: Reference, recipe: CompareRecipe, watcher: Progress
) -> EngineParity:
    pair = bundle.pair(name)
    backend_name, precision = (
        (pair.backend, pair.precision) if isinstance(pair, EngineSet) else (BACKEND, FLOAT32)
    )
    backend = _backend(backend_name)
    options = EngineOptions(threads=recipe.threads)
    found = compare_steps(
        bundle,
        backend,
        name,
        reference,
        options,
        lambda done, total: watcher.update(f"{name} steps", done, total),
    )
    stream = compare_stream(
        bundle,
        backend,
        name,
        reference,
        recipe.threads,
        lambda done, total: watcher.update(f"{name} stream", done, total),
    )
    steps, in_stream = found.results(), stream.deviations.results()
    return EngineParity(
        engine=name,
        backend=backend_name,
        precision=precision,
        labels=stream.labels,
        reference_labels=stream.reference_labels,
        agreement=stream.agreement,
        same=stream.same,
        drop_points=drop_points(stream),
        by_distance=stream.by_distance,
        steps=steps,
        stream=in_stream,
        grows_in_steps=first_grown(steps, recipe.grown),
        grows_in_stream=first_grown(in_stream, recipe.grown),
        answers_change_at=answers_change_at(stream.by_distance),
    )


def _backend(name: str) -> Backend:
    try:
        return backend_named(name)
    except RecipeError as error:  # the manifest names it, not the user
        raise EngineError(f"this edge_sdk cannot run {name}: {error}") from error


def drop_points(stream: StreamParity) -> float:
    """Points lost against the reference: of the metric against the labels, or what agreement lacks to 1."""
    if stream.labels is not None and stream.reference_labels is not None:
        return (stream.reference_labels - stream.labels) * 100
    return (1 - (stream.agreement or 0.0)) * 100


def _traces(
    bundle: Bundle, reference: Reference, recipe: CompareRecipe, watcher: Progress
) -> tuple[Trace, ...]:
    if not recipe.trace:
        return ()
    from edge_sdk.parity.trace import trace_variants

    return trace_variants(bundle, reference, grown=recipe.grown, progress=watcher)


def _facts(reference: Reference) -> ReferenceFacts:
    header = reference.header
    return ReferenceFacts(
        path=str(reference.path),
        sha256=reference.sha256,
        source=header.settings.source,
        frames=header.frames,
        labelled=len(header.labelled),
        interval=header.interval,
        whole_passes=len(header.passes),
        runtime=header.runtime,
        created=header.created,
    )
