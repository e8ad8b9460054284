"""``edge-sdk demo``: the whole way on synthetic video, small enough for a few minutes on two CPU cores.

Every stage is the public function that a user calls with a recipe of their own; nothing here is a short cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle, set_name
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.compile.calibrate import CalibrateRecipe, DrawSettings, calibrate
from edge_sdk.distill import DistillRecipe, TrainRecipe, distill, train_teacher
from edge_sdk.distill.delta_recipe import DeltaLoss, DeltaSettings
from edge_sdk.distill.recipes import Augment, LoopSettings, ModuleSettings, Optimiser, PairData, TaskLoss
from edge_sdk.evaluate import EvaluateRecipe, Evaluation, evaluate
from edge_sdk.progress import Progress
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.tasks import TaskSpec
from edge_sdk.video import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE, open_sink, open_source

FRAME_HW = (192, 256)
CROP_HW = (128, 160)
INTERVALS = (5, 10)
INT8 = set_name("onnxruntime", "int8")
_FACTORY = "edge_sdk.distill.models:small_segmenter"
_WIDTH, _RIVAL_WIDTH = 64, 32


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves: the table, and paths of the annotated video, the report and the bundle."""

    evaluation: Evaluation
    video: Path
    report: Path
    bundle: Path

    def renderables(self) -> list[Any]:
        """The table and the paths, for a terminal."""
        paths = (("annotated video", self.video), ("report", self.report), ("bundle", self.bundle))
        out = self.bundle.parent / "latency"
        further = f"next, its latency on this machine: edge-sdk bench {self.bundle} --out {out}"
        return [self.evaluation.table(), *(f"{name}: {path}" for name, path in paths), further]


class Named:
    """Shows a stage under the demo's own name for it."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Pass the progress on."""
        self._progress.update(self._name, done, total, **figures)


def _scene(seed: int, frames: int) -> str:
    height, width = FRAME_HW
    return f"synthetic:shapes?height={height}&width={width}&frames={frames}&seed={seed}"


def run_demo(out: Path, progress: Progress, *, seed: int = 0) -> DemoResult:
    """Train a teacher, distil its delta student and a narrower per-frame rival, export, evaluate, draw.

    Args:
        out: folder for everything; a demo that was stopped goes on from its checkpoints.
        progress: shown for each stage.
        seed: of video, training and noise. Training and evaluation clips never share a seed.
    """
    clips = tuple(_scene(10_000 * (seed + 1) + i, 12) for i in range(48))
    test_clip = _scene(seed, 120)
    recipes = _training(out, clips, seed)
    for name, recipe in recipes:
        stage = Named(progress, name)
        if isinstance(recipe, TrainRecipe):
            train_teacher(recipe, progress=stage)
        else:
            distill(recipe, progress=stage)
    bundles = {
        name: export(
            ExportRecipe(out=out / f"{name}_bundle", checkpoint=file, frame_hw=FRAME_HW), progress=progress
        )
        for name, file in (
            ("teacher", out / "teacher/model.pt"),
            ("rival", out / "rival/model.pt"),
            ("pair", out / "student/student.pt"),
        )
    }
    for name in ("pair", "teacher"):
        bundles[name] = _in_int8(bundles[name], out / f"{name}_calibration.npz", clips, progress)
    pair = bundles["pair"]
    compared = EvaluateRecipe(
        bundle=pair.path, teacher=bundles["teacher"].path, rival=bundles["rival"].path, source=test_clip,
        engines=(INT8,), intervals=INTERVALS, repeats=3, out=out / "evaluation",
    )  # fmt: skip
    evaluation = evaluate(compared, progress=progress)
    report = evaluation.write_report(out / "evaluation")
    video = _annotate(pair, test_clip, out / "annotated.mp4", progress)
    return DemoResult(evaluation, video, report, pair.path)


def _in_int8(bundle: Bundle, recorded: Path, clips: tuple[str, ...], progress: Progress) -> Bundle:
    """The bundle with INT8 engines for this CPU, calibrated on training clips."""
    recorded.unlink(missing_ok=True)
    draw = DrawSettings(sources=clips[:8], clips=8, frames=max(INTERVALS))
    calibrate(CalibrateRecipe(bundle=bundle.path, draw=draw, out=recorded), progress=progress)
    wanted = BuildRecipe(
        bundle=bundle.path, calibration=recorded, backends=("onnxruntime",), precisions=("int8",)
    )
    return build(wanted, progress=progress).bundle


def _training(
    out: Path, clips: tuple[str, ...], seed: int
) -> Iterator[tuple[str, TrainRecipe | DistillRecipe]]:
    """The three trainings in order."""
    task = TaskSpec(classes=SYNTHETIC_CLASSES, palette=SYNTHETIC_PALETTE)
    optimiser = Optimiser(kind="adamw", lr=2e-3, weight_decay=0.01, curve="cosine", warmup=0.05)
    augment = Augment(crop_hw=CROP_HW, scale=(0.7, 1.3))
    loop = LoopSettings(steps=700, batch=8, seed=seed, validate_every=700, checkpoint_every=100)
    teacher = ModuleSettings(factory=_FACTORY, arguments={"classes": len(task.classes), "width": _WIDTH})
    trained = teacher.model_copy(update={"checkpoint": out / "teacher/model.pt"})
    rival = ModuleSettings(factory=_FACTORY, arguments={"classes": len(task.classes), "width": _RIVAL_WIDTH})
    yield (
        "train teacher",
        TrainRecipe(
            out=out / "teacher",
            module=teacher,
            task=task,
            data=clips,
            augment=augment,
            optimiser=optimiser,
            loop=loop,
        ),
    )
    yield "train rival", TrainRecipe(
        out=out / "rival", module=rival, teacher=trained, task=task, data=clips, augment=augment,
        optimiser=optimiser, loop=loop, loss=TaskLoss(source="both"),
    )  # fmt: skip
    yield "distil student", DistillRecipe(
        out=out / "student", teacher=trained, task=task, augment=Augment(crop_hw=CROP_HW, scale=(0.9, 1.3)),
        delta=DeltaSettings(gamma=4, rank_multiple=16), data=PairData(video=clips, max_gap=max(INTERVALS) - 1),
        loss=DeltaLoss(task=TaskLoss(source="both")), loop=loop.model_copy(update={"steps": 400}),
        optimiser=Optimiser(kind="adamw", lr=1e-3, curve="cosine", warmup=0.05, clip_norm=1.0),
    )  # fmt: skip


def _annotate(bundle: Bundle, uri: str, path: Path, progress: Progress) -> Path:
    """Run the pair over a clip and write what it says as video."""
    schedule = EverySchedule(interval=max(INTERVALS))
    with (
        open_source(uri) as source,
        EdgeRunner(bundle, schedule=schedule) as runner,
        open_sink(path, fps=source.fps, size_hw=source.size_hw) as sink,
    ):
        for frame, result in runner.stream(source):
            sink.write(result.plot(frame.image))
            progress.update("annotate", frame.seq + 1, source.frame_count or 0, ms=result.times.total_ms)
    return path
