"""``edge-sdk demo clips``: a clip classifier that sees six frames of twenty-four, taught by one that sees them all.

Every stage is the public function that a user calls with a recipe of their own; nothing here is a short cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.demo import Named
from edge_sdk.distill.clips.distil import distill_clips
from edge_sdk.distill.clips.recipes import (
    ClipData,
    ClipDistillRecipe,
    ClipLoss,
    ClipModel,
    ClipTrainRecipe,
)
from edge_sdk.distill.clips.train import train_clips
from edge_sdk.distill.recipes import LoopSettings, ModuleSettings, Optimiser, Preprocess
from edge_sdk.evaluate.clips import ClipEvaluateRecipe, ClipEvaluation, evaluate_clips
from edge_sdk.optional import require
from edge_sdk.progress import Progress
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.tasks import TaskSpec
from edge_sdk.video import MOTION_CLASSES, open_clips, open_sink

SIDE, SMALL, LENGTH, SAMPLES = 64, 32, 24, 6
_LABELLED, _UNLABELLED, _TEST, _SHOWN = 192, 480, 120, 8
_ENLARGED = 6
_TEACHER_STEPS, _STUDENT_STEPS = 240, 320
_FACTORY = "edge_sdk.distill.models.clips:clip_network"


@dataclass(frozen=True)
class ClipDemoResult:
    """What the demo leaves: the table, and paths of the annotated video, the report and the bundle."""

    evaluation: ClipEvaluation
    video: Path
    report: Path
    bundle: Path

    def renderables(self) -> list[Any]:
        """The table and the paths, for a terminal."""
        paths = (("annotated video", self.video), ("report", self.report), ("bundle", self.bundle))
        return [self.evaluation.table(), *(f"{name}: {path}" for name, path in paths)]


def clip_uri(count: int, seed: int) -> str:
    """A list of generated clips."""
    size = f"height={SIDE}&width={SIDE}&frames={LENGTH}&noise=8"
    return f"synthetic:motions?clips={count}&seed={seed}&{size}"


def run_clip_demo(out: Path, progress: Progress, *, seed: int = 0) -> ClipDemoResult:
    """Train a teacher, the student without one and the student with it; export, evaluate, draw.

    Args:
        out: folder for everything; a demo that was stopped goes on from its checkpoints.
        progress: shown for each stage.
        seed: of clips and training. Training and test clips never share a seed.
    """
    for name, recipe in trainings(out, seed).items():
        stage = Named(progress, name)
        if isinstance(recipe, ClipTrainRecipe):
            train_clips(recipe, progress=stage)
        else:
            distill_clips(recipe, progress=stage)
    bundles = {
        name: export(
            ExportRecipe(out=out / f"{name}_bundle", checkpoint=out / file, frame_hw=(SIDE, SIDE)),
            progress=progress,
        )
        for name, file in (
            ("teacher", "teacher/model.pt"),
            ("rival", "rival/model.pt"),
            ("student", "student/student.pt"),
        )
    }
    student, test = bundles["student"], clip_uri(_TEST, 1_000_000 * seed)
    compared = ClipEvaluateRecipe(
        bundle=student.path, teacher=bundles["teacher"].path, rival=bundles["rival"].path, source=test, repeats=3,
        out=out / "evaluation",
    )  # fmt: skip
    evaluation = evaluate_clips(compared, progress=progress)
    report = evaluation.write_report(out / "evaluation")
    video = _annotate(student, test, out / "annotated.mp4", progress)
    return ClipDemoResult(evaluation, video, report, student.path)


def trainings(out: Path, seed: int) -> dict[str, ClipTrainRecipe | ClipDistillRecipe]:
    """The three trainings in order, by the name of their stage."""
    task = TaskSpec(kind="classification", classes=MOTION_CLASSES)
    first = 1_000_000 * seed + 100_000
    data = ClipData(train=(clip_uri(_LABELLED, first),), length=LENGTH)
    # Clips are cheap and labels are not: of these the student learns what its teacher makes of them.
    unlabelled = (clip_uri(_UNLABELLED, first + _LABELLED),)
    optimiser = Optimiser(kind="adamw", lr=3e-3, weight_decay=0.02, curve="cosine", warmup=0.1, clip_norm=1.0)
    loop = LoopSettings(
        steps=_STUDENT_STEPS, batch=16, seed=seed, validate_every=_STUDENT_STEPS, checkpoint_every=100
    )
    teacher, student = _model(LENGTH), _model(SAMPLES)
    trained = teacher.module.model_copy(update={"checkpoint": out / "teacher/model.pt"})
    longer = loop.model_copy(update={"steps": _TEACHER_STEPS})
    return {
        "train teacher": ClipTrainRecipe(
            kind="clips", out=out / "teacher", model=teacher, task=task, data=data, optimiser=optimiser, loop=longer
        ),
        "train rival": ClipTrainRecipe(
            kind="clips", out=out / "rival", model=student, task=task, data=data, optimiser=optimiser, loop=loop
        ),
        "distil student": ClipDistillRecipe(
            kind="clips", out=out / "student", teacher=teacher.model_copy(update={"module": trained}), student=student,
            task=task, data=data, unlabelled=unlabelled,
            loss=ClipLoss(label=1.0, representation=0.05, prediction=2.0), optimiser=optimiser, loop=loop,
        ),
    }  # fmt: skip


def _model(samples: int) -> ClipModel:
    arguments = {
        "classes": len(MOTION_CLASSES),
        "family": "netvlad",
        "order": True,
        "samples": samples,
        "dropout": 0.3,
    }
    return ClipModel(
        module=ModuleSettings(factory=_FACTORY, arguments=arguments),
        samples=samples,
        # The camera's frame goes in as it is: making it smaller is the graph's work.
        preprocess=Preprocess(size_hw=(SMALL, SMALL)),
    )


def _annotate(bundle: Bundle, uri: str, path: Path, progress: Progress) -> Path:
    """Run the student over some clips and write what it says as video, enlarged so that it can be read."""
    cv2 = require("cv2", "edge-sdk demo")
    size = _ENLARGED * SIDE
    clips = open_clips(uri).clips[:_SHOWN]
    done = 0
    with EdgeRunner(bundle) as runner, open_sink(path, fps=LENGTH / 2, size_hw=(size, size)) as sink:
        for clip in clips:
            with clip.open() as source:
                for frame, result in runner.stream(source):
                    large = cv2.resize(frame.image, (size, size), interpolation=cv2.INTER_NEAREST)
                    sink.write(result.plot(large))
                    done += 1
                    progress.update("annotate", done, len(clips) * LENGTH, ms=result.times.total_ms)
    return path
