"""The streams of the benchmark, their teachers, and every variant that is run over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_sdk.distill import TrainRecipe
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.distill.skip.recipes import SkipSettings
from edge_sdk.settings import load_recipe
from edge_sdk.tasks import Segmentation
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video.frame import Frame
from edge_sdk.video.source import open_source

HERE = Path(__file__).parent
RUNS = Path("runs/skip")
TEACHER = Path("runs/camvid_int8/teacher/model.pt")
CAMERA_TEACHER = Path("runs/online/teacher/model.pt")
INTERVALS = (4, 10)
# By case and gate. A fixed camera shows little but noise between frames: what is a small change there is lower.
THRESHOLDS = {
    "camvid/val": {"input_norm": (0.05, 0.1, 0.2), "output_norm": (0.001, 0.002, 0.004)},
    "bottles": {"input_norm": (0.005, 0.01, 0.02), "output_norm": (0.0001, 0.0002, 0.0005)},
    "cars": {"input_norm": (0.01, 0.02, 0.05), "output_norm": (0.0002, 0.0005, 0.001)},
}


@dataclass(frozen=True)
class Case:
    """One stream.

    Attributes:
        name, uri: what it is called and where it lies.
        teacher: checkpoint of its teacher.
        limit, stride: of the first ``limit`` frames every ``stride``-th one is used; None for all.
        size_hw: size that frames are brought to before anything sees them; None keeps theirs.
        changes: thresholds of the gate for whole frames, in grey levels.
        words: for the table.
    """

    name: str
    uri: str
    teacher: Path
    changes: tuple[float, ...]
    words: str
    limit: int | None = None
    stride: int = 1
    size_hw: tuple[int, int] | None = None


CASES = (
    Case(
        "camvid/val", "data/camvid/val?fps=15", TEACHER, (14.0, 20.0, 24.0),
        "a driving camera, labelled; all 101 frames at 15 a second, 360 x 480; the camvid teacher",
    ),
    Case(
        "bottles", "data/videos/bottle-detection.mp4", TEACHER, (0.5, 1.0, 2.0),
        "a fixed camera; every second of the first 200 frames, so 100 at 15 a second, made 288 x 512; the camvid "
        "teacher, which knows no bottles: how well its answer is kept is what is measured",
        limit=200, stride=2, size_hw=(288, 512),
    ),
    Case(
        "cars", "data/videos/car-detection.mp4", CAMERA_TEACHER, (2.0, 6.0, 10.0),
        "a fixed camera over a road; the first 100 frames at 12.5 a second, made 288 x 512; the camvid teacher trained "
        "on for this camera (benchmarks/online/teacher.yaml)",
        limit=100, size_hw=(288, 512),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Stream:
    """A case's frames in memory, and its labels where there are any."""

    frames: tuple[Frame, ...]
    truths: tuple[Segmentation | None, ...]

    @property
    def images(self) -> list[np.ndarray]:
        """(H, W, 3) uint8 BGR."""
        return [frame.image for frame in self.frames]


def read(case: Case) -> Stream:
    """The frames that are used, numbered anew."""
    frames: list[Frame] = []
    truths: list[Segmentation | None] = []
    with open_source(case.uri, limit=case.limit) as source:
        for frame in source:
            if frame.seq % case.stride == 0:
                image = frame.image
                if case.size_hw is not None and image.shape[:2] != case.size_hw:
                    image = cv2.resize(image, case.size_hw[::-1], interpolation=cv2.INTER_AREA)
                mask = frame.truth.mask if frame.truth is not None else None
                frames.append(Frame(image, len(frames), frame.captured_s))
                truths.append(Segmentation(mask) if mask is not None else None)
    return Stream(tuple(frames), tuple(truths))


def task_of() -> TaskSpec:
    """Camvid's classes."""
    return load_recipe(HERE.parent / "camvid/teacher.yaml", TrainRecipe).task


def teacher_of(case: Case) -> ModuleSettings:
    """The case's teacher with its weights."""
    module = load_recipe(HERE.parent / "camvid/teacher.yaml", TrainRecipe).module
    return module.model_copy(update={"checkpoint": case.teacher})


@dataclass(frozen=True)
class Variant:
    """One row: gates, frames from keyframe to keyframe, and the trained gates' checkpoint where there is one."""

    name: str
    settings: SkipSettings
    interval: int
    checkpoint: Path | None = None


def variants(case: Case) -> list[Variant]:
    """Every row of gated layers of one case."""
    rows = []
    for gate, thresholds in THRESHOLDS[case.name].items():
        for interval in INTERVALS if case.name == "camvid/val" or gate == "input_norm" else (10,):
            for eps in thresholds:
                settings = SkipSettings.model_validate({"gate": gate, "eps": eps})
                rows.append(Variant(f"{gate.split('_')[0]} norm, eps {eps:g}", settings, interval))
    rows.append(Variant("input norm, eps 0", SkipSettings(eps=0.0), 10))
    middle = THRESHOLDS[case.name]["input_norm"][1]
    adds = SkipSettings(eps=middle, reference="last_open")
    rows.append(Variant(f"input norm, eps {middle:g}, change since last open", adds, 10))
    if case.name == "camvid/val":
        published = SkipSettings(eps=0.1, update="residual")
        rows.append(Variant("input norm, eps 0.1, residual as published", published, 10))
        rows.append(Variant("input norm, eps 0.1, blocks of 4", SkipSettings(eps=0.1, block=4), 10))
        rows.append(Variant("input norm, eps 0.2 of the layer", SkipSettings(eps=0.2, scale="layer"), 10))
    if case.teacher == TEACHER:
        learned = RUNS / "gumbel/student.pt"
        rows += [Variant("Gumbel, beta 0.5", SkipSettings(gate="gumbel"), k, learned) for k in INTERVALS]
    return rows
