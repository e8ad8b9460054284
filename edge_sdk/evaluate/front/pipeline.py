"""``edge-sdk front``: one run, every row, over the same frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_sdk.conditions import Conditions
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.clip import MEMORY_LIMIT_BYTES, Clip, Tick, read_clip
from edge_sdk.evaluate.facts import ClipFacts
from edge_sdk.evaluate.flow import METHOD as FLOW_METHOD
from edge_sdk.evaluate.front.accuracy import RowScores, score_rows
from edge_sdk.evaluate.front.document import Front, FrontRow, Times
from edge_sdk.evaluate.front.lineup import FrontLineup, Seat, open_front, seats_of
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.front.recovered import Point, Recovered, envelope, recovered
from edge_sdk.evaluate.front.timing import time_rows, whole_periods
from edge_sdk.evaluate.pipeline import phases_method, timing_method, with_opencv_threads
from edge_sdk.evaluate.timing import Timing, amortised
from edge_sdk.machine import machine_facts
from edge_sdk.progress import Progress, Silent

_METHODS = {
    "recovered share": "(mIoU of the pair - mIoU of the rival) / (mIoU of the teacher - mIoU of the rival), all in one "
    "precision and over the same frames, each counted as often. The rival is the per-frame network of the pair's mean "
    "latency: interpolated linearly between the measured networks that no faster one beats, and the teacher as the "
    "widest.",
    "flow": f"{FLOW_METHOD}; taken directly from each frame to its keyframe.",
    "agreement": "mIoU with the masks of the float32 teacher as truth.",
}


def measure_front(recipe: FrontRecipe, *, progress: Progress | None = None) -> Front:
    """Compare pairs with smaller networks on every frame, at the same mean latency.

    Nothing is written; see :meth:`Front.write_report`.

    Args:
        recipe: bundles, frames, intervals, repeats.
        progress: told how far each stage is.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, lacks engines that are asked for, or the
            bundles do not fit each other.
        ShapeError: the frames are not of the bundles' size.
        RecipeError: no labels, too few frames for the intervals, or more than fit into memory.
        VideoError: a source cannot be read to its end.
        DependencyError: OpenCV or a runtime is not installed.
    """
    tick: Tick = (progress or Silent()).update
    lineup = open_front(recipe)
    seats = seats_of(recipe, lineup)
    with with_opencv_threads(recipe.threads, "edge-sdk front"):
        clips = _read_clips(recipe, lineup, tick)
        conditions = Conditions.now(recipe.threads)
        scores = score_rows(recipe, lineup, clips, seats, tick)
        timings = time_rows(recipe, clips, seats, tick)
    sources = tuple(ClipFacts.of(clip) for clip in clips)
    return Front(
        rows=_rows(seats, scores, timings),
        methods=_METHODS | {"phases": phases_method(recipe), "timing": _timing_method(recipe, sources)},
        task=lineup.pairs[0].bundle.manifest.task,
        sources=sources,
        bundles=lineup.facts(),
        recipe=recipe,
        conditions=conditions,
        machines={
            backend: machine_facts(backend) for backend in dict.fromkeys(seat.backend for seat in seats)
        },
    )


def _read_clips(recipe: FrontRecipe, lineup: FrontLineup, tick: Tick) -> list[Clip]:
    """Every source, with labels and enough frames; all of them together fit into memory.

    Raises:
        RecipeError: they do not.
    """
    pair = lineup.pairs[0].bundle
    clips: list[Clip] = []
    room = MEMORY_LIMIT_BYTES
    for uri in recipe.source:
        clip = read_clip(uri, pair.task, pair.size_hw, limit=recipe.limit, memory_bytes=room, tick=tick)
        if not clip.labelled:
            raise RecipeError(
                f"source {clip.uri}: expected labels, it has none; a share of mIoU needs them.",
                hint="Put masks of class ids into labels/ beside images/, or name a source that has them.",
            )
        if len(clip) < max(recipe.intervals):
            raise RecipeError(
                f"intervals: {max(recipe.intervals)} needs as many frames, source {clip.uri} gave {len(clip)}.",
                hint="Name a longer source or smaller `intervals`.",
            )
        clips.append(clip)
        room -= clip.held_bytes
    return clips


def _timing_method(recipe: FrontRecipe, sources: Sequence[ClipFacts]) -> str:
    counts = [whole_periods(source.frames, recipe.intervals) for source in sources]
    whole = all(count % interval == 0 for count in counts for interval in recipe.intervals)
    periods = "whole periods of every interval" if whole else "not whole periods of every interval"
    return f"{timing_method(recipe)} Run: {sum(counts)} frames in {len(counts)} clip(s), {periods}."


def _rows(
    seats: Sequence[Seat], scores: Mapping[str, RowScores], timings: Mapping[str, Timing]
) -> tuple[FrontRow, ...]:
    rows: list[FrontRow] = []
    for engine in dict.fromkeys(seat.engine for seat in seats):
        own = [seat for seat in seats if seat.engine == engine]
        teacher = timings[own[0].name]
        found = [_row(seat, scores[seat.name], Times.of(timings[seat.name], teacher)) for seat in own]
        rows += with_shares(found)
    return tuple(rows)


def _row(seat: Seat, scores: RowScores, times: Times) -> FrontRow:
    bundle = seat.entrant.bundle
    steps = bundle.manifest.steps
    macs, state = steps.keyframe.macs, 0
    if seat.kind == "pair" and steps.delta is not None:
        macs = amortised(macs, steps.delta.macs, seat.interval)
        state = bundle.pair(seat.engine).state_bytes
    elif seat.kind in ("copy", "flow"):
        # The mask; flow also keeps the keyframe in grey.
        state = bundle.size_hw[0] * bundle.size_hw[1] * (1 if seat.kind == "copy" else 2)
        macs = amortised(macs, 0, seat.interval)
    return FrontRow(
        name=seat.name,
        kind=seat.kind,
        who=seat.who,
        interval=seat.interval,
        engine=seat.engine,
        labels=scores.labels,
        agreement=scores.agreement,
        by_distance=scores.by_distance,
        at_interval=scores.at_interval,
        macs=macs,
        state_bytes=state,
        times=times,
    )


def with_shares(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The rows of one precision, pairs with what they recover, networks that do not count against them with a note."""
    (teacher,) = (row for row in rows if row.kind == "teacher")
    runs = len(teacher.times.runs_ms)
    shares = _shares([(row, row.times.mean_ms.median) for row in rows])
    alone = [_shares([(row, row.times.runs_ms[run]) for row in rows]) for run in range(runs)]
    nets = [Point(row.name, row.times.mean_ms.median, row.labels) for row in rows if row.kind == "net"]
    counted = {point.name for point in envelope(nets)}
    found = []
    for row in rows:
        update: dict[str, object] = {}
        if row.kind == "pair":
            update = {
                "recovered": shares[row.name],
                "recovered_runs": tuple(run[row.name].share for run in alone),
            }
        elif row.kind == "net" and row.name not in counted:
            update = {"note": "no more accurate than a faster network, and left out of the rival"}
        if row.kind not in ("net", "teacher"):
            update["teacher"] = teacher.labels_at(row.interval)
        found.append(row.model_copy(update=update))
    return found


def _shares(timed: Sequence[tuple[FrontRow, float]]) -> dict[str, Recovered]:
    """What each pair recovers, by name, where every row takes so many milliseconds."""
    shares = {}
    for pair, pair_ms in timed:
        if pair.kind == "pair":
            nets, teachers = (
                [Point(row.name, ms, row.labels_at(pair.interval)) for row, ms in timed if row.kind == kind]
                for kind in ("net", "teacher")
            )
            shares[pair.name] = recovered(Point(pair.name, pair_ms, pair.labels), nets, *teachers)
    return shares
