"""Features of frames in TFRecord files, in the frame-level layout of YouTube-8M.

A file is a row of records: 8 bytes of length, its checksum, the record, its checksum. A record is the message
``tensorflow.SequenceExample``:

    context        id (or video_id): bytes; labels: class numbers
    feature_lists  rgb: of each frame 1024 bytes; audio: of each frame 128 bytes

The messages are made here from their published definition (tensorflow/core/example), in a pool of their own, so that
neither TensorFlow nor a package that defines the same names disturbs it. The PyPI package ``tfrecord`` passes over the
checksums, and a byte that was lost on the way would go into the training.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from edge_sdk.errors import FileFormatError, MissingFileError, RecipeError
from edge_sdk.files import require_file
from edge_sdk.optional import require
from edge_sdk.settings import Settings, parse_settings
from edge_sdk.video.folder import natural_key
from edge_sdk.video.labelled import FEATURE_SUFFIXES
from edge_sdk.video.uri import SourceUri, parse_source_uri

# A record of the largest YouTube-8M clip has about half a megabyte; a damaged length is not worth trying to read.
_LARGEST_RECORD = 1 << 28
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True, eq=False)
class FeatureClip:
    """One clip.

    Attributes:
        name: its id.
        labels: class numbers.
        values: (frames, D) uint8, the feature lists side by side.
    """

    name: str
    labels: tuple[int, ...]
    values: np.ndarray


class _FeatureQuery(Settings):
    """Options of a file or folder of features."""

    lists: tuple[str, ...] = ("rgb", "audio")
    clips: int | None = Field(default=None, ge=1)

    @field_validator("lists", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        names = tuple(value.split(",")) if isinstance(value, str) else value
        if not all(names) or len(set(names)) != len(names):
            raise ValueError("expected names of feature lists, separated by ','")
        return names


def is_features(uri: str | Path) -> bool:
    """Whether ``uri`` names a TFRecord file, or a folder that holds some."""
    parsed = parse_source_uri(str(uri))
    path = Path(parsed.target)
    return parsed.scheme == "path" and (
        path.suffix.lower() in FEATURE_SUFFIXES or (path.is_dir() and bool(_files_in(path)))
    )


def features_of(uri: str | Path, length: int) -> Iterator[FeatureClip]:
    """Clips of a TFRecord file, or of all those in a folder in natural order of their names.

    ``?lists=rgb`` takes that feature list alone (default: ``rgb,audio``, side by side in this order), ``?clips=N`` the
    first N clips.

    Args:
        uri: the file or folder.
        length: frames to keep of each clip, the first ones; a shorter clip stays as short as it is.

    Raises:
        MissingFileError: no such file or folder.
        RecipeError: a query key or value that is not known.
        FileFormatError: a damaged file, or one of another layout; the record is named.
        DependencyError: a package that reads them is not installed.
    """
    parsed = parse_source_uri(str(uri))
    where = f"features {parsed.text}"
    query = parse_settings(parsed.query, _FeatureQuery, where)
    count = 0
    for file in _files(parsed):
        for number, record in enumerate(read_records(file)):
            if query.clips is not None and count == query.clips:
                return
            yield _clip(record, query.lists, length, f"{file}, record {number}")
            count += 1
    if not count:
        raise FileFormatError(f"{where}: expected at least one clip, found none.")


def _files_in(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in FEATURE_SUFFIXES), key=natural_key)


def _files(parsed: SourceUri) -> list[Path]:
    path = Path(parsed.target)
    if parsed.scheme != "path":
        raise RecipeError(f"features {parsed.text}: expected a TFRecord file or a folder of them.")
    if not path.is_dir():
        return [require_file(path, "features", hint="Check the path.")]
    files = _files_in(path)
    if not files:
        raise MissingFileError(
            f"features: expected files {' '.join(FEATURE_SUFFIXES)} in {path}, found none."
        )
    return files


def read_records(path: str | Path) -> Iterator[bytes]:
    """The records of a TFRecord file, their checksums checked.

    Raises:
        MissingFileError: no file there.
        FileFormatError: it is truncated or damaged; the record is named.
        DependencyError: the package ``crc32c`` is not installed.
    """
    file_path = require_file(path, "features")
    with file_path.open("rb") as file:
        number = 0
        while head := file.read(12):
            where = f"{file_path}, record {number}"
            length = struct.unpack("<Q", _checked(head, 8, where))[0]
            if length > _LARGEST_RECORD:
                raise _damaged(where, f"it has {length} bytes")
            yield _checked(file.read(length + 4), length, where)
            number += 1


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a TFRecord file, as for features of one's own."""
    from edge_sdk.files import atomic_file

    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for record in records:
            for part in (struct.pack("<Q", len(record)), record):
                file.write(part + struct.pack("<I", checksum(part)))


