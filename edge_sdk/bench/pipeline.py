"""``edge-sdk bench``: rounds of blocks, each row by turns, with the machine watched all the while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_sdk.bench.accuracy import score
from edge_sdk.bench.clock import Clock, SystemClock
from edge_sdk.bench.document import SUBJECT, BenchDocument, Row, SourceFacts
from edge_sdk.bench.lineup import Entrant, Lineup, default_rows, interval_of, opened
from edge_sdk.bench.pace import Reel, camera, live, saturated
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.bench.samples import LETTERS, BareBlock, Block, FrameColumns, Mode, Start
from edge_sdk.bench.telemetry import Telemetry
from edge_sdk.bench.yardstick import Yardstick
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.clip import Clip, read_clip
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.engine import Backend, backend_named
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.video import open_source
from edge_sdk.video.frame import Frame

_SYNTHETIC_FRAMES = 60
_WARM_UP_MS = 500.0
# Of the time of a round that is not at camera pace: alone, in pairs with the bare engine; the rest is the other rows'.
_ALONE, _PAIRED = 0.35, 0.25
_STAGE = "bench"


@dataclass
class _Run:
    """What a run has gathered so far, and what it works with."""

    recipe: BenchRecipe
    lineup: Lineup
    rows: tuple[Row, ...]
    reel: Reel
    first: Frame
    live_uri: str | None
    fps: float
    backend: Backend
    clock: Clock
    yardstick: Yardstick | None
    telemetry: Telemetry
    progress: Progress
    starts: list[Start] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    bare: list[BareBlock] = field(default_factory=list)
    overhead_ms: float = 0.0
    even: bool = False


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
        run = _Run(
            recipe, lineup, scored, Reel(clip.frames), clip.frames[0], recipe.source if is_live else None,
            recipe.fps or clip.fps, named, clock, yardstick, telemetry, shown, even=rows is not None,
        )  # fmt: skip
        for index in range(recipe.round_count):
            _round(run, index)
    return BenchDocument(
        recipe=recipe,
        conditions=conditions,
        machine=telemetry.machine(getattr(named, "report", None)),
        bundles=lineup.facts(),
        source=_facts(clip, run.fps, is_live),
        rows=scored,
        starts=tuple(run.starts),
        blocks=tuple(run.blocks),
        bare=tuple(run.bare),
        readings=telemetry.readings,
    )


def _round(run: _Run, index: int) -> None:
    """Every row once, in an order that begins one further on in each round; the subject at camera pace too."""
    planned_ms, began_ms = run.recipe.round_s * 1e3, run.clock.now_ms()
    # Opening runners takes time too; what it took in the last round is taken off this one.
    length_ms = max(planned_ms / 2, planned_ms - run.overhead_ms)
    paced_ms = length_ms if run.live_uri else length_ms * run.recipe.camera_share
    free_ms = length_ms - paced_ms
    others = len(run.rows) - 1
    alone_ms = free_ms * (_ALONE if others else 1 - _PAIRED)
    each_ms = free_ms * (1 - _ALONE - _PAIRED) / max(1, others)
    if run.even:
        alone_ms = each_ms = free_ms / len(run.rows)
    start = index % len(run.rows)
    for row in (*run.rows[start:], *run.rows[:start]):
        with opened(row, run.lineup, run.recipe, run.backend, run.first) as entrant:
            if row.name != SUBJECT:
                _keep(run, row, entrant, index, "warm-up", 0.0)
                _keep(run, row, entrant, index, "saturated", each_ms)
                continue
            run.starts.append(_start(entrant.runner, index))
            _keep(run, row, entrant, index, "warm-up", min(_WARM_UP_MS, 0.1 * length_ms))
            if run.live_uri is None:
                _keep(run, row, entrant, index, "saturated", alone_ms)
                if not run.even:
                    _pairs(run, row, entrant, index, free_ms * _PAIRED)
            if paced_ms:
                _keep(run, row, entrant, index, "camera", paced_ms)
        spent_s = min(int(run.clock.now_ms() / 1e3), int(run.recipe.length_s) - 1)
        run.progress.update(_STAGE, spent_s, int(run.recipe.length_s))
    run.overhead_ms = run.clock.now_ms() - began_ms - length_ms
    if index + 1 == run.recipe.round_count:
        run.progress.update(_STAGE, int(run.recipe.length_s), int(run.recipe.length_s))


def _keep(run: _Run, row: Row, entrant: Entrant, index: int, mode: Mode, length_ms: float) -> None:
    """Measure a block between two readings of the yardstick and of the energy."""
    before_ms, before_j = _yardstick(run), run.telemetry.energy_j()
    if mode == "camera":
        frames, dropped = _paced(run, entrant, length_ms)
    else:
        chunk = interval_of(row.schedule)
        frames, dropped = saturated(entrant.contender, run.reel, run.clock, length_ms, chunk), 0
    after_j, after_ms = run.telemetry.energy_j(), _yardstick(run)
    run.blocks.append(
        Block(
            row=row.name,
            round=index,
            mode=mode,
            frames=frames,
            dropped=dropped,
            yardstick_ms=_mean(before_ms, after_ms),
            energy_j=None if before_j is None or after_j is None else after_j - before_j,
        )
    )


def _paced(run: _Run, entrant: Entrant, length_ms: float) -> tuple[FrameColumns, int]:
    if run.live_uri is None:
        return camera(entrant.contender, run.reel, run.clock, length_ms, run.fps, run.recipe.late)
    with open_source(run.live_uri) as source:
        return live(entrant.contender, source, run.clock, length_ms)


def _pairs(run: _Run, row: Row, entrant: Entrant, index: int, length_ms: float) -> None:
    """By turns a keyframe period through the runner and the same steps bare."""
    runner, clock, chunk = entrant.runner, run.clock, interval_of(row.schedule)
    kinds: list[StepKind] = []
    through: list[float] = []
    wall: list[float] = []
    gpu: list[float] = []
    before_ms = _yardstick(run)
    entrant.contender.reset()
    frame, end_ms = 0, clock.now_ms() + length_ms
    while frame == 0 or clock.now_ms() < end_ms:
        samples = []
        for _ in range(chunk):
            samples.append(
                entrant.contender.step(run.reel.frame(frame, clock.origin_s + clock.now_ms() / 1e3))
            )
            frame += 1
        ran = [sample for sample in samples if sample.kind is not StepKind.SKIP]
        for sample, alone in zip(ran, runner.time_bare([sample.kind for sample in ran]), strict=True):
            kinds.append(sample.kind)
            through.append(round(sample.times.total_ms, 4))
            wall.append(round(alone.wall_ms, 4))
            if alone.gpu_ms is not None:
                gpu.append(round(alone.gpu_ms, 4))
    run.bare.append(
        BareBlock(
            round=index,
            kinds="".join(LETTERS[kind] for kind in kinds),
            runner_ms=tuple(through),
            wall_ms=tuple(wall),
            gpu_ms=tuple(gpu),
            yardstick_ms=_mean(before_ms, _yardstick(run)),
        )
    )


def _start(runner: EdgeRunner, index: int) -> Start:
    times = runner.start_times
    return Start(
        round=index,
        check_ms=times.check_ms,
        load_ms=times.load_ms,
        bind_ms=times.bind_ms,
        first_ms=dict(times.first_ms),
        second_ms=dict(times.second_ms),
    )


def _yardstick(run: _Run) -> float | None:
    return None if run.yardstick is None else run.yardstick.measure_ms()


def _mean(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else (before + after) / 2


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


def _facts(clip: Clip, fps: float, is_live: bool) -> SourceFacts:
    height, width = clip.size_hw
    return SourceFacts(
        uri=clip.uri,
        frames=len(clip),
        labelled=clip.labelled,
        height=height,
        width=width,
        fps=fps,
        live=is_live,
    )
