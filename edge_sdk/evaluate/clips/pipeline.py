"""``edge-sdk evaluate`` of clip classifiers: every row over the same clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from edge_sdk.bundle import Bundle
from edge_sdk.conditions import Conditions
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.clip import Tick
from edge_sdk.evaluate.clips.evaluation import Answers, ClipEvaluation, ClipRow, ClipsFacts
from edge_sdk.evaluate.clips.lineup import Lineup, Seat, open_lineup
from edge_sdk.evaluate.clips.passes import OneStream, WholeClips
from edge_sdk.evaluate.clips.reading import LoadedClip, check_memory, read_clip
from edge_sdk.evaluate.clips.recipe import ClipEvaluateRecipe
from edge_sdk.evaluate.clips.timing import ClipTiming, measure
from edge_sdk.progress import Progress, Silent
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.video.labelled import LabelledClip, open_clips

_METHODS = {
    "clips": "Each clip is begun with a fresh state, every frame is given to the runner, and the answer to the last "
    "one counts. The runner follows the bundle's own schedule; frames are spread evenly over the clip, as in training.",
    "right": "An answer is right where its best class is one of the clip's.",
    "stream": "The clips one after another as one stream that begins in the middle of the first, with nothing to tell "
    "the runner where a clip begins. An answer counts as right where it names what is shown at that frame.",
}
_TOP1_ALONE = {"scores": "Top-1 alone: torchmetrics, which computes mAP and GAP, is not installed here."}


@dataclass(frozen=True)
class _Counted:
    """What the passes over the clips found; ``timed`` are the clips for the timing."""

    whole: dict[str, WholeClips]
    streamed: dict[str, Answers]
    timed: Sequence[LoadedClip]
    clips: int


def evaluate_clips(recipe: ClipEvaluateRecipe, *, progress: Progress | None = None) -> ClipEvaluation:
    """Compare a clip classifier with its teacher and others: accuracy, how soon an answer is right, and time.

    Nothing is written; see :meth:`ClipEvaluation.write_report`.

    Args:
        recipe: bundles, clips, repeats.
        progress: told how far each stage is.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, or the bundles do not fit each other.
        ShapeError: the frames are not of the bundle's size.
        RecipeError: a clip is too short or has no labels.
        VideoError: a clip cannot be read.
        DependencyError: OpenCV, onnxruntime or what computes the scores is not installed.
    """
    tick: Tick = (progress or Silent()).update
    lineup = open_lineup(recipe)
    seats = list(lineup.seats(recipe.engines))
    conditions = Conditions.now(recipe.threads)
    with ExitStack() as stack:
        runners = {
            seat.name: stack.enter_context(
                EdgeRunner(seat.bundle, engine=seat.engine, threads=recipe.threads)
            )
            for seat in seats
        }
        counted = _count(recipe, lineup, runners, tick)
        timings = measure(runners, counted.timed, recipe.repeats, tick)
    rows = tuple(_row(seat, counted, timings[seat.name]) for seat in seats)
    primary, *further = rows[0].scores
    height, width = lineup.student.size_hw
    return ClipEvaluation(
        primary=primary,
        rows=rows,
        methods=_METHODS | ({} if further else _TOP1_ALONE) | _timing_method(recipe, len(counted.timed)),
        task=lineup.student.manifest.task,
        source=ClipsFacts(
            uri=recipe.model_dump(mode="json")["source"], clips=counted.clips, length=lineup.length,
            height=height, width=width, fps=counted.timed[0].fps,
        ),
        bundles=lineup.facts(),
        recipe=recipe,
        conditions=conditions,
    )  # fmt: skip


def _count(
    recipe: ClipEvaluateRecipe, lineup: Lineup, runners: dict[str, EdgeRunner], tick: Tick
) -> _Counted:
    """Every row over every clip; a clip is read for all rows at once, and only those that are timed are kept."""
    listed = list(open_clips(recipe.source))[: recipe.limit]
    if not listed:
        raise RecipeError(f"source: no clips in {recipe.model_dump(mode='json')['source']}.")
    task, length, size_hw = lineup.student.task, lineup.length, lineup.student.size_hw
    check_memory(min(recipe.timed, len(listed)), length, size_hw)

    def read(entry: LabelledClip) -> LoadedClip:
        with entry.open() as source:
            return read_clip(entry.name, source, length, size_hw, task)

    whole = {name: WholeClips(runner, task, length) for name, runner in runners.items()}
    timed: list[LoadedClip] = []
    for number, entry in enumerate(listed):
        clip = read(entry)
        for row in whole.values():
            row.run(clip)
        if len(timed) < recipe.timed:
            timed.append(clip)
        tick("clips", number + 1, len(listed))
    shown = listed[: recipe.streamed] if min(recipe.streamed, len(listed)) > 1 else []
    streams = {name: OneStream(runner, length) for name, runner in runners.items()}
    for number, entry in enumerate(shown):
        clip = read(entry)
        for stream in streams.values():
            stream.run(clip)
        tick("stream", number + 1, len(shown))
    streamed = {name: stream.answers() for name, stream in streams.items()} if shown else {}
    return _Counted(whole, streamed, timed, len(listed))


def _row(seat: Seat, counted: _Counted, timing: ClipTiming) -> ClipRow:
    found = counted.whole[seat.name]
    first = next(iter(counted.whole.values()))
    alike = sum(a == b for a, b in zip(found.best, first.best, strict=True))
    return ClipRow(
        name=seat.name,
        role=seat.role,
        engine=seat.engine,
        schedule=seat.bundle.manifest.schedule,
        scores=found.scores(),
        agreement=alike / counted.clips,
        by_class=found.by_class(),
        answers=found.course.answers(),
        streamed=counted.streamed.get(seat.name),
        seen=(found.kinds.total() - found.kinds[StepKind.SKIP]) / counted.clips,
        macs=_macs(seat.bundle, found.kinds, counted.clips),
        state_bytes=seat.bundle.pair(seat.engine).state_bytes,
        timing=timing,
    )


def _macs(bundle: Bundle, kinds: Counter[StepKind], clips: int) -> int | None:
    """Multiply-accumulates a clip, of the steps that were run; None where nobody counted one of them."""
    total = 0
    for name, step in bundle.manifest.steps.items():
        times = kinds[StepKind(name)]
        if times and step.macs is None:
            return None
        total += times * (step.macs or 0)
    return round(total / clips)


def _timing_method(recipe: ClipEvaluateRecipe, clips: int) -> dict[str, str]:
    return {
        "timing": f"{recipe.repeats} interleaved runs in rotating order over {clips} clips; each "
        "run begins with one frame outside the statistics. Frame in to answer out, skipped frames included."
    }
