"""The calibration set: what each step graph of one float32 pair received over a user's clips, in one file.

    header.json                          what was recorded with what, from which frames; counts; the list of passes
    clip_000/000/frame.npy               what the graph input ``frame`` received at the first frame of the first clip
    clip_000/001/state.stem.npy          what the graph input ``state.stem`` received at its second frame

The file is an uncompressed zip of ``.npy`` files, which ``numpy.load`` reads too. The zip's comment, the last 64 bytes,
is the hex SHA-256 of everything before it: the identity of the set. Nothing is compressed because float32 state shrinks
by 9 % at 36 MB/s (zlib level 1, the gamma-4 camvid pair), and state is nearly all of it.

What several passes received alike is stored once: a state tensor that only the keyframe writes lies there once a clip.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError, ChecksumError, FileFormatError, OutputError, RecipeError
from edge_sdk.files import atomic_file, require_file
from edge_sdk.manifest import StepName
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.tensors import TensorSpec
from edge_sdk.video.clips import ClipRecord

FORMAT = 1
HEADER = "header.json"
# Of one array beyond its content: the header of its .npy, and its two entries in the zip.
OVERHEAD_BYTES = 512

_AGAIN = "Record it again with: edge-sdk calibrate RECIPE"
_DIGITS = 64
_BLOCK_BYTES = 1 << 20
# Beyond 2 GiB an entry of a zip needs fields that it is given beforehand.
_LARGE_BYTES = 1 << 30


class PassRecord(Settings):
    """One run of a step.

    Args:
        step: which step.
        clip: index of the clip.
        distance: frames since the keyframe; 0 for a keyframe step.
        inputs: file in the set by graph input.
    """

    step: StepName
    clip: int
    distance: int
    inputs: dict[str, str]


class CalibrationHeader(Settings):
    """Everything about a calibration set but its arrays.

    Args:
        format: version of the file's format.
        kind: tells the file from other zips.
        bundle: name of the pair that was run.
        graphs: hex SHA-256 of each float32 step graph.
        inputs: the graph inputs of each step.
        clips_sha256: identity of the calibration clips, see :class:`edge_sdk.video.clips.CalibrationClips`.
        clips: source, frame indices and hash of every frame, by clip.
        interval: frames from keyframe to keyframe at most in the bundle's own schedule.
        counts: passes of each step at distance 0, 1, 2, ... from the keyframe.
        passes: every pass, in the order in which they ran.
        runtime: what ran the pair, such as ``"onnxruntime 1.31.1"``.
        created: ISO 8601 time, UTC.
        sdk_version: version of edge_sdk that recorded it.
        commit: commit of the edge_sdk that recorded it; None where it is installed from a package.
    """

    format: Literal[1] = 1
    kind: Literal["edge_sdk calibration set"] = "edge_sdk calibration set"
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
        distance: frames since the keyframe; 0 for a keyframe step.
        inputs: read-only arrays by graph input, in the shape and dtype that the graph takes.
    """

    step: StepName
    clip: int
    distance: int
    inputs: Mapping[str, np.ndarray]


class CalibrationSet:
    """An opened calibration set; made by :meth:`open` or by :func:`edge_sdk.compile.calibrate.calibrate`.

    Args:
        path: the file.
        header: what it says of itself.
        sha256: its identity, hex.
    """

    def __init__(self, path: Path, header: CalibrationHeader, sha256: str) -> None:
        self.path, self.header, self.sha256 = path, header, sha256

    @classmethod
    def open(cls, path: str | Path) -> CalibrationSet:
        """Open a set; the whole file is read once to compare its hash.

        Raises:
            MissingFileError: no file there.
            ChecksumError: it is not what was recorded.
            FileFormatError: it is truncated, no calibration set, or of another format.
        """
        file = require_file(path, "calibration set", hint=_AGAIN)
        digest, recorded = _digests(file)
        if digest != recorded:
            raise ChecksumError(
                f"calibration set {file}: it is damaged or was changed: expected SHA-256 {recorded[:12]}..., "
                f"got {digest[:12]}....",
                hint=_AGAIN,
            )
        try:
            with zipfile.ZipFile(file) as archive:
                names = set(archive.namelist())
                header = _parse(archive.read(HEADER), file) if HEADER in names else None
        except zipfile.BadZipFile as error:
            raise _foreign(file) from error
        if header is None:
            raise _foreign(file)
        for record in header.passes:
            if missing := sorted(set(record.inputs.values()) - names):
                raise FileFormatError(f"calibration set {file}: it lacks '{missing[0]}'.", hint=_AGAIN)
        return cls(file, header, digest)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

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
        with zipfile.ZipFile(self.path) as archive:
            held: dict[str, np.ndarray] = {}
            for record in self.header.passes:
                if record.step != step:
                    continue
                # State that the last pass has read already is not read again.
                held = {
                    member: held[member] if member in held else self._read(archive, member, specs[name])
                    for name, member in record.inputs.items()
                }
                inputs = {name: held[member] for name, member in record.inputs.items()}
                yield Pass(step, record.clip, record.distance, inputs)

    def check_for(self, bundle: Bundle) -> None:
        """Check that it was recorded with this very float32 pair.

        Raises:
            BundleError: naming the step and both graphs.
        """
        theirs = graph_hashes(bundle)
        for step in sorted(theirs.keys() | self.header.graphs.keys()):
            ours, other = self.header.graphs.get(step), theirs.get(step)
            if ours != other:
                raise BundleError(
                    f"calibration set {self.path}: it was recorded with another pair, '{self.header.bundle}': its "
                    f"{step} graph is {_short(ours)}, that of bundle {bundle.path} is {_short(other)}.",
                    hint="Record one with this bundle: edge-sdk calibrate RECIPE",
                )

    def _read(self, archive: zipfile.ZipFile, member: str, spec: TensorSpec) -> np.ndarray:
        where = f"calibration set {self.path}: '{member}'"
        try:
            with archive.open(member) as file:
                array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        except (zipfile.BadZipFile, ValueError, KeyError) as error:
            raise ChecksumError(f"{where} changed since the set was opened: {error}.", hint=_AGAIN) from error
        if (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
            raise FileFormatError(
                f"{where}: expected {spec.shape} {spec.dtype}, got {array.shape} {array.dtype}.", hint=_AGAIN
            )
        array.flags.writeable = False
        return array


class SetWriter:
    """Writes a set array by array, so that memory does not grow with it; made by :func:`write_set`."""

    def __init__(self, archive: zipfile.ZipFile, target: Path) -> None:
        self._archive, self._target = archive, target
        self.passes: list[PassRecord] = []

    def write(self, member: str, array: np.ndarray) -> None:
        """Store one array now; the caller may change it afterwards.

        Raises:
            OutputError: the file system refuses, such as for want of space.
        """
        large = array.nbytes > _LARGE_BYTES
        with self._refusals_named(), self._archive.open(_entry(member), "w", force_zip64=large) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def add_pass(self, record: PassRecord) -> None:
        """Note one pass, whose arrays are stored."""
        self.passes.append(record)

    def counts(self) -> dict[StepName, tuple[int, ...]]:
        """Passes noted so far, of each step at distance 0, 1, 2, ...."""
        steps = dict.fromkeys(record.step for record in self.passes)
        return {step: _histogram(p.distance for p in self.passes if p.step == step) for step in steps}

    def finish(self, header: CalibrationHeader) -> None:
        """Write the header; nothing can be added afterwards."""
        with self._refusals_named():
            self._archive.writestr(_entry(HEADER), header.model_dump_json(indent=1))
            self._archive.comment = b"0" * _DIGITS
            self._archive.close()

    @contextmanager
    def _refusals_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._target}: cannot be written ({error.strerror}).",
                hint="Check the space left there, or draw fewer clips.",
            ) from error


