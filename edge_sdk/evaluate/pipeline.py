"""``edge-sdk evaluate``: one run, every variant, over the same frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.conditions import Conditions
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.accuracy import Accuracy, Judge, per_frame_masks
from edge_sdk.evaluate.baselines import FlowRunner
from edge_sdk.evaluate.clip import Clip, Tick, read_clip
from edge_sdk.evaluate.evaluation import Evaluation, Example, Row, SourceFacts, Variant
from edge_sdk.evaluate.examples import farthest, make_examples
from edge_sdk.evaluate.flow import METHOD as FLOW_METHOD
from edge_sdk.evaluate.lineup import Lineup, open_lineup
from edge_sdk.evaluate.measure import Contender, flow_contender, measure, runner_contender
from edge_sdk.evaluate.recipe import Compared, EvaluateRecipe
from edge_sdk.evaluate.timing import Timing, amortised
from edge_sdk.optional import require
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, ScheduleSettings
from edge_sdk.tasks import Segmentation

_KEYFRAME_STEP = "the bundle's keyframe step, which also writes the state; the plain network takes less time"
_METHODS = {
    "flow": f"{FLOW_METHOD}; taken directly from each frame to its keyframe.",
    "consistency": "Mask of frame t + 1 warped to t and compared with the mask of t, intersections and unions added "
    f"up over all pairs, mean over classes. {FLOW_METHOD}. Published figures use FlowNet2 and bilinear sampling "
    "before a cast to integers: do not compare them with these.",
}
_ALL_PHASES = (
    "Accuracy over all alignments of the keyframes: each frame is seen at each distance from its keyframe. A clip's "
    "first frames have few, and so count less often than in rows without keyframes."
)
_CONSISTENCY = "Consistency is the mean over alignments."
_ONE_PHASE = "Accuracy with keyframes at frames 0, K, 2K, ... only: a frame is seen at one distance."


@dataclass(frozen=True)
class _Seat:
    """A row before it has numbers."""

    name: str
    variant: Variant
    interval: int = 1
    engine: str = FLOAT32


def evaluate(recipe: EvaluateRecipe, *, progress: Progress | None = None) -> Evaluation:
    """Compare the delta runner with its teacher, with copying, with optical flow and with a per-frame network.

    Nothing is written; see :meth:`Evaluation.write_report`.

    Args:
        recipe: bundles, frames, intervals, repeats.
        progress: told how far each stage is.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, or the bundles do not fit each other.
        ShapeError: the frames are not of the bundle's size.
        RecipeError: too few frames for the intervals, or more than fit into memory.
        VideoError: the source cannot be read to its end.
        DependencyError: OpenCV or onnxruntime is not installed.
    """
    tick: Tick = (progress or Silent()).update
    lineup = open_lineup(recipe)
    with with_opencv_threads(recipe.threads, "edge-sdk evaluate"):
        pair = lineup.pair
        clip = read_clip(recipe.source, pair.task, pair.size_hw, limit=recipe.limit, tick=tick)
        if len(clip) < max(recipe.intervals):
            raise RecipeError(
                f"intervals: {max(recipe.intervals)} needs as many frames, source {clip.uri} gave {len(clip)}.",
                hint="Name a longer source or smaller `intervals`.",
            )
        conditions = Conditions.now(recipe.threads)
        seats = _seats(recipe, lineup)
        scores, label_consistency, examples = _accuracy(recipe, lineup, clip, seats, tick)
        timings = _timings(recipe, lineup, clip, seats, tick)
    rows = [_row(seat, scores[seat.name], timings[seat.name], lineup) for seat in seats]
    return Evaluation(
        rows=tuple(rows),
        methods=_METHODS
        | {
            "phases": phases_method(recipe) + (f" {_CONSISTENCY}" if recipe.phases == "all" else ""),
            "timing": timing_method(recipe),
        },
        task=pair.manifest.task,
        source=SourceFacts.of(clip, label_consistency=label_consistency),
        bundles=lineup.facts(),
        recipe=recipe,
        conditions=conditions,
        examples=examples,
    )


def _seats(recipe: EvaluateRecipe, lineup: Lineup) -> list[_Seat]:
    seats = [_Seat("teacher" if lineup.teacher is not None else "teacher (keyframe step)", "teacher")]
    if lineup.rival is not None:
        seats.append(_Seat("rival", "rival"))
    for interval in recipe.intervals:
        seats += [
            _Seat(f"copy K={interval}", "copy", interval),
            _Seat(f"flow K={interval}", "flow", interval),
            _Seat(f"delta K={interval}", "delta", interval),
        ]
    for engine in recipe.engines:
        if engine in lineup.keyframes.manifest.engines:
            seats.append(_Seat(f"teacher {engine}", "teacher", engine=engine))
        seats += [_Seat(f"delta K={k} {engine}", "delta", k, engine) for k in recipe.intervals]
    return seats


def _accuracy(
    recipe: EvaluateRecipe, lineup: Lineup, clip: Clip, seats: list[_Seat], tick: Tick
) -> tuple[dict[str, Accuracy], float | None, tuple[Example, ...]]:
    count, threads = len(clip), recipe.threads
    teacher = per_frame_masks(lineup.keyframes, clip, threads, lambda done: tick("teacher", done, count))
    judge = Judge(
        clip,
        teacher,
        lineup.pair,
        threads=threads,
        phases_of=recipe.phases_of,
        own_teacher=lineup.teacher is not None,
        tick=tick,
    )
    far = max(recipe.intervals)

    def scored(seat: _Seat) -> Accuracy:
        if seat.variant == "delta":
            shown = seat.interval == far and seat.engine == FLOAT32
            return judge.delta(seat.interval, farthest(count, far) if shown else (), seat.engine)
        if seat.engine != FLOAT32:
            name = seat.name
            return judge.every_frame(
                per_frame_masks(
                    lineup.keyframes, clip, threads, lambda done: tick(name, done, count), seat.engine
                )
            )
        if seat.variant in ("copy", "flow"):
            return judge.copy(seat.interval) if seat.variant == "copy" else judge.flow(seat.interval)
        return judge.every_frame(
            teacher if seat.variant == "teacher" else _rival_masks(lineup, clip, threads, tick)
        )

    # Delta goes first: it finds a teacher that does not fit before time is spent on the rest.
    order = sorted(seats, key=lambda seat: seat.variant != "delta")
    scores = {seat.name: scored(seat) for seat in order}
    examples = make_examples(clip, lineup.pair.task, teacher, judge.kept, far)
    return scores, judge.label_consistency(), examples


def _rival_masks(lineup: Lineup, clip: Clip, threads: int | None, tick: Tick) -> list[Segmentation]:
    rival = lineup.rival or lineup.keyframes
    return per_frame_masks(rival, clip, threads, lambda done: tick("rival", done, len(clip)))


def _timings(
    recipe: EvaluateRecipe, lineup: Lineup, clip: Clip, seats: list[_Seat], tick: Tick
) -> dict[str, Timing]:
    with ExitStack() as stack:

        def opened(bundle: Bundle, schedule: ScheduleSettings, engine: str = FLOAT32) -> EdgeRunner:
            return stack.enter_context(
                EdgeRunner(bundle, engine=engine, schedule=schedule, threads=recipe.threads)
            )

        teacher = opened(lineup.keyframes, AlwaysSchedule())

        def contender(seat: _Seat) -> Contender:
            if seat.variant == "teacher" and seat.engine == FLOAT32:
                return runner_contender(teacher)
            if seat.variant == "teacher":
                return runner_contender(opened(lineup.keyframes, AlwaysSchedule(), seat.engine))
            if seat.variant == "flow":
                baseline = FlowRunner(teacher, seat.interval)
                baseline.warm_up(clip.frames[0])
                return flow_contender(baseline)
            if seat.variant == "copy":
                return runner_contender(
                    opened(lineup.keyframes, EverySchedule(interval=seat.interval, between="skip"))
                )
            if seat.variant == "rival":
                return runner_contender(opened(lineup.rival or lineup.keyframes, AlwaysSchedule()))
            return runner_contender(opened(lineup.pair, EverySchedule(interval=seat.interval), seat.engine))

        contenders = {seat.name: contender(seat) for seat in seats}
        return measure(contenders, seats[0].name, clip.frames, recipe.repeats, tick)


def _row(seat: _Seat, accuracy: Accuracy, timing: Timing, lineup: Lineup) -> Row:
    pixels = lineup.pair.size_hw[0] * lineup.pair.size_hw[1]
    teacher = lineup.keyframes.manifest.steps.keyframe.macs
    pair = lineup.pair.manifest.steps
    macs, state, note = teacher, 0, ""
    if seat.variant == "rival" and lineup.rival is not None:
        macs, note = lineup.rival.manifest.steps.keyframe.macs, lineup.rival.manifest.name
    elif seat.variant == "delta":
        between = None if pair.delta is None else pair.delta.macs
        macs, state = (
            amortised(pair.keyframe.macs, between, seat.interval),
            lineup.pair.pair(seat.engine).state_bytes,
        )
    elif seat.variant in ("copy", "flow"):
        # The mask; flow also keeps the keyframe in grey.
        macs, state = amortised(teacher, 0, seat.interval), pixels * (1 if seat.variant == "copy" else 2)
    elif lineup.teacher is None:
        note = _KEYFRAME_STEP
    return Row(
        name=seat.name,
        variant=seat.variant,
        interval=seat.interval,
        engine=seat.engine,
        labels=accuracy.labels,
        agreement=accuracy.agreement,
        by_distance=accuracy.by_distance,
        consistency=accuracy.consistency,
        macs=macs,
        state_bytes=state,
        timing=timing,
        note=note,
    )


def phases_method(recipe: Compared) -> str:
    """How accuracy was counted, in words."""
    return _ALL_PHASES if recipe.phases == "all" else _ONE_PHASE


def timing_method(recipe: Compared) -> str:
    """How times were measured, in words."""
    return (
        f"{recipe.repeats} interleaved runs in rotating order, keyframes at frames 0, K, 2K, ...; each run begins with "
        "one frame outside the statistics. Frame in to mask out."
    )


@contextmanager
def with_opencv_threads(threads: int | None, verb: str) -> Iterator[None]:
    """Give OpenCV's flow as many threads as the networks get; ``verb`` is who needs OpenCV."""
    cv2 = require("cv2", verb)
    before = cv2.getNumThreads()
    if threads is not None:
        cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
