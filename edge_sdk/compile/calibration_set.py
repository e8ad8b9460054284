"""The calibration set: what each step graph of one float32 pair received over a user's clips, in one file.

    header.json                          what was recorded with what, from which frames; counts; the list of passes
    clip_000/000/frame.npy               what the graph input ``frame`` received at the first frame of the first clip
    clip_000/001/state.stem.npy          what the graph input ``state.stem`` received at its second frame

The file is sealed, see :mod:`edge_sdk.arrays`. Nothing in it is compressed because float32 state shrinks by 9 % at
36 MB/s (zlib level 1, the gamma-4 camvid pair), and state is nearly all of it.

What several passes received alike is stored once: a state tensor that only the keyframe writes lies there once a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.arrays import FileKind, SealedArrays, just_written
from edge_sdk.bundle import Bundle
from edge_sdk.errors import RecipeError
from edge_sdk.manifest import StepName
from edge_sdk.recording import check_pair
from edge_sdk.settings import Settings
from edge_sdk.tensors import TensorSpec
from edge_sdk.video.clips import ClipRecord

CALIBRATION_SET = FileKind("calibration set", 1, "Record it again with: edge-sdk calibrate RECIPE")


class PassRecord(Settings):
    """One run of a step.

    Args:
        step: which step.
        clip: index of the clip.
        distance: steps since the keyframe; 0 for a keyframe step.
        inputs: file in the set by graph input.
    """

    step: StepName
    clip: int
    distance: int
    inputs: dict[str, str]


class CalibrationHeader(Settings):
    """Everything about a calibration set but its arrays.

    Args:
        kind, format: what the file is.
        bundle: name of the pair that was run.
        graphs: hex SHA-256 of each float32 step graph.
        inputs: the graph inputs of each step.
        clips_sha256: identity of the calibration clips, see :class:`edge_sdk.video.clips.CalibrationClips`.
        clips: source, frame indices and hash of every frame, by clip.
        interval: steps from keyframe to keyframe at most in the bundle's own schedule.
        counts: passes of each step at distance 0, 1, 2, ... from the keyframe.
        passes: every pass, in the order in which they ran.
        runtime: what ran the pair, such as ``"onnxruntime 1.31.1"``.
        created: ISO 8601 time, UTC.
        sdk_version: version of edge_sdk that recorded it.
        commit: commit of the edge_sdk that recorded it; None where it is installed from a package.
    """

    kind: Literal["edge_sdk calibration set"] = "edge_sdk calibration set"
    format: Literal[1] = 1
    bundle: str
    graphs: dict[StepName, str]
    inputs: dict[StepName, tuple[TensorSpec, ...]]
    clips_sha256: str
    clips: tuple[ClipRecord, ...]
    interval: int
    counts: dict[StepName, tuple[int, ...]]
    passes: tuple[PassRecord, ...]
    runtime: str
    created: str
    sdk_version: str
    commit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a step graph received in one run.

    Args:
        step: which step.
        clip: index of the clip.
        distance: steps since the keyframe, which are frames where none is skipped; 0 for a keyframe step.
        inputs: read-only arrays by graph input, in the shape and dtype that the graph takes.
    """

    step: StepName
    clip: int
    distance: int
    inputs: Mapping[str, np.ndarray]


class CalibrationSet:
    """An opened calibration set; made by :meth:`open` or by :func:`edge_sdk.compile.calibrate.calibrate`.

    Args:
        file: the sealed file.

    Attributes:
        header: what it says of itself.
        sha256: its identity, hex.

    Raises:
        FileFormatError: the header has an unknown key or a bad value, or names an array that is not there.
    """

    def __init__(self, file: SealedArrays) -> None:
        self._file = file
        self.path, self.sha256 = file.path, file.sha256
        self.header = file.header(CalibrationHeader)
        for record in self.header.passes:
            for member in record.inputs.values():
                file.require(member)

    @classmethod
    def open(cls, path: str | Path) -> CalibrationSet:
        """Open a set; the whole file is read once to compare its hash.

        Raises:
            MissingFileError: no file there.
            ChecksumError: it is not what was recorded.
            FileFormatError: it is truncated, no calibration set, or of another format.
        """
        return cls(SealedArrays.open(path, CALIBRATION_SET))

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self._file.size_bytes

    def count(self, step: StepName) -> int:
        """Passes of a step; 0 where there is no such step."""
        return sum(self.header.counts.get(step, ()))

    def passes(self, step: StepName) -> Iterator[Pass]:
        """What a step received, pass after pass in the order in which they ran; one pass is in memory at a time.

        Raises:
            RecipeError: the set has no such step.
            ChecksumError, FileFormatError: the file changed since it was opened.
        """
        if step not in self.header.inputs:
            raise RecipeError(f"calibration set {self.path}: it has no {step} step, only a keyframe step.")
        specs = {spec.name: spec for spec in self.header.inputs[step]}
        with self._file.reading() as reader:
            for record in self.header.passes:
                if record.step == step:
                    yield Pass(step, record.clip, record.distance, reader.read_all(record.inputs, specs))

    def check_for(self, bundle: Bundle) -> None:
        """Check that it was recorded with this very float32 pair.

        Raises:
            BundleError: naming the step and both graphs.
        """
        hint = "Record one with this bundle: edge-sdk calibrate RECIPE"
        check_pair(self.header.graphs, self.header.bundle, bundle, f"calibration set {self.path}", hint)


def sealed(path: Path) -> CalibrationSet:
    """The set that was written to ``path`` a moment ago, without reading its arrays again."""
    return CalibrationSet(just_written(path, CALIBRATION_SET))


def counts_of(passes: Iterable[PassRecord]) -> dict[StepName, tuple[int, ...]]:
    """Passes of each step at distance 0, 1, 2, ...."""
    distances: dict[StepName, list[int]] = {}
    for record in passes:
        distances.setdefault(record.step, []).append(record.distance)
    return {step: tuple(np.bincount(found).tolist()) for step, found in distances.items()}
