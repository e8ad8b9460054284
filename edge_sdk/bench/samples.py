"""Raw samples of a run, as they are kept in its JSON: columns of equal length, times in milliseconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edge_sdk.runtime.result import StepKind
from edge_sdk.settings import Settings

# One letter a frame, so that a column of kinds is one short string.
LETTERS = {StepKind.KEYFRAME: "k", StepKind.DELTA: "d", StepKind.SKIP: "s"}
KINDS = {letter: kind for kind, letter in LETTERS.items()}

Mode = Literal["warm-up", "saturated", "camera"]


class FrameColumns(Settings):
    """One entry a frame, in order of their answers.

    Args:
        kinds: one of ``k``, ``d``, ``s`` a frame: keyframe, delta, skip.
        seq: the frame's number at the camera; a gap is a dropped frame.
        due_ms: when the camera had the frame ready, since the beginning of the run. At camera pace this is the grid
            of the frame rate, whatever became of the frame before; saturated it is the moment of the call.
        called_ms: when the runner was called with it, since the beginning of the run.
        copy_in_ms, step_ms, copy_out_ms, decode_ms, total_ms: of :class:`edge_sdk.runtime.result.StageTimes`.
        gpu_ms: the GPU's own time for the step; empty where there is none.
        state_age: frames since the keyframe that the answer rests on.
        preempted: times that the process was taken off a processor meanwhile (involuntary context switches); empty
            where the system does not say.
    """

    kinds: str = ""
    seq: tuple[int, ...] = ()
    due_ms: tuple[float, ...] = ()
    called_ms: tuple[float, ...] = ()
    copy_in_ms: tuple[float, ...] = ()
    step_ms: tuple[float, ...] = ()
    copy_out_ms: tuple[float, ...] = ()
    decode_ms: tuple[float, ...] = ()
    total_ms: tuple[float, ...] = ()
    gpu_ms: tuple[float, ...] = ()
    state_age: tuple[int, ...] = ()
    preempted: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _equal_lengths(self) -> FrameColumns:
        optional = ("gpu_ms", "preempted")
        for name in type(self).model_fields:
            length = len(getattr(self, name))
            if length != len(self.kinds) and not (length == 0 and name in optional):
                raise ValueError(f"column '{name}' has {length} entries, 'kinds' has {len(self.kinds)}")
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"kinds: expected letters of {''.join(KINDS)}, got '{min(unknown)}'")
        return self

    def __len__(self) -> int:
        return len(self.kinds)


class Block(Settings):
    """Frames measured in one go.

    Args:
        row: name of the row that was run; ``"subject"`` for the bundle that the run is about.
        round: counted from 0.
        mode: ``warm-up`` blocks are outside all statistics; ``saturated``: each frame is given when the last one is
            answered; ``camera``: frames come at the camera's pace.
        frames: the samples.
        dropped: frames that were never answered because a newer one had come.
        yardstick_ms: time of the yardstick right before and after, the mean of the two; None where there is none for
            the backend.
        energy_j: energy that the machine spent meanwhile; None where it does not tell.
    """

    row: str
    round: int = Field(ge=0)
    mode: Mode
    frames: FrameColumns
    dropped: int = Field(default=0, ge=0)
    yardstick_ms: float | None = None
    energy_j: float | None = None


class BareBlock(Settings):
    """The subject's engines alone against the runner, saturated: by turns, one keyframe period through the runner, then
    the same kinds of step bare on the runner's own buffers.

    Args:
        round: counted from 0.
        kinds: one of ``k`` and ``d`` a pair of runs.
        runner_ms: total of the frame through the runner.
        wall_ms: start to end of the bare run, copies of a GPU included.
        gpu_ms: the GPU's own time for the engine, as trtexec tells it; empty on a CPU.
        yardstick_ms: as in :class:`Block`.
    """

    round: int = Field(ge=0)
    kinds: str
    runner_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    gpu_ms: tuple[float, ...] = ()
    yardstick_ms: float | None = None


class Start(Settings):
    """What opening the runner took, once a round: cold, outside all statistics.

    Args:
        round: counted from 0.
        check_ms: the bundle's files and checksums.
        load_ms: engines loaded.
        bind_ms: buffers allocated and steps bound.
        first_ms: each step's first run, by ``"keyframe"``, ``"delta"`` and ``"background keyframe"``.
        second_ms: each step's second run.
    """

    round: int = Field(ge=0)
    check_ms: float
    load_ms: float
    bind_ms: float
    first_ms: dict[str, float]
    second_ms: dict[str, float]


class Reading(Settings):
    """What the machine told at one moment; what it does not tell is None or missing.

    Args:
        at_ms: since the beginning of the run.
        rss_bytes: memory of this process.
        device_bytes: memory in use on the GPU, by all processes where it cannot be told apart.
        clock_mhz: by name, such as ``"cpu0"`` or ``"gpu"``.
        temperature_c: by zone.
        power_w: by rail.
        throttled: what holds the clocks down at this moment, as phrases such as ``"gpu: thermal"``.
        stolen: share of the processors' time since the last reading that a hypervisor gave to others, 0-1.
    """

    at_ms: float
    rss_bytes: int | None = None
    device_bytes: int | None = None
    clock_mhz: dict[str, float] = Field(default_factory=dict)
    temperature_c: dict[str, float] = Field(default_factory=dict)
    power_w: dict[str, float] = Field(default_factory=dict)
    throttled: tuple[str, ...] = ()
    stolen: float | None = None