def checksum(data: bytes) -> int:
    """The masked CRC-32C of TFRecord files."""
    value = int(require("crc32c", "reading TFRecord files").crc32c(data))
    return ((value >> 15 | value << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _checked(data: bytes, length: int, where: str) -> bytes:
    """``data`` without the checksum behind its first ``length`` bytes."""
    if len(data) < length + 4:
        raise _damaged(where, "the file ends in it")
    if struct.unpack("<I", data[length : length + 4])[0] != checksum(data[:length]):
        raise _damaged(where, "its checksum is wrong")
    return data[:length]


def _damaged(where: str, why: str) -> FileFormatError:
    return FileFormatError(
        f"{where}: not readable, {why}.",
        hint="Copy the file again; it must be an uncompressed TFRecord file.",
    )


def _clip(record: bytes, lists: tuple[str, ...], length: int, where: str) -> FeatureClip:
    example = sequence_example()()
    try:
        example.ParseFromString(record)
    except require("google.protobuf.message", "reading TFRecord files").DecodeError as error:
        raise FileFormatError(f"{where}: no SequenceExample: {error}.") from error
    context = example.context.feature
    name: Any = next((context[key].bytes_list.value for key in ("id", "video_id") if key in context), [])
    if len(name) != 1 or "labels" not in context:
        raise FileFormatError(f"{where}: expected 'id' and 'labels' in its context, got {sorted(context)}.")
    there = example.feature_lists.feature_list
    columns = []
    for key in lists:
        if key not in there:
            raise FileFormatError(
                f"{where}: expected the feature list '{key}', got {sorted(there)}.",
                hint="Name the lists to read: ?lists=rgb; video-level files have none.",
            )
        columns.append(_column(there[key].feature[:length], f"{where}, list '{key}'"))
    if len({len(column) for column in columns}) != 1:
        got = ", ".join(f"{len(column)} in '{key}'" for key, column in zip(lists, columns, strict=True))
        raise FileFormatError(f"{where}: expected as many frames in every feature list, got {got}.")
    labels = tuple(int(label) for label in context["labels"].int64_list.value)
    return FeatureClip(name[0].decode(errors="replace"), labels, np.concatenate(columns, 1))


def _column(frames: Any, where: str) -> np.ndarray:
    """One feature list, (frames, bytes) uint8."""
    rows = [frame.bytes_list.value for frame in frames]
    if not rows or any(len(row) != 1 or len(row[0]) != len(rows[0][0]) or not row[0] for row in rows):
        raise FileFormatError(f"{where}: expected a string of bytes for each frame, all of one length.")
    return np.frombuffer(b"".join(row[0] for row in rows), np.uint8).reshape(len(rows), -1)


@functools.cache
def sequence_example() -> Any:
    """The message class ``tensorflow.SequenceExample``."""
    purpose = "reading TFRecord files"
    pb2 = require("google.protobuf.descriptor_pb2", purpose)
    file = pb2.FileDescriptorProto(name="edge_sdk/example.proto", package="tensorflow", syntax="proto3")
    _message(file, "BytesList", ("value", 1, "bytes", "repeated"))
    _message(file, "FloatList", ("value", 1, "float", "repeated"))
    _message(file, "Int64List", ("value", 1, "int64", "repeated"))
    feature = _message(
        file,
        "Feature",
        ("bytes_list", 1, "BytesList", ""),
        ("float_list", 2, "FloatList", ""),
        ("int64_list", 3, "Int64List", ""),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    _map(_message(file, "Features"), "feature", "Feature")
    _message(file, "FeatureList", ("feature", 1, "Feature", "repeated"))
    _map(_message(file, "FeatureLists"), "feature_list", "FeatureList")
    _message(
        file, "SequenceExample", ("context", 1, "Features", ""), ("feature_lists", 2, "FeatureLists", "")
    )
    pool = require("google.protobuf.descriptor_pool", purpose).DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tensorflow.SequenceExample")
    return require("google.protobuf.message_factory", purpose).GetMessageClass(descriptor)


def _message(file: Any, name: str, *fields: tuple[str, int, str, str]) -> Any:
    message = file.message_type.add(name=name)
    for field in fields:
        _field(message, *field)
    return message


def _field(message: Any, name: str, number: int, kind: str, label: str) -> None:
    field = message.field.add(name=name, number=number)
    field.label = field.LABEL_REPEATED if label else field.LABEL_OPTIONAL
    plain = {
        "bytes": field.TYPE_BYTES,
        "float": field.TYPE_FLOAT,
        "int64": field.TYPE_INT64,
        "string": field.TYPE_STRING,
    }
    if kind in plain:
        field.type = plain[kind]
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, f".tensorflow.{kind}"


def _map(message: Any, name: str, kind: str) -> None:
    """A field ``map<string, kind>``."""
    entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
    entry.options.map_entry = True
    _field(entry, "key", 1, "string", "")
    _field(entry, "value", 2, kind, "")
    _field(message, name, 1, f"{message.name}.{entry.name}", "repeated")
