"""``edge-sdk bench``: rounds of blocks, each row by turns, with the machine watched all the while."""

from __future__ import annotations

from collections.abc import Sequence

from edge_sdk.bench.accuracy import score
from edge_sdk.bench.clock import SystemClock
from edge_sdk.bench.document import BenchDocument, Row, SourceFacts
from edge_sdk.bench.lineup import Lineup, default_rows
from edge_sdk.bench.pace import Reel
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.rounds import Session
from edge_sdk.bench.telemetry import Telemetry
from edge_sdk.bench.yardstick import Yardstick
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.clip import Clip, read_clip
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.engine import Backend, backend_named
from edge_sdk.video import open_source

_SYNTHETIC_FRAMES = 60


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
        RecipeError: the backend is unknown, or the frames do not fit into memory.
        VideoError: the source cannot be read.
        DependencyError: OpenCV or the backend is not installed.
        EngineError: the backend refuses an engine.
    """
    shown = Silent() if progress is None else progress
    lineup = Lineup.open(recipe)
    named = backend_named(recipe.backend) if backend is None else backend
    found = default_rows(recipe, lineup, named.name) if rows is None else tuple(rows)
    clip, is_live = _clip(recipe, lineup)
    scored = found
    if recipe.accuracy and recipe.source is not None and not is_live:
        scored = score(found, lineup, clip, recipe, shown, backend=backend)
    conditions = Conditions.now(recipe.threads)
    clock = SystemClock()
    yardstick = Yardstick(recipe.threads, clock) if named.name == "onnxruntime" else None
    with Telemetry.of(clock.now_ms, on_gpu=named.owns_thread) as telemetry:
        session = Session(
            recipe=recipe,
            lineup=lineup,
            rows=scored,
            reel=Reel(clip.frames),
            first=clip.frames[0],
            live_uri=recipe.source if is_live else None,
            fps=recipe.fps or clip.fps,
            backend=named,
            clock=clock,
            yardstick=yardstick,
            telemetry=telemetry,
            progress=shown,
            even=rows is not None,
        )
        for index in range(recipe.round_count):
            session.round(index)
    return BenchDocument(
        recipe=recipe,
        conditions=conditions,
        machine=telemetry.machine(named.report),
        bundles=lineup.facts(),
        source=SourceFacts.of(clip, fps=session.fps, live=is_live),
        rows=scored,
        starts=tuple(session.starts),
        blocks=session.blocks(),
        bare=tuple(session.bare),
        readings=telemetry.readings,
    )


def _clip(recipe: BenchRecipe, lineup: Lineup) -> tuple[Clip, bool]:
    """The frames in memory, and whether the source is live: then one frame of it, for what warms up."""
    height, width = lineup.subject.size_hw
    if recipe.source is None:
        scene = f"synthetic:shapes?height={height}&width={width}&frames={_SYNTHETIC_FRAMES}"
        return read_clip(scene, lineup.subject.task, (height, width), labels=False), False
    with open_source(recipe.source, limit=1) as source:
        is_live = source.live
    limit = 1 if is_live else recipe.limit
    return read_clip(
        recipe.source, lineup.subject.task, (height, width), limit=limit, labels=not is_live
    ), is_live
