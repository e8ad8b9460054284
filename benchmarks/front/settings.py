"""Every setting of the front: change them here alone. What is changed is trained anew, the rest is kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

FACTORY = "edge_sdk.distill.models:ddrnet_23_slim"
SMALL_INPUT = "edge_sdk.distill.cross:small_input"
VIEWS = "edge_sdk.distill.models:several_views"
DRIVING = (
    ("sky", (128, 128, 128)), ("building", (0, 0, 128)), ("pole", (128, 192, 192)), ("road", (128, 64, 128)),
    ("pavement", (222, 40, 60)), ("tree", (0, 128, 128)), ("sign", (128, 128, 192)), ("fence", (128, 64, 64)),
    ("car", (128, 0, 64)), ("pedestrian", (0, 64, 64)), ("bicyclist", (192, 128, 0)),
)  # fmt: skip
INT8 = "onnxruntime-int8"
ROAD = "data/videos/car-detection.mp4"


@dataclass(frozen=True)
class Scene:
    """A kind of video: what is trained on, what is measured on.

    Args:
        classes: names and colours (blue, green, red).
        ignore: label id that does not count.
        stills: labelled training frames; pairs come from them under random camera motion.
        video: sources of training pairs that are real; empty for none.
        video_gap: largest distance of the two frames of such a pair, in frames of the source.
        validation: labelled clips that are measured on, each a stream.
        others: frames of anything else, of which a student may learn what its teacher makes of them.
        frame_hw: of the camera's frames.
        crop_hw: of training; None for whole frames.
        input_hw: what frames are resized to inside the networks; None for as they are.
    """

    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    ignore: int
    stills: tuple[str, ...]
    video: tuple[str, ...]
    video_gap: int
    validation: tuple[str, ...]
    frame_hw: tuple[int, int]
    crop_hw: tuple[int, int] | None
    input_hw: tuple[int, int] | None = None
    others: tuple[str, ...] = ()


def _davis(begin: float, end: float, most: int | None = None) -> tuple[str, ...]:
    """A part of each clip, or its first frames; their masks are 255 where the thing in front is."""
    parts = {
        name: (round(begin * count), min(round((end - begin) * count), most or count))
        for name, count in DAVIS_FRAMES.items()
    }
    return tuple(
        f"data/davis/{name}?labels=255:1&fps=24&start={start}&limit={limit}"
        for name, (start, limit) in parts.items()
    )


# How many frames each clip has. The things in front differ from clip to clip, so each clip's beginning is learned from
# and its end is measured on: a camera that has seen its scene before.
DAVIS_FRAMES = {
    "blackswan": 50, "bmx-trees": 80, "camel": 90, "car-roundabout": 75, "cows": 104, "dance-twirl": 90, "dog": 60,
    "drift-straight": 50, "goat": 90, "soapbox": 99,
}  # fmt: skip
CAMVID = Scene(
    classes=DRIVING,
    ignore=11,
    stills=("data/camvid/train",),
    video=("data/camvid/train",),
    # Frames are a second apart: such pairs teach the student to stand where the keyframe no longer helps.
    video_gap=2,
    validation=("data/camvid/val",),
    frame_hw=(360, 480),
    crop_hw=(360, 480),
    others=(ROAD, *_davis(0.0, 1.0)),
)
DAVIS = Scene(
    classes=(("background", (0, 0, 0)), ("front", (0, 128, 255))),
    ignore=255,
    stills=_davis(0.0, 0.6),
    video=_davis(0.0, 0.6),
    video_gap=19,
    # As many frames as the longest interval has: each is run at every distance, in two precisions.
    validation=_davis(0.6, 1.0, 20),
    frame_hw=(480, 854),
    crop_hw=None,
    input_hw=(240, 424),
    others=(ROAD, "data/camvid/train"),
)
SCENES = {"camvid": CAMVID, "davis": DAVIS}


@dataclass(frozen=True)
class Student:
    """A narrower network that a pair joins to the teacher at the class logits.

    Args:
        width: of the network.
        scale: share of each side of the frame that it sees.
    """

    width: int
    scale: float = 1.0

    @property
    def name(self) -> str:
        """Width and, where it is not all of the frame, how much of each side it sees in percent."""
        return str(self.width) if self.scale == 1 else f"{self.width}_{round(100 * self.scale)}"


@dataclass(frozen=True)
class Teacher:
    """A teacher, the widths of its rivals, and the budgets of its students.

    Args:
        width: of the teacher.
        views: sizes that it looks at, as shares of each side, with the weights of the teacher that looks once, whose
            students its own begin from; none for that one.
        nets: widths of the networks for every frame.
        students: of pairs.
        budgets: of a delta step, as shares of the cost table's reference student, whose every unit is the first
            candidate; never less than the cheapest student takes, which on some scenes is more.
        intervals: of the front.
    """

    width: int = 32
    views: tuple[float, ...] = ()
    nets: tuple[int, ...] = (8, 12, 16, 20, 24)
    students: tuple[Student, ...] = (
        Student(16, 0.5), Student(24, 0.5), Student(8), Student(16), Student(24),
    )  # fmt: skip
    budgets: tuple[float, ...] = (0.55, 0.75, 0.95)
    intervals: tuple[int, ...] = (5, 10, 20)

    @property
    def name(self) -> str:
        """Width, and whether it looks more than once."""
        return f"{self.width}_views" if self.views else str(self.width)

    @property
    def once(self) -> Teacher:
        """The same, looking once."""
        return replace(self, views=())


@dataclass(frozen=True)
class Course:
    """How long something learns."""

    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.02
    warmup: float = 0.03
    seed: int = 1


@dataclass(frozen=True)
class Benchmark:
    """The whole of it.

    Args:
        units: what the student of each part of the teacher may be.
        motion: how the joined pairs look for motion; sides of blocks are in pixels of the networks' input.
        motion_half: the same for students that see half of each side.
        join: of the joined pairs.
        others_share: of the frames that networks for every frame learn from, that are of the scene's ``others``; more
            than 0 takes the teacher's word alone, and leaves batch norm as it is.
        student_lr: of the joined pairs' students.
        join_gap, between: largest distance from the keyframe that they learn from, and the frames that they see
            between; those of this benchmark's videos may be too far apart to be followed, so they come from stills.
        confidence: channels of what learns where their correction holds.
        max_gap: largest distance from the keyframe that students learn from.
        precisions: each is searched with its own cost table.
        rounds, check: of the cost tables.
        calibration: clips that INT8 ranges come from.
        limit: frames that are measured on; None for all.
        share: of every training's steps; its courses are multiplied by it already.
        runs: folder of everything that is made; ``results``: of RESULTS.md and results.json.
    """

    scene: str = "camvid"
    teacher: Teacher = Teacher()
    teacher_course: Course = Course(steps=5000, batch=6, lr=1.5e-3)
    # Networks begin from every second or third channel of the teacher, and so need less.
    net_course: Course = Course(steps=1000, batch=6, lr=1.5e-3, seed=3)
    join_course: Course = Course(steps=450, batch=3, lr=8e-4, weight_decay=0.01, seed=2)
    # These have to learn what half a frame looks like; their steps are shorter.
    half_course: Course = Course(steps=1200, batch=4, lr=8e-4, weight_decay=0.01, seed=2)
    gamma4_course: Course = Course(steps=250, batch=4, lr=8e-4, weight_decay=0.01, seed=2)
    pair_course: Course = Course(steps=250, batch=4, lr=8e-4, weight_decay=0.01, seed=2)
    units: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "*.body": ("rank/4", "rank/8", "half+rank/4", "kept"),
            "pool": ("rank/4", "kept"),
        }
    )
    rank_multiple: int = 16
    motion: dict[str, int | str | bool] = field(
        default_factory=lambda: {
            "radius": 2,
            "stride": 8,
            "channels": 8,
            "feature_at": "stage2",
            "follow": True,
        }
    )
    motion_half: dict[str, int | str | bool] = field(default_factory=lambda: {"feature_at": "stage1"})
    join: Literal["correct", "blend"] = "correct"
    others_share: float = 0.0
    student_lr: float = 1.0
    join_gap: int = 12
    between: int = 2
    confidence: int = 16
    max_gap: int = 19
    until: float = 0.3
    precisions: tuple[str, ...] = ("float32", "int8")
    rounds: int = 200
    check: int = 10
    repeats: int = 5
    calibration: int = 48
    limit: int | None = None
    share: float = 1.0
    runs: Path = Path("runs/front")
    results: Path = Path(__file__).parent

    @property
    def folder(self) -> Path:
        """Of this scene and teacher."""
        return self.folder_of(self.teacher)

    def folder_of(self, teacher: Teacher) -> Path:
        """Of this scene and that teacher."""
        shortened = "" if self.share == 1 else f"-{round(100 * self.share)}"
        return self.runs / f"{self.scene}-{teacher.name}{shortened}"

    def shortened(self, share: float) -> Benchmark:
        """With that share of every training's steps."""
        courses = {
            name: replace(course, steps=max(round(course.steps * share), 1))
            for name, course in vars(self).items()
            if isinstance(course, Course)
        }
        return replace(self, share=share, **courses)  # type: ignore[arg-type]  # they are all courses


