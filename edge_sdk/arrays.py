"""Many arrays and a header in one sealed file: written as they come, whole or not there, and known by their hash.

    header.json            JSON: what the file is
    ANY/NAME.npy           an array

The file is a zip that ``numpy.load`` reads too. Its comment, the last 64 bytes, is the hex SHA-256 of everything before
it, so a file with any byte changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_sdk.errors import ChecksumError, FileFormatError, OutputError, RecipeError
from edge_sdk.files import atomic_file, require_file
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.tensors import TensorSpec

HEADER = "header.json"
# Of one array beyond its content: the header of its .npy, and its two entries in the zip.
OVERHEAD_BYTES = 512

_DIGITS = 64
_BLOCK_BYTES = 1 << 20
# Beyond 2 GiB an entry of a zip needs fields that it is given beforehand.
_LARGE_BYTES = 1 << 30

H = TypeVar("H", bound=Settings)


@dataclass(frozen=True)
class FileKind:
    """One kind of sealed file.

    Args:
        name: in messages, such as ``"calibration set"``; the header's ``kind`` is ``"edge_sdk NAME"``.
        format: the version that is read; the header's ``format``.
        again: how to make one again; ends every message.
    """

    name: str
    format: int
    again: str

    @property
    def mark(self) -> str:
        """The header's ``kind``."""
        return f"edge_sdk {self.name}"


class SealedArrays:
    """An opened file, whose content is what was written; made by :meth:`open` or :func:`write_arrays`.

    Args:
        path: the file.
        kind: what it is.
        sha256: its identity, hex.
        names: of its arrays' files.
        header: its header as JSON gives it.
    """

    def __init__(
        self, path: Path, kind: FileKind, sha256: str, names: frozenset[str], header: dict[str, Any]
    ) -> None:
        self.path, self.kind, self.sha256, self.names, self._header = path, kind, sha256, names, header

    @classmethod
    def open(cls, path: str | Path, kind: FileKind) -> SealedArrays:
        """Open a file; all of it is read once to compare its hash.

        Raises:
            MissingFileError: no file there.
            ChecksumError: it is not what was written.
            FileFormatError: it is truncated, of another kind or of another format.
        """
        file = require_file(path, kind.name, hint=kind.again)
        digest, recorded = _digests(file, kind)
        if digest != recorded:
            raise ChecksumError(
                f"{kind.name} {file}: it is damaged or was changed: expected SHA-256 {recorded[:12]}..., "
                f"got {digest[:12]}....",
                hint=kind.again,
            )
        return cls._unread(file, kind, digest)

    @classmethod
    def _unread(cls, file: Path, kind: FileKind, digest: str) -> SealedArrays:
        header = _header_of(file)
        if header is None or header.get("kind") != kind.mark:
            raise FileFormatError(f"{file}: expected a {kind.name}, it is none.", hint=kind.again)
        if header.get("format") != kind.format:
            raise FileFormatError(
                f"{kind.name} {file}: its format is {header.get('format')}, this edge_sdk reads format {kind.format}.",
                hint=kind.again,
            )
        with zipfile.ZipFile(file) as archive:
            return cls(file, kind, digest, frozenset(archive.namelist()), header)

    def header(self, kind: type[H]) -> H:
        """The header as settings of type ``kind``.

        Raises:
            FileFormatError: naming every bad key.
        """
        try:
            return parse_settings(self._header, kind, f"{self.kind.name} {self.path}")
        except RecipeError as error:
            raise FileFormatError(str(error), hint=self.kind.again) from None

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def require(self, member: str) -> None:
        """Refuse a file that lacks an array that its header names.

        Raises:
            FileFormatError: it does.
        """
        if member not in self.names:
            raise FileFormatError(f"{self.kind.name} {self.path}: it lacks '{member}'.", hint=self.kind.again)

    @contextmanager
    def reading(self) -> Iterator[ArrayReader]:
        """Read arrays within the block."""
        with zipfile.ZipFile(self.path) as archive:
            yield ArrayReader(self, archive)


