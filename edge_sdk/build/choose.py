"""The fastest engines within an accuracy budget, measured on this machine in one run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pydantic import JsonValue

from edge_sdk.build.recipe import AccuracySettings
from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.clip import Clip, read_clip
from edge_sdk.evaluate.measure import measure, runner_contender
from edge_sdk.evaluate.timing import Timing
from edge_sdk.manifest import BackendName
from edge_sdk.progress import Progress
from edge_sdk.runtime.engine import backend_available
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, SampleSchedule, ScheduleSettings
from edge_sdk.tasks import Prediction


@dataclass(frozen=True)
class Candidate:
    """One engine set on this machine.

    Attributes:
        name: of the engine set.
        score: the task's score over the clip, 0-1, against labels or the float32 pair's answers.
        lost_points: points lost against the float32 pair.
        timing: of the whole stream, frame in to answer out; ``speedup`` is against the float32 graphs.
    """

    name: str
    score: float
    lost_points: float
    timing: Timing


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    Attributes:
        name: the engine set, or ``"float32"`` for the exported graphs.
        why: one sentence.
        candidates: everything that was measured, in the order of the manifest, float32 first.
    """

    name: str
    why: str
    candidates: tuple[Candidate, ...]

    def measured(self) -> dict[str, dict[str, JsonValue]]:
        """Figures for the manifest, by engine set."""
        return {
            c.name: {
                "score": round(c.score, 5),
                "lost_points": round(c.lost_points, 3),
                "mean_ms": round(c.timing.mean_ms.median, 4),
                "mean_ms_iqr": round(c.timing.mean_ms.iqr, 4),
                "speedup": round(c.timing.speedup.median, 3),
                "speedup_iqr": round(c.timing.speedup.iqr, 3),
                "keyframe_ms": c.timing.keyframe_ms,
                "between_ms": c.timing.between_ms,
            }
            for c in self.candidates
        }


def choose(
    bundle: Bundle,
    backend: BackendName,
    accuracy: AccuracySettings,
    threads: int | None,
    notes: list[str],
    progress: Progress,
) -> Choice | None:
    """Run every engine set of ``backend`` over the same frames and choose.

    Args:
        bundle: with engines.
        backend: whose.
        accuracy: frames and budget.
        threads: CPU threads of one step.
        notes: receives the reason where nothing can be run here.
        progress: told of the runs.

    Returns:
        The choice; None where this machine cannot run the backend.

    Raises:
        RecipeError: the source has fewer frames than the interval.
    """
    if not backend_available(backend):
        notes.append(
            f"{backend}: nothing was timed or chosen, this machine cannot run it; see edge-sdk doctor"
        )
        return None
    names = _names(bundle, backend)
    clip = read_frames(bundle, accuracy, accuracy.limit)
    schedule = schedule_of(bundle, accuracy.interval)
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(
                EdgeRunner(bundle, backend=backend, engine=name, schedule=schedule, threads=threads)
            )
            for name in names
        }
        answers = {name: _answers(runner, clip, name, progress) for name, runner in runners.items()}
        reference = names[0]
        truths: Sequence[Prediction | None] = clip.truths if clip.labelled else answers[reference]
        scores = {name: _score(bundle, found, truths) for name, found in answers.items()}
        contenders = {name: runner_contender(runner) for name, runner in runners.items()}
        timings = measure(contenders, reference, clip.frames, accuracy.repeats, progress.update)
    best = scores[reference]
    candidates = tuple(
        Candidate(name, scores[name], 100 * (best - scores[name]), timings[name]) for name in names
    )
    return _best(candidates, accuracy, schedule)


def schedule_of(bundle: Bundle, interval: int) -> ScheduleSettings:
    """A keyframe every ``interval`` frames; a bundle that sees a few frames of each clip keeps to that."""
    if isinstance(bundle.manifest.schedule, SampleSchedule):
        return bundle.manifest.schedule
    return EverySchedule(interval=interval) if bundle.manifest.steps.delta is not None else AlwaysSchedule()


def _names(bundle: Bundle, backend: BackendName) -> list[str]:
    """Engine sets of a backend; float32 is the first, which the others are compared with."""
    names = [FLOAT32] if backend == "onnxruntime" else []
    names += [name for name, built in bundle.manifest.engines.items() if built.backend == backend]
    # A set that was built again is the manifest's last.
    names.sort(key=lambda name: name not in (FLOAT32, f"{backend}-{FLOAT32}"))
    return names


def read_frames(bundle: Bundle, accuracy: AccuracySettings, limit: int | None) -> Clip:
    """The frames that engines are tried on, at most ``limit`` of them.

    Raises:
        MissingFileError, VideoError, FileFormatError, ShapeError: the source cannot be read or does not fit.
        RecipeError: it has fewer frames than the interval.
    """
    clip = read_clip(accuracy.source, bundle.task, bundle.size_hw, limit=limit)
    if len(clip) < accuracy.interval:
        raise RecipeError(
            f"accuracy.interval: {accuracy.interval} needs as many frames, {clip.uri} gave {len(clip)}.",
            hint="Name a longer source or a smaller interval.",
        )
    return clip


def _answers(runner: EdgeRunner, clip: Clip, name: str, progress: Progress) -> list[Prediction]:
    runner.reset()
    found = []
    for frame in clip.frames:
        found.append(runner(frame).prediction.copy())
        progress.update(f"accuracy of {name}", len(found), len(clip))
    return found


def _score(bundle: Bundle, found: Sequence[Prediction], truths: Sequence[Prediction | None]) -> float:
    score = bundle.task.score()
    for prediction, truth in zip(found, truths, strict=True):
        if truth is not None:
            score.update(prediction, truth)
    return score.headline()[1]


def _best(candidates: Sequence[Candidate], accuracy: AccuracySettings, schedule: ScheduleSettings) -> Choice:
    """The fastest candidate within the budget; the first is the reference, which always is."""
    how = f"K={accuracy.interval}"
    if isinstance(schedule, SampleSchedule):
        how = f"{schedule.samples} of each {schedule.length} frames seen"
    allowed = [c for c in candidates if c.lost_points <= accuracy.max_drop]
    best = min(allowed or candidates[:1], key=lambda c: c.timing.mean_ms.median)
    reference = candidates[0]
    why = (
        f"{best.name}: {best.timing.mean_ms.median:.2f} ms a frame against {reference.timing.mean_ms.median:.2f} "
        f"({reference.name}), {how}; loses {best.lost_points:.2f} of the {accuracy.max_drop:g} "
        "points allowed"
    )
    refused = [c for c in candidates if c not in allowed]
    if refused:
        why += "; over the budget: " + ", ".join(f"{c.name} ({c.lost_points:.2f} points)" for c in refused)
    return Choice(best.name, why, tuple(candidates))
