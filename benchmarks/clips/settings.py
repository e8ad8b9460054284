"""Every setting of the benchmark of clip classifiers: change them here alone. What is changed is trained anew, the rest
is kept."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_sdk.distill.clips.recipes import ClipLoss, Sampling
from edge_sdk.video.motions import MOTION_CLASSES

HERE = Path(__file__).parent
CLASSES = MOTION_CLASSES
FACTORIES = "edge_sdk.distill.models.clips"
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Clips:
    """Generated clips. Trainings of seed s learn from clips of their own; all are tested on the same ones.

    Args:
        side, length: of a clip's frames, and how many.
        train: labelled clips, for teacher and students alike.
        validation, test: how many.
        unlabelled: further clips whose labels nobody looks at: a student learns what its teacher makes of them.
        noise, size: see :class:`edge_sdk.video.motions.MotionSettings`.
    """

    side: int
    length: int
    train: int
    validation: int
    test: int
    unlabelled: int = 0
    noise: float = 24.0
    size: float = 1.0

    def uri(self, count: int, seed: int) -> str:
        size = f"height={self.side}&width={self.side}&frames={self.length}&noise={self.noise:g}"
        if self.size != 1:
            size += f"&size={self.size:g}"
        return f"synthetic:motions?clips={count}&seed={seed}&{size}"

    def train_uri(self, seed: int) -> str:
        return self.uri(self.train, 1_000_000 * seed)

    def unlabelled_uris(self, seed: int) -> tuple[str, ...]:
        return (self.uri(self.unlabelled, 1_000_000 * seed + 500_000),) if self.unlabelled else ()

    @property
    def validation_uri(self) -> str:
        return self.uri(self.validation, 500_000_000)

    @property
    def test_uri(self) -> str:
        return self.uri(self.test, 900_000_000)


@dataclass(frozen=True)
class Course:
    """How long and how fast something learns; a fine-tuning is ``finetune`` steps on the labels alone."""

    steps: int
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    clip_norm: float = 1.0
    finetune: int = 0
    finetune_lr: float = 0.1
    colour: float = 0.2
    shift: float = 0.1


@dataclass(frozen=True)
class Network:
    """A factory and its arguments; the number of classes, and of frames seen where it asks for it, are filled in."""

    factory: str
    arguments: Arguments
    with_samples: bool = False


@dataclass(frozen=True)
class StudentRow:
    """How a student is distilled."""

    loss: ClipLoss
    finetuned: bool = False
    parallel: bool = False
    unlabelled: bool = True


@dataclass(frozen=True)
class Family:
    """Teacher and student of the same kind that see all frames and few."""

    teacher: Network
    student: Network
    representation: float
    prediction: float

    @property
    def claimed(self) -> StudentRow:
        """The student that claims are about."""
        return self.rows()[FEWER_CLAIMED]

    def rows(self) -> dict[str, StudentRow]:
        """The students of the table of losses by name."""
        rep, pred = self.representation, self.prediction
        together = ClipLoss(label=1.0, representation=rep, prediction=pred)
        return {
            "representation, then labels": StudentRow(
                ClipLoss(label=0.0, representation=rep), finetuned=True
            ),
            "prediction": StudentRow(ClipLoss(label=0.0, prediction=pred)),
            "together": StudentRow(together),
            "together, labelled clips alone": StudentRow(together, unlabelled=False),
            "together, parallel": StudentRow(together, parallel=True),
            "together, then labels": StudentRow(together, finetuned=True),
        }


FEWER_CLAIMED = "together"
FEWER_BASELINE = "no teacher"


@dataclass(frozen=True)
class Fewer:
    """The tables of fewer frames.

    Args:
        student: of what is claimed.
        short: of the tables of losses and of samplings, which are of one family, ``compared``, alone.
    """

    clips: Clips
    samples: int
    families: dict[str, Family]
    teacher: Course
    student: Course
    short: Course
    samplings: tuple[Sampling, ...] = ("uniform", "random", "first", "middle", "last", "first_middle_last")
    compared: str = "hrnn"


@dataclass(frozen=True)
class LowRow:
    """A student that sees small frames; ``network`` where it is not the teacher's."""

    loss: ClipLoss | None
    network: Network | None = None


