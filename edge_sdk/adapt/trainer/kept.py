"""A version of the weights as a folder: what a trainer goes on from, and what a new bundle is made of."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from edge_sdk.distill.modules import read_checkpoint
from edge_sdk.distill.online import WEIGHTS_KEY
from edge_sdk.errors import CheckpointError
from edge_sdk.files import atomic_folder, sha256_of
from edge_sdk.manifest import FileRecord, Sha256
from edge_sdk.settings import Result

TRAINER_FILE, VERSION_FILE = "trainer.pt", "version.json"
_AGAIN = "Begin again with resume=False."


class KeptVersion(Result):
    """What ``version.json`` says.

    Args:
        version: number of the weights.
        base: SHA-256 of the manifest of the bundle that they belong to.
        files: the files beside this one.
    """

    _what: ClassVar[str] = "kept version"

    format: Literal[1] = 1
    version: int = Field(ge=0)
    base: Sha256
    files: dict[str, FileRecord]


def write_version(
    folder: Path,
    version: int,
    base: str,
    state: Mapping[str, Any],
    graphs: Mapping[str, bytes],
    *,
    durable: bool,
) -> None:
    """Write a version, whole or not at all; one that is there is replaced.

    Args:
        folder: its place.
        version: its number.
        base: SHA-256 of the bundle's manifest.
        state: of the learner.
        graphs: content of the step graphs by file name.
        durable: wait until it is on the disk, so that it outlives a loss of power.

    Raises:
        OutputError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with atomic_folder(folder) as place:
        for name, data in {TRAINER_FILE: buffer.getvalue(), **graphs}.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        files = {
            name: FileRecord(sha256=sha256_of(place / name), size_bytes=(place / name).stat().st_size)
            for name in (TRAINER_FILE, *graphs)
        }
        kept = KeptVersion(version=version, base=base, files=files)
        (place / VERSION_FILE).write_text(kept.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if durable:
            for path in (*(place / name for name in (*files, VERSION_FILE)), place):
                _flush(path)


def read_version(folder: Path, version: int, base: str) -> dict[str, Any]:
    """The learner's state in a kept version.

    Raises:
        MissingFileError: a file is not there.
        FileFormatError: a file is damaged.
        CheckpointError: it is of another bundle, or another version.
    """
    kept = KeptVersion.load(folder / VERSION_FILE)
    if kept.base != base:
        raise CheckpointError(f"{folder}: these weights belong to another bundle.", hint=_AGAIN)
    if kept.version != version:
        raise CheckpointError(f"{folder}: expected version {version}, found {kept.version}.", hint=_AGAIN)
    record, file = kept.files.get(TRAINER_FILE), folder / TRAINER_FILE
    if file.is_file() and (record is None or sha256_of(file) != record.sha256):
        raise CheckpointError(f"{file}: its SHA-256 is not the one that {VERSION_FILE} names.", hint=_AGAIN)
    return read_checkpoint(file)


def pair_weights(base: Path, kept: Path) -> bytes:
    """The weights file of a new bundle: those of the bundle that was learned from, with what was learned.

    Args:
        base: ``online.pt`` of that bundle.
        kept: folder of the version.

    Raises:
        MissingFileError, FileFormatError: a file is not there or damaged.
        CheckpointError: they do not belong together.
    """
    pair: Any = read_checkpoint(base).get(WEIGHTS_KEY)
    learned: Any = read_checkpoint(kept / TRAINER_FILE).get("weights")
    if not isinstance(pair, Mapping) or not isinstance(learned, Mapping):
        raise CheckpointError(
            f"{kept}: expected a trainer's weights for {base}, found something else.", hint=_AGAIN
        )
    for name, value in learned.items():
        if not isinstance(pair.get(name), Tensor) or pair[name].shape != value.shape:
            raise CheckpointError(
                f"{kept}: '{name}' is not in {base}, or of another shape there.", hint=_AGAIN
            )
    buffer = io.BytesIO()
    torch.save({WEIGHTS_KEY: {**pair, **learned}}, buffer)
    return buffer.getvalue()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
