"""``edge-sdk bench``: rounds of blocks, each row by turns, with the machine watched all the while."""

from __future__ import annotations

from collections.abc import Sequence

from edge_sdk.bench.accuracy import score
from edge_sdk.bench.clock import SystemClock
from edge_sdk.bench.document import BenchDocument, Row, SourceFacts
from edge_sdk.bench.footage import Footage, footage
from edge_sdk.bench.lineup import Lineup, default_rows
from edge_sdk.bench.pace import Reel
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.rounds import Session
from edge_sdk.bench.telemetry import Telemetry
from edge_sdk.bench.yardstick import Yardstick
from edge_sdk.conditions import Conditions
from edge_sdk.errors import RecipeError
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.engine import Backend, backend_named


def bench(
    recipe: BenchRecipe,
    *,
    rows: Sequence[Row] | None = None,
    backend: Backend | None = None,
    progress: Progress | None = None,
) -> BenchDocument:
    """Measure a bundle on this machine. Nothing is written; see :func:`edge_sdk.bench.report.write_report`.

    Args:
        recipe: what is measured, how long, at which rate.
        rows: what is measured instead of the subject and its baselines; the first is the subject. All then get the
            same time saturated, and the bare engine is not measured beside them.
        backend: an object instead of the recipe's named backend.
        progress: told how far the run is.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, has no such engines or no delta step, or
            the bundles do not fit each other.
        ShapeError: the frames are not of the bundle's size.
        RecipeError: the backend is unknown, the frames do not fit into memory, or a live source is given with what it
            leaves without a meaning.
        VideoError: the source cannot be read.
        DependencyError: OpenCV or the backend is not installed.
        EngineError: the backend refuses an engine.
    """
    shown = Silent() if progress is None else progress
    lineup = Lineup.open(recipe)
    named = backend_named(recipe.backend) if backend is None else backend
    with footage(recipe, lineup) as shots:
        found = _rows(recipe, lineup, named, shots, rows)
        if _scored(recipe, lineup) and recipe.source is not None and shots.source is None:
            found = score(found, lineup, shots.clip, recipe, shown, backend=backend)
        return _measured(recipe, lineup, found, shots, named, shown, even=rows is not None)


def _scored(recipe: BenchRecipe, lineup: Lineup) -> bool:
    """Whether rows are scored; where accuracy is asked for by name, what cannot be scored is refused by the scores."""
    asked = recipe.accuracy and "accuracy" in recipe.model_fields_set
    return asked or (recipe.accuracy and lineup.subject.manifest.task.kind == "segmentation")


def _rows(
    recipe: BenchRecipe, lineup: Lineup, backend: Backend, shots: Footage, given: Sequence[Row] | None
) -> tuple[Row, ...]:
    """What is measured: of a live source, which gives each frame once, the subject alone."""
    if given is None:
        alone = recipe if shots.source is None else recipe.model_copy(update={"baselines": False})
        return default_rows(alone, lineup, backend.name)
    if shots.source is not None and len(given) > 1:
        raise RecipeError(
            f"rows: {len(given)} were given, and {shots.clip.uri} is a live source, which gives each frame once.",
            hint="Give one row, or a file or a scene.",
        )
    return tuple(given)


def _measured(
    recipe: BenchRecipe,
    lineup: Lineup,
    rows: tuple[Row, ...],
    shots: Footage,
    backend: Backend,
    progress: Progress,
    *,
    even: bool,
) -> BenchDocument:
    """The rounds; ``even`` as for :class:`Session`."""
    conditions = Conditions.now(recipe.threads)
    clock = SystemClock()
    with Telemetry.of(clock.now_ms, on_gpu=backend.owns_thread) as telemetry:
        session = Session(
            recipe=recipe,
            lineup=lineup,
            rows=rows,
            reel=Reel(shots.clip.frames),
            first=shots.clip.frames[0],
            source=shots.source,
            fps=recipe.fps or shots.clip.fps,
            backend=backend,
            clock=clock,
            yardstick=Yardstick(recipe.threads, clock) if backend.name == "onnxruntime" else None,
            telemetry=telemetry,
            progress=progress,
            even=even,
        )
        for index in range(recipe.round_count):
            session.round(index)
    return BenchDocument(
        recipe=recipe,
        conditions=conditions,
        machine=telemetry.machine(backend.report),
        bundles=lineup.facts(),
        source=SourceFacts.of(shots.clip, fps=session.fps, live=shots.source is not None),
        rows=rows,
        starts=tuple(session.starts),
        blocks=session.blocks(),
        bare=tuple(session.bare),
        readings=telemetry.readings,
    )
