"""The reference: what the float32 pair answered over a stream, in one file that can be carried to a device.

    header.json                       source, counts, interval, the passes that are kept whole
    frames/000012.npy                 the frame as the graph received it
    answers/000012/mask.npy           what the task's output was
    labels/000012.npy                 the truth, in the form of the task's output, where the source has one
    passes/000010/state.X.next.npy    state that a step wrote, in the periods that are kept whole

The file is sealed, see :mod:`edge_sdk.arrays`. It is made by ONNX Runtime on the CPU in float32 alone: other machines
compare with it, they do not make their own. Frames, answers and labels are compressed, state is not worth it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edge_sdk.arrays import ArrayReader, FileKind, SealedArrays
from edge_sdk.bundle import FRAME, Bundle
from edge_sdk.manifest import StepName
from edge_sdk.recording import check_pair
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, ScheduleSettings
from edge_sdk.settings import Settings
from edge_sdk.tasks import Prediction, Task
from edge_sdk.tensors import TensorSpec
from edge_sdk.video.uri import SourceText

BACKEND = "onnxruntime"
REFERENCE = FileKind(
    "reference",
    1,
    "Copy it again, or record it on the workstation: edge-sdk compare BUNDLE SOURCE --reference FILE",
)


class ReferenceSettings(Settings):
    """What a reference is made of.

    Args:
        source: URI of the frames, with labels or without.
        limit: most frames to take.
        interval: frames from keyframe to keyframe; None for that of the bundle's schedule, 10 where it names none.
            Where the bundle's schedule sees a few frames of each clip, those alone are taken and counted.
        periods: keyframe periods, spread evenly, whose passes are kept whole, so that each step can be run on the same
            inputs; a period takes as much as one copy of the state, or one a frame where the delta step rewrites it.
        threads: CPU threads of one step.
    """

    source: SourceText
    limit: int = Field(default=200, ge=1)
    interval: int | None = Field(default=None, ge=1)
    periods: int = Field(default=4, ge=1)
    threads: int | None = Field(default=None, ge=1)


class ReferencePass(Settings):
    """One run of a step that is kept whole.

    Args:
        step: which step.
        frame: index of the frame.
        distance: frames since the keyframe; 0 for a keyframe step.
        inputs, outputs: file in the reference by graph input or output.
    """

    step: StepName
    frame: int
    distance: int
    inputs: dict[str, str]
    outputs: dict[str, str]


class ReferenceHeader(Settings):
    """Everything about a reference but its arrays.

    Args:
        kind, format: what the file is.
        bundle: name of the pair.
        graphs: hex SHA-256 of each float32 step graph.
        inputs, outputs: graph inputs and outputs of each step.
        settings: what it was made of.
        interval: frames from keyframe to keyframe.
        frames: how many.
        labelled: indices of the frames that have labels.
        passes: those that are kept whole, in the order in which they ran.
        runtime: what ran the pair, such as ``"onnxruntime 1.31.1"``.
        created: ISO 8601 time, UTC.
        sdk_version, commit: the edge_sdk that made it.
    """

    kind: Literal["edge_sdk reference"] = "edge_sdk reference"
    format: Literal[1] = 1
    bundle: str
    graphs: dict[StepName, str]
    inputs: dict[StepName, tuple[TensorSpec, ...]]
    outputs: dict[StepName, tuple[TensorSpec, ...]]
    settings: ReferenceSettings
    interval: int
    frames: int
    labelled: tuple[int, ...]
    passes: tuple[ReferencePass, ...]
    runtime: str
    created: str
    sdk_version: str
    commit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One frame of the reference stream.

    Args:
        index: which frame.
        distance: frames since its keyframe.
        image: (H, W, 3) uint8 BGR.
        answers: the task's outputs by graph output.
        truth: labels; None where there are none.
    """

    index: int
    distance: int
    image: np.ndarray
    answers: Mapping[str, np.ndarray]
    truth: Prediction | None