FULL = Benchmark()
# 1 + 1.25 ** 2 + 1.5 ** 2: 4.8 times the work. DDRNet-23, of twice the width, learned no more from so few frames: begun
# from the slim one it ended at 0.616, after 800 steps of 8e-4 as after 500 of 2e-4.
BIG = replace(
    FULL,
    teacher=Teacher(
        views=(1.0, 1.25, 1.5), nets=(32,), students=(Student(32),), budgets=(), intervals=(5, 10)
    ),
    # Trained to its end, the network that looks once has little to learn from the frames that it was trained on, and
    # forgets (0.622 after 300 steps); what the teacher makes of anything else is new to it.
    net_course=Course(steps=600, batch=4, lr=1.5e-4, weight_decay=0.01, seed=5),
    others_share=0.5,
    join_course=replace(FULL.join_course, steps=250),
    student_lr=0.0,
    # Such a student is nearly as good as its teacher and errs elsewhere: it gains by its own last answers, and its
    # residual is noise. On frames that both were trained on little can be learned about when, so two numbers do.
    join="blend",
    confidence=0,
)
TEACHERS = {plan.teacher.name: plan for plan in (FULL, BIG)}
_FEW = Course(steps=4, batch=2, lr=1e-3)
# Minutes become seconds and figures mean nothing: whether the whole way can be gone.
TRIAL = replace(
    FULL,
    teacher=Teacher(width=8, nets=(2, 4), students=(Student(4, 0.5), Student(4)), budgets=(0.6, 0.9), intervals=(2, 4)),
    teacher_course=_FEW, net_course=_FEW, join_course=_FEW, half_course=_FEW, gamma4_course=_FEW, pair_course=_FEW,
    rank_multiple=8, rounds=10, check=2, repeats=2, calibration=2, limit=8,
    runs=Path("runs/front_trial"), results=Path("runs/front_trial"),
)  # fmt: skip
