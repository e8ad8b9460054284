"""From a run whose answers were kept to its report: the stream is read again, for the teacher and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_sdk.adapt.judge import Judge
from edge_sdk.adapt.recipe import AdaptRecipe
from edge_sdk.adapt.replay import FrameAnswers, RunRecord, ask_student, ask_teacher, labels_of, recorded_masks
from edge_sdk.adapt.report import AdaptReport, StreamFacts
from edge_sdk.adapt.score import PackedMasks
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.progress import Progress
from edge_sdk.video.source import open_source

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle
    from edge_sdk.video.base import VideoSource


def make_report(
    bundle: Bundle, recipe: AdaptRecipe, run: RunRecord, masks: PackedMasks, progress: Progress
) -> AdaptReport:
    """Score a run against the teacher on every frame, beside copying, flow and the student as it began.

    Args:
        bundle: what was run.
        recipe: how.
        run, masks: what came of it.
        progress: told how far each pass is.

    Raises:
        VideoError: the stream cannot be read again.
        DependencyError: OpenCV is not installed.
    """
    frames = run.frames

    def tick(stage: str) -> Callable[[int], None]:
        return lambda done: progress.update(stage, done, frames)

    teacher = _teacher(bundle, recipe, frames, tick("teacher"))
    settings = recipe.adapt
    judge = Judge(bundle.task.spec, teacher, settings.agreement.background)
    row, course = judge.online(f"online {settings.threshold:g}", run, masks)
    rows = [row]
    with _again(recipe, frames) as source:
        images = (frame.image for frame in source)
        rows += judge.baselines(images, rows, {row.name: run.keyframes}, tick=tick("copy and flow"))
        facts = StreamFacts(
            uri=source.uri, frames=frames, height=bundle.size_hw[0], width=bundle.size_hw[1], fps=source.fps,
            teacher="recorded" if settings.recorded else "bundle", teacher_ms=teacher.frame_ms,
        )  # fmt: skip
    if not bundle.manifest.state:
        with _again(recipe, frames) as source:
            began = ask_student(
                bundle, source, backend=recipe.backend, threads=recipe.threads, tick=tick("student")
            )
        rows.append(
            judge.student("student, not learning", "frozen", began.masks, began.frame_ms, "as in the bundle")
        )
    return AdaptReport(
        rows=tuple(rows),
        courses=(course,),
        stream=facts,
        task=bundle.task.spec,
        background=settings.agreement.background,
        bundle=BundleFacts.of("subject", bundle),
        conditions=Conditions.now(recipe.threads),
    )


def _teacher(bundle: Bundle, recipe: AdaptRecipe, frames: int, tick: Callable[[int], None]) -> FrameAnswers:
    settings = recipe.adapt
    if settings.teacher is not None:
        return recorded_masks(settings.teacher, bundle.size_hw, frames, tick)
    with _again(recipe, frames) as source:
        if settings.truth:
            return labels_of(source, tick)
        return ask_teacher(bundle, source, backend=recipe.backend, threads=recipe.threads, tick=tick)


@contextmanager
def _again(recipe: AdaptRecipe, frames: int) -> Iterator[VideoSource]:
    with open_source(recipe.source, limit=frames) as source:
        yield source
