"""What is run: each case is measured once, kept under runs/online/results, and measured again only when it changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streams
import torch

from edge_sdk import EdgeRunner, open_source
from edge_sdk.adapt.replay import (
    Answers,
    FrameAnswers,
    LessonLog,
    RunRecord,
    ask_student,
    ask_teacher,
    labels_of,
)
from edge_sdk.adapt.score import PackedMasks
from edge_sdk.adapt.settings import (
    AdaptSettings,
    AgreementSettings,
    MemorySettings,
    OnlineLoss,
    OnlineOptimiser,
    ProbeSettings,
    StrideSettings,
)
from edge_sdk.bundle import Bundle
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.conditions import Conditions
from edge_sdk.distill import TrainRecipe, train_teacher
from edge_sdk.distill.online import make_pair
from edge_sdk.files import atomic_folder, write_text
from edge_sdk.progress import Progress
from edge_sdk.runtime.schedule import AlwaysSchedule

RESULTS = streams.RUNS / ("results" if streams.LIMIT is None else "trial/results")
THRESHOLDS = (0.7, 0.8, 0.9)
# As in the paper: every frame waits for what was learned of the one before it, so results do not hang on the machine.
_TURN = {"pace": "in_turn", "resume": False}
# The listing keeps whatever an update brings.
_PUBLISHED = {"probe": ProbeSettings(drop=1.0)}
# What a fixed camera asks for: the teacher is asked when something enters an empty scene; ground is no object, and does
# not hide one that is missed; the student, whose norm no longer follows each frame, learns in smaller steps; and what
# has been seen comes again.
FIXED_CAMERA: dict[str, Any] = {
    "stride": StrideSettings(change=3.0), "loss": OnlineLoss(box_most=0.5), "optimiser": OnlineOptimiser(lr=0.001),
    "agreement": AgreementSettings(measure="min_iou"), "memory": MemorySettings(frames=128),
}  # fmt: skip
OFFLINE_STEPS = 800 if streams.LIMIT is None else 10


@dataclass(frozen=True)
class Case:
    """A run over a stream with a student that learns: the bundle, how it learns, and seconds on two cores, roughly."""

    bundle: str
    settings: AdaptSettings
    seconds: float


def _cases() -> dict[str, Case]:
    found = {}
    for threshold in THRESHOLDS:
        masks = AdaptSettings(threshold=threshold, truth=True, **_TURN, **_PUBLISHED)  # type: ignore[arg-type]
        found[f"davis-{threshold}"] = Case("davis", masks, 170)
        own = AdaptSettings(threshold=threshold, **_TURN, **FIXED_CAMERA)  # type: ignore[arg-type]
        found[f"camera-{threshold}"] = Case("camera", own, 90)
    own = AdaptSettings(threshold=0.8, **_TURN, **_PUBLISHED)  # type: ignore[arg-type]
    found["camera-published-0.8"] = Case("camera_published", own, 60)
    published = found["davis-0.8"].settings
    found["davis-memory"] = Case("davis", published.model_copy(update={"memory": MemorySettings()}), 260)
    change = published.model_copy(update={"stride": StrideSettings(change=3.0)})
    found["davis-change"] = Case("davis", change, 200)
    own = found["camera-0.8"].settings
    found["camera-correct"] = Case("camera_correct", own, 110)
    found["camera-refit"] = Case("camera_open", own.model_copy(update={"swap": "refit"}), 80)
    return found


CASES = _cases()


class Kept:
    """One measurement on disk: what it rests on, under which conditions it was made, and its figures.

    Args:
        name: of the measurement.
        rests_on: anything JSON holds; another value makes it out of date.
    """

    def __init__(self, name: str, rests_on: Any) -> None:
        self.json, self.masks = RESULTS / f"{name}.json", RESULTS / f"{name}.npz"
        self._key = hashlib.sha256(json.dumps([streams.LIMIT, rests_on], sort_keys=True).encode()).hexdigest()

    @property
    def fresh(self) -> bool:
        """Whether it is there and up to date."""
        return self.json.is_file() and json.loads(self.json.read_text())["key"] == self._key

    def write(self, data: Any, masks: PackedMasks | None = None) -> None:
        """Keep it."""
        if masks is not None:
            masks.save(self.masks)
        conditions = Conditions.now(None).model_dump(mode="json")
        write_text(
            self.json, json.dumps({"key": self._key, "conditions": conditions, "data": data}, indent=1)
        )

    def read(self) -> Any:
        """The figures."""
        return json.loads(self.json.read_text())["data"]

    @property
    def commit(self) -> str:
        """Commit at which it was measured."""
        return str(json.loads(self.json.read_text())["conditions"]["commit"])


def ticking(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    """A callback that shows how many frames are done."""
    return lambda done: progress.update(stage, done, total)


def learn(name: str, progress: Progress) -> tuple[RunRecord, PackedMasks]:
    """A run of :data:`CASES`, made or read."""
    case = CASES[name]
    bundle, stream = streams.bundle(case.bundle, progress), streams.stream(case.bundle)
    kept = Kept(name, [bundle.manifest_sha256, stream.uri, case.settings.model_dump(mode="json")])
    if not kept.fresh:
        log, answers = LessonLog(), Answers()
        with (
            open_source(stream.uri, limit=streams.LIMIT) as source,
            EdgeRunner(bundle, threads=1, adapt=case.settings, on_adapt=log) as runner,
        ):
            for frame, result in runner.stream(source):
                answers.add(result)
                status = runner.adaptation.status()
                progress.update(
                    name, frame.seq + 1, source.frame_count or 0, stride=status.stride, updates=status.updates
                )
            runner.adaptation.wait_idle(60.0)
            if runner.adaptation.status().restarts:
                raise SystemExit(f"{name}: the trainer ended: {runner.adaptation.status().last_error}")
        record = answers.record(case.settings, log.records())
        kept.write(record.model_dump(mode="json"), answers.masks)
    return RunRecord.model_validate(kept.read()), PackedMasks.load(kept.masks)


def teacher(name: str, progress: Progress) -> FrameAnswers:
    """The teacher on every frame: davis' own masks, or the camera bundle's keyframe step, on one core."""
    bundle, stream = streams.bundle(name, progress), streams.stream(name)
    with open_source(stream.uri, limit=streams.LIMIT) as source:
        tick = ticking(progress, f"{name}-teacher", source.frame_count or 0)
        if name == "davis":
            return labels_of(source, tick)
        return _answers(
            f"{name}-teacher", bundle, stream.uri, lambda: ask_teacher(bundle, source, threads=1, tick=tick)
        )


def student(name: str, progress: Progress) -> FrameAnswers:
    """The student as it began, on every frame."""
    bundle, stream = streams.bundle(name, progress), streams.stream(name)
    with open_source(stream.uri, limit=streams.LIMIT) as source:
        tick = ticking(progress, f"{name}-student", source.frame_count or 0)
        return _answers(
            f"{name}-student", bundle, stream.uri, lambda: ask_student(bundle, source, threads=1, tick=tick)
        )


def _answers(name: str, bundle: Bundle, uri: str, make: Callable[[], FrameAnswers]) -> FrameAnswers:
    kept = Kept(name, [bundle.manifest_sha256, uri])
    if not kept.fresh:
        made = make()
        kept.write(made.frame_ms, made.masks)
    return FrameAnswers(PackedMasks.load(kept.masks), kept.read())


def offline(name: str, progress: Progress) -> FrameAnswers:
    """The paper's oracle: the same student, from the same weights, trained on the whole stream beforehand."""
    base, stream = streams.bundle(name, progress), streams.stream(name)
    kept = Kept(f"{name}-offline", [base.manifest_sha256, stream.uri, OFFLINE_STEPS])
    if not kept.fresh:
        recipe = streams.recipe_of(name)
        online = streams.online_of(recipe)
        out = streams.RUNS / f"{name}_offline"
        data = stream.folder if name == "davis" else _taught(stream, teacher(name, progress))
        start = out / "start.pt"
        out.mkdir(parents=True, exist_ok=True)
        torch.save(make_pair(online).student.state_dict(), start)
        train_teacher(
            TrainRecipe.model_validate({
                "out": out, "data": [str(data)], "task": online.task, "preprocess": online.preprocess,
                "module": online.student.model_copy(update={"checkpoint": start}),
                # The stream as it is: what it has to fit is what it will be asked.
                "augment": {"scale": [1.0, 1.0], "flip": 0.0, "colour": 0.0},
                "optimiser": {"kind": "adamw", "lr": 0.001, "curve": "cosine", "warmup": 0.05},
                # A frame a step: the norm uses the statistics of the batch, which in answering is one frame.
                "loop": {"steps": OFFLINE_STEPS, "batch": 1, "workers": 0, "accelerator": "cpu", "seed": 3},
            }),
            progress=progress, resume=False,
        )  # fmt: skip
        bundle = export(
            ExportRecipe(
                checkpoint=out / "model.pt", frame_hw=recipe.frame_hw, out=out / f"bundle_{time.time_ns()}"
            ),
            progress=progress,
        )
        with open_source(stream.uri, limit=streams.LIMIT) as source:
            tick = ticking(progress, f"{name}-offline", source.frame_count or 0)
            made = _every_frame(bundle, source, tick)
        kept.write(made.frame_ms, made.masks)
    return FrameAnswers(PackedMasks.load(kept.masks), kept.read())


def _every_frame(bundle: Bundle, frames: Any, tick: Callable[[int], None]) -> FrameAnswers:
    masks, times = PackedMasks(), []
    with EdgeRunner(bundle, schedule=AlwaysSchedule(), threads=1) as runner:
        for frame in frames:
            result = runner(frame)
            masks.append(result.mask)
            times.append(result.times.total_ms)
            tick(len(masks))
    return FrameAnswers(masks, float(np.mean(times)))


def _taught(stream: streams.Stream, answers: FrameAnswers) -> Path:
    """The camera's frames with the teacher's masks of the first round as labels."""
    import cv2

    folder = stream.folder.with_name(f"{stream.folder.name}_taught")
    images = sorted((stream.folder / "images").iterdir())
    with atomic_folder(folder) as made:
        (made / "images").mkdir()
        (made / "labels").mkdir()
        for path, mask in zip(images, answers.masks, strict=False):
            (made / "images" / path.name).symlink_to(path.resolve())
            cv2.imwrite(str(made / "labels" / path.name), mask)
    return folder