@dataclass(frozen=True, slots=True, eq=False)
class WholePass:
    """One run of a step: what it received and what the float32 graph made of it."""

    step: StepName
    frame: int
    distance: int
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


class Reference:
    """An opened reference; made by :meth:`open` or :func:`edge_sdk.parity.record.record_reference`.

    Args:
        file: the sealed file.

    Raises:
        FileFormatError: the header has an unknown key or a bad value, or names an array that is not there.
    """

    def __init__(self, file: SealedArrays) -> None:
        self._file = file
        self.path, self.sha256 = file.path, file.sha256
        self.header = file.header(ReferenceHeader)
        self._outputs = {spec.name: spec for spec in self.header.outputs["keyframe"]}
        (self._frame,) = (spec for spec in self.header.inputs["keyframe"] if spec.name == FRAME)
        for record in self.header.passes:
            for member in (*record.inputs.values(), *record.outputs.values()):
                file.require(member)

    @classmethod
    def open(cls, path: str | Path) -> Reference:
        """Open a reference; the whole file is read once to compare its hash.

        Raises:
            MissingFileError: no file there.
            ChecksumError: it is not what was recorded.
            FileFormatError: it is truncated, no reference, or of another format.
        """
        return cls(SealedArrays.open(path, REFERENCE))

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._file.size_bytes

    @property
    def schedule(self) -> ScheduleSettings:
        """The schedule that it was made under."""
        return schedule_of(self.header.interval if "delta" in self.header.graphs else 1)

    def check_for(self, bundle: Bundle) -> None:
        """Check that it was made by this very float32 pair.

        Raises:
            BundleError: naming the step and both graphs.
        """
        hint = "Record one with this bundle: edge-sdk compare BUNDLE SOURCE --reference FILE"
        check_pair(self.header.graphs, self.header.bundle, bundle, f"reference {self.path}", hint)

    def stream(self, task: Task) -> Iterator[Moment]:
        """Every frame with its answers and labels, in order; one in memory at a time."""
        labelled = set(self.header.labelled)
        answers = {name: self._outputs[name] for name in task.output_names}
        (name,) = task.output_names
        with self._file.reading() as reader:
            for index in range(self.header.frames):
                image = _one(reader, frame_file(index), self._frame)
                found = reader.read_all({name: answer_file(index, name) for name in answers}, answers)
                truth = None
                if index in labelled:
                    truth = task.decode({name: _one(reader, label_file(index), self._outputs[name])})
                yield Moment(index, index % self.header.interval, image, found, truth)

    def passes(self) -> Iterator[WholePass]:
        """The passes that are kept whole, in the order in which they ran; one in memory at a time."""
        with self._file.reading() as reader:
            for record in self.header.passes:
                specs = {
                    spec.name: spec
                    for spec in (*self.header.inputs[record.step], *self.header.outputs[record.step])
                }
                found = reader.read_all({**record.inputs, **record.outputs}, specs)
                yield WholePass(
                    record.step,
                    record.frame,
                    record.distance,
                    {name: found[name] for name in record.inputs},
                    {name: found[name] for name in record.outputs},
                )


def schedule_of(interval: int) -> ScheduleSettings:
    """A keyframe every ``interval`` frames."""
    return AlwaysSchedule() if interval == 1 else EverySchedule(interval=interval)


def _one(reader: ArrayReader, member: str, spec: TensorSpec) -> np.ndarray:
    return reader.read_all({spec.name: member}, {spec.name: spec})[spec.name]


def frame_file(index: int) -> str:
    """Where the frame lies in a reference."""
    return f"frames/{index:06d}.npy"


def answer_file(index: int, name: str) -> str:
    """Where one of a frame's answers lies."""
    return f"answers/{index:06d}/{name}.npy"


def label_file(index: int) -> str:
    """Where a frame's labels lie."""
    return f"labels/{index:06d}.npy"
