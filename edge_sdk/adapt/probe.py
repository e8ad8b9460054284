"""The test that new weights pass before they answer a frame: the last teacher frame, on buffers of the probe's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_sdk.adapt.agreement import agreement
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import FRAME, PairSpec, state_input, state_output
from edge_sdk.errors import ShapeError
from edge_sdk.manifest import is_state
from edge_sdk.runtime.engine import BoundStep, Buffer, Engine
from edge_sdk.tasks import TaskSpec

MASK = "mask"
# ONNX Runtime plans its memory in the first run; the stream must not wait for that.
_RUNS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a lesson was about.

    Args:
        seq: the teacher frame's number.
        image: (H, W, 3) uint8 BGR.
        label: (H, W) uint8, the teacher's mask.
        earlier: (H, W, 3) uint8 BGR, the frame of the lesson before, that the state is made from; of the first lesson
            its own frame.
        comparable: whether the trainer makes its state from that frame too; it does not in the first lesson after it
            went on from kept weights, where the earlier frame is its own affair.
    """

    seq: int
    image: np.ndarray
    label: np.ndarray
    earlier: np.ndarray
    comparable: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found.

    Args:
        agreement: of the new weights with the teacher, 0 to 1; NaN where their mask holds what is no class.
        in_use: of the weights in use, measured in the same way.
        differing: share of pixels in which the engine's mask is not the one that the trainer saw with these weights.
        refused: why the new weights are not to be used, for people; empty where they may be.
    """

    agreement: float
    in_use: float
    differing: float
    refused: str = ""


def judge(
    new: np.ndarray,
    used: np.ndarray,
    claimed: np.ndarray,
    label: np.ndarray,
    task: TaskSpec,
    settings: AdaptSettings,
) -> Verdict:
    """Whether new weights may take the place of those in use.

    Args:
        new: (H, W) uint8, the mask of the new engine.
        used: (H, W) uint8, that of the engine in use.
        claimed: (H, W) uint8, that of the trainer with the new weights.
        label: (H, W) uint8, the teacher's.
        task: the classes.
        settings: how agreement is measured and what the probe allows.

    Raises:
        ShapeError: the label holds a value that is no class.
    """
    count, ignore, allowed = len(task.classes), task.ignore_label, settings.probe
    before = agreement(used, label, count, ignore, settings.agreement)
    differing = float(np.count_nonzero(new != claimed)) / new.size
    try:
        after = agreement(new, label, count, ignore, settings.agreement)
    except ShapeError as error:
        return Verdict(float("nan"), before, differing, f"its mask is none: {error}")
    refused = ""
    if not after >= before - allowed.drop:
        refused = f"agreement fell from {before:.3f} to {after:.3f}"
    elif differing > allowed.differing:
        refused = (
            f"the engine differs from the trainer in {differing:.1%} of the pixels, "
            f"allowed are {allowed.differing:.1%}"
        )
    return Verdict(after, before, differing, refused)


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """The engines of one version of the weights, bound to the probe's buffers.

    Args:
        steps: the keyframe step where there is a state, and the delta step.
    """

    steps: tuple[BoundStep, ...]


class Probe:
    """Runs any version of the student on one frame, beside the stream.

    Args:
        pair: steps and state of the engines in use.
        engine: the delta step's; allocates the buffers.
    """

    def __init__(self, pair: PairSpec, engine: Engine) -> None:
        allocate = engine.allocate
        self.stateful = bool(pair.state)
        specs = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
        self._frame = allocate(specs[FRAME])
        self._mask = allocate(specs[MASK])
        self._outputs = {spec.name: allocate(spec) for spec in engine.outputs if spec.name != MASK}
        state = {spec.name: allocate(spec, host=False) for spec in pair.state}
        self._reads: dict[str, Buffer] = {state_input(name): buffer for name, buffer in state.items()}
        # What the keyframe step answers is of no interest here.
        self._writes: dict[str, Buffer] = {state_output(name): buffer for name, buffer in state.items()}
        self._answers = {
            spec.name: allocate(spec)
            for spec in pair.steps.keyframe.outputs
            if self.stateful and not is_state(spec.name)
        }

    def bind(self, keyframe: Engine, delta: Engine) -> Student:
        """Tie engines to the probe's buffers.

        Args:
            keyframe: of the same weights; only bound where there is a state.
            delta: the student.

        Raises:
            EngineError, ShapeError: the engines take or give something else than those in use.
        """
        steps: list[BoundStep] = []
        if self.stateful:
            steps.append(keyframe.bind({FRAME: self._frame, **self._answers, **self._writes}))
        steps.append(delta.bind({FRAME: self._frame, MASK: self._mask, **self._reads, **self._outputs}))
        return Student(tuple(steps))

    def mask(self, student: Student, lesson: Lesson, *, warm: bool = True) -> np.ndarray:
        """The student's mask of the lesson's frame, (H, W) uint8, a copy.

        Args:
            student: of :meth:`bind`.
            lesson: its frame, and the one before that the state is made from.
            warm: the student has run before; otherwise it is run twice.

        Raises:
            EngineError: the runtime failed.
        """
        *keyframe, delta = student.steps
        for step in keyframe:
            np.copyto(self._frame.host, lesson.earlier)
            step.run()
        np.copyto(self._frame.host, lesson.image)
        for _ in range(1 if warm else _RUNS):
            delta.run()
        return self._mask.host.copy()