@dataclass(frozen=True)
class Smaller:
    """The table of smaller frames: every frame of a clip is seen, students' at ``side``."""

    clips: Clips
    side: int
    networks: dict[str, Network]
    further: dict[str, dict[str, LowRow]]
    teacher: Course
    student: Course
    features: float = 100.0
    train_norm: bool = True

    def rows(self, name: str) -> dict[str, LowRow]:
        """The students of a network by name; claims are about ``SMALLER_CLAIMED``."""
        return {
            SMALLER_BASELINE: LowRow(None),
            SMALLER_CLAIMED: LowRow(ClipLoss(label=1.0, features=self.features)),
            **self.further.get(name, {}),
        }


SMALLER_CLAIMED = "feature maps"
SMALLER_BASELINE = "no teacher"


@dataclass(frozen=True)
class Benchmark:
    """Both tables.

    Args:
        seeds: of the rows that claims are about; each has a teacher and clips of its own.
        further_seeds: of the other rows.
        timed, repeats: clips and runs that times rest on.
        streamed: clips in the stream.
        int8: measure INT8 engines for this CPU beside the students of the first seed.
        runs: folder of everything that is made.
        results: folder of RESULTS.md and results.json.
    """

    fewer: Fewer
    smaller: Smaller
    seeds: tuple[int, ...] = (0,)
    further_seeds: tuple[int, ...] = (0,)
    timed: int = 6
    repeats: int = 9
    streamed: int = 120
    int8: bool = True
    runs: Path = Path("runs/clips")
    results: Path = field(default=HERE)


def _family(name: str, representation: float, prediction: float, both: Arguments, **students: Any) -> Family:
    clip = f"{FACTORIES}:clip_network"
    arguments = {"family": name, **both}
    return Family(
        Network(clip, arguments, with_samples=True),
        Network(clip, {**arguments, **students}, with_samples=True),
        representation,
        prediction,
    )


def _placed_network(encoder: str) -> Network:
    """A mean over frames forgets their order, one over places where things were, and these classes are about both: so
    each frame's feature says where things are (flatten), beside its difference to those before (order)."""
    arguments = {
        "family": "mean", "encoder": encoder, "width": 24, "pool": "flatten", "features": 64, "order": True,
    }  # fmt: skip
    return Network(f"{FACTORIES}:clip_network", arguments, with_samples=True)


# All families are told when a frame was seen and what is new in it: the two that sum over frames would else forget it.
_BOTH: Arguments = {"order": True, "dropout": 0.3}

FULL = Benchmark(
    fewer=Fewer(
        clips=Clips(side=32, length=60, train=300, validation=600, test=1200, unlabelled=1920),
        samples=6,
        families={
            "hrnn": _family(
                "hrnn", 0.005, 4.0, {**_BOTH, "hidden": 64, "segments": 10}, segments=2, dropout=0.0
            ),
            "netvlad": _family("netvlad", 0.05, 4.0, {**_BOTH, "clusters": 16, "hidden": 128}, dropout=0.0),
            "nextvlad": _family(
                "nextvlad", 0.05, 4.0, {**_BOTH, "clusters": 16, "hidden": 128, "groups": 2}, dropout=0.0
            ),
        },
        teacher=Course(steps=1500),
        student=Course(steps=3000),
        short=Course(steps=1200, finetune=200),
    ),
    smaller=Smaller(
        clips=Clips(
            side=64, length=8, train=360, validation=600, test=1200, unlabelled=1920, noise=16.0, size=0.45
        ),
        side=32,
        networks={
            "2D, consensus": _placed_network("residual"),
            "temporal shift": _placed_network("tsm"),
            "3D, causal": _placed_network("causal3d"),
        },
        further={},
        teacher=Course(steps=800, lr=3e-3),
        student=Course(steps=1200, lr=3e-3),
    ),
)

# Minutes become seconds and figures mean nothing: whether the whole way can be gone.
_FEW = Course(steps=3, batch=2, finetune=2)
TRIAL = replace(
    FULL,
    fewer=replace(
        FULL.fewer, clips=Clips(16, 12, train=12, validation=12, test=12), samples=4, teacher=_FEW, student=_FEW,
        short=_FEW,
        families={
            name: replace(
                family,
                teacher=replace(
                    family.teacher,
                    arguments=family.teacher.arguments | ({"segments": 4} if name == "hrnn" else {}),
                ),
            )
            for name, family in FULL.fewer.families.items()
        },
    ),
    smaller=replace(
        FULL.smaller, clips=Clips(32, 4, train=12, validation=12, test=12), side=16, teacher=_FEW, student=_FEW
    ),
    seeds=(0,), timed=2, repeats=2, streamed=4, runs=Path("runs/clips_trial"), results=Path("runs/clips_trial"),
)  # fmt: skip