@contextmanager
def write_set(path: str | Path) -> Iterator[SetWriter]:
    """Write a set that is there when the block has ended and :meth:`SetWriter.finish` was called, and not before.

    Raises:
        OutputError: nothing can be written there, or something else than a calibration set is there.
    """
    target = Path(path)
    require_set_place(target)
    with atomic_file(target) as temporary:
        archive = zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED)
        try:
            yield SetWriter(archive, target)
        except BaseException:
            with suppress(OSError):  # what it would still write goes to a file that is removed
                archive.close()
            raise
        digest, _ = _digests(temporary)
        with temporary.open("r+b") as file:
            file.seek(-_DIGITS, 2)
            file.write(digest.encode())


def require_set_place(target: Path) -> None:
    """Refuse a place where something else than a calibration set lies.

    Raises:
        OutputError: it does.
    """
    if target.is_file() and not _looks_like_a_set(target):
        raise OutputError(
            f"{target}: something else than a calibration set is there.", hint="Name another file."
        )


def sealed(path: Path) -> CalibrationSet:
    """The set that was written to ``path`` a moment ago, without reading its arrays again."""
    with zipfile.ZipFile(path) as archive:
        return CalibrationSet(path, _parse(archive.read(HEADER), path), archive.comment.decode("ascii"))


def graph_hashes(bundle: Bundle) -> dict[StepName, str]:
    """Hex SHA-256 of each float32 step graph of a bundle."""
    manifest = bundle.manifest
    return {step: manifest.files[spec.graph].sha256 for step, spec in manifest.steps.items()}


def _digests(file: Path) -> tuple[str, str]:
    """SHA-256 of a file without its last 64 bytes, and the one that those bytes record."""
    left = file.stat().st_size - _DIGITS
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while left > 0 and (block := content.read(min(_BLOCK_BYTES, left))):
            digest.update(block)
            left -= len(block)
        recorded = content.read(_DIGITS)
    if len(recorded) != _DIGITS or not all(byte in b"0123456789abcdef" for byte in recorded):
        raise FileFormatError(
            f"calibration set {file}: it is truncated, or no calibration set: its last {_DIGITS} bytes are no SHA-256.",
            hint=_AGAIN,
        )
    return digest.hexdigest(), recorded.decode("ascii")


def _looks_like_a_set(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return HEADER in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _parse(text: bytes, file: Path) -> CalibrationHeader:
    try:
        data = json.loads(text)
        found = data.get("format") if isinstance(data, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise FileFormatError(
                f"calibration set {file}: its format is {found}, this edge_sdk reads format {FORMAT}.",
                hint=_AGAIN,
            )
        return parse_settings(data, CalibrationHeader, str(file))
    except RecipeError as error:
        raise FileFormatError(f"calibration set {error}", hint=_AGAIN) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(
            f"calibration set {file}: its {HEADER} is not readable: {error}.", hint=_AGAIN
        ) from error


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry without a date, so that the same content makes the same bytes."""
    return zipfile.ZipInfo(name)


def _histogram(distances: Iterable[int]) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(list(distances)))


def _foreign(file: Path) -> FileFormatError:
    return FileFormatError(f"{file}: not a calibration set.", hint=_AGAIN)


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."