class ArrayReader:
    """Reads arrays of one file; made by :meth:`SealedArrays.reading`."""

    def __init__(self, file: SealedArrays, archive: zipfile.ZipFile) -> None:
        self._file, self._archive = file, archive
        self._held: dict[str, np.ndarray] = {}

    def read_all(self, members: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> dict[str, np.ndarray]:
        """Read-only arrays by name; those that the last call gave too are not read again.

        Args:
            members: the array's file by name.
            specs: expected shape and dtype by name.

        Raises:
            ChecksumError: the file changed since it was opened.
            FileFormatError: an array is not what its spec says.
        """
        wanted = {member: specs[name] for name, member in members.items()}
        self._held = {
            member: self._held[member] if member in self._held else self._read(member, spec)
            for member, spec in wanted.items()
        }
        return {name: self._held[member] for name, member in members.items()}

    def _read(self, member: str, spec: TensorSpec) -> np.ndarray:
        kind = self._file.kind
        where = f"{kind.name} {self._file.path}: '{member}'"
        try:
            with self._archive.open(member) as content:
                array: np.ndarray = np.lib.format.read_array(content, allow_pickle=False)
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError) as error:
            raise ChecksumError(f"{where} changed since it was opened: {error}.", hint=kind.again) from error
        if (array.shape, str(array.dtype)) != (spec.shape, spec.dtype):
            raise FileFormatError(
                f"{where}: expected {spec.shape} {spec.dtype}, got {array.shape} {array.dtype}.",
                hint=kind.again,
            )
        array.flags.writeable = False
        return array


class ArrayWriter:
    """Writes array by array, so that memory does not grow with the file; made by :func:`write_arrays`."""

    def __init__(self, archive: zipfile.ZipFile, target: Path, kind: FileKind) -> None:
        self._archive, self._target, self._kind = archive, target, kind

    def write(self, member: str, array: np.ndarray, *, compress: bool = False) -> None:
        """Store one array now; the caller may change it afterwards.

        Raises:
            OutputError: the file system refuses, such as for want of space.
        """
        entry = zipfile.ZipInfo(member)  # without a date: the same content makes the same bytes
        entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        large = array.nbytes > _LARGE_BYTES
        with self._refusals_named(), self._archive.open(entry, "w", force_zip64=large) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def finish(self, header: Settings) -> None:
        """Write the header; nothing can be added afterwards."""
        data = {"kind": self._kind.mark, "format": self._kind.format, **header.model_dump(mode="json")}
        with self._refusals_named():
            self._archive.writestr(zipfile.ZipInfo(HEADER), json.dumps(data, indent=1))
            self._archive.comment = b"0" * _DIGITS
            self._archive.close()

    @contextmanager
    def _refusals_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._target}: cannot be written ({error.strerror}).",
                hint="Check the space left there, or record fewer frames.",
            ) from error


@contextmanager
def write_arrays(path: str | Path, kind: FileKind) -> Iterator[ArrayWriter]:
    """Write a file that is there when the block has ended and :meth:`ArrayWriter.finish` was called, and not before.

    Raises:
        OutputError: nothing can be written there, or something else than a file of this kind is there.
    """
    target = Path(path)
    require_arrays_place(target, kind)
    with atomic_file(target) as temporary:
        archive = zipfile.ZipFile(temporary, "w", compresslevel=1)
        try:
            yield ArrayWriter(archive, target, kind)
        except BaseException:
            with suppress(OSError):  # what it would still write goes to a file that is removed
                archive.close()
            raise
        digest, _ = _digests(temporary, kind)
        with temporary.open("r+b") as file:
            file.seek(-_DIGITS, 2)
            file.write(digest.encode())


def just_written(path: Path, kind: FileKind) -> SealedArrays:
    """The file that was written to ``path`` a moment ago, without reading its arrays again."""
    with zipfile.ZipFile(path) as archive:
        digest = archive.comment.decode("ascii")
    return SealedArrays._unread(path, kind, digest)


def require_arrays_place(target: Path, kind: FileKind) -> None:
    """Refuse a place where something else than a file of this kind lies.

    Raises:
        OutputError: it does.
    """
    if target.is_file() and (_header_of(target) or {}).get("kind") != kind.mark:
        raise OutputError(f"{target}: something else than a {kind.name} is there.", hint="Name another file.")


def _digests(file: Path, kind: FileKind) -> tuple[str, str]:
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
            f"{kind.name} {file}: it is truncated, or no {kind.name}: its last {_DIGITS} bytes are no SHA-256.",
            hint=kind.again,
        )
    return digest.hexdigest(), recorded.decode("ascii")


def _header_of(file: Path) -> dict[str, Any] | None:
    """The header of a sealed file; None where it is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read(HEADER))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError):
        return None
    return data if isinstance(data, dict) else None
