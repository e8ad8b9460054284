"""Calibration sets as files: what is not whole, not one, or of another pair is refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.arrays import HEADER
from edge_sdk.bundle import Bundle
from edge_sdk.compile.calibrate import calibrate
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.errors import (
    BundleError,
    ChecksumError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
)
from tests.calibration_world import SIZE, make_clips, moving, recipe
from tests.graphs import PAIRS, per_frame


@pytest.fixture
def recorded(tmp_path: Path) -> CalibrationSet:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    return calibrate(recipe(tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    PAIRS["chaining"](SIZE).write(folder / "bundle")
    make_clips(folder / "clips", moving(2, 3))
    return calibrate(recipe(folder)).path


@given(data=st.data())
def test_a_set_with_any_byte_changed_is_refused(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file = whole.parent / "changed.npz"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"changed\.npz: .*edge-sdk calibrate RECIPE"):
        CalibrationSet.open(file)


@given(data=st.data())
def test_a_set_that_is_cut_is_refused(whole: Path, data: st.DataObject) -> None:
    content = whole.read_bytes()
    file = whole.parent / "cut.npz"
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(FileFormatError, match=r"cut\.npz: .*edge-sdk calibrate RECIPE"):
        CalibrationSet.open(file)


def resealed(whole: Path, file: Path, change: dict[str, Any] | None) -> Path:
    """A set whose hash is right and whose header says something else, or is not there."""
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == HEADER:
                if change is None:
                    continue
                content = json.dumps({**json.loads(content), **change}).encode()
            new.writestr(name, content)
        new.comment = b"0" * 64
    body = file.read_bytes()[:-64]
    file.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return file


LOST = {"step": "delta", "clip": 0, "distance": 1, "inputs": {"frame": "clip_000/001/lost.npy"}}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (None, FileFormatError, "expected a calibration set, it is none"),
        ({"format": 2}, FileFormatError, "its format is 2, this edge_sdk reads format 1"),
        ({"bundel": "x"}, FileFormatError, "unknown key 'bundel', did you mean 'bundle'?"),
        ({"counts": 3}, FileFormatError, "'counts'"),
        ({"passes": [LOST]}, FileFormatError, r"it lacks 'clip_000/001/lost\.npy'"),
    ],
)
def test_a_foreign_set_is_refused(
    whole: Path, tmp_path: Path, change: dict[str, Any] | None, error: type[EdgeSdkError], message: str
) -> None:
    with pytest.raises(error, match=message):
        CalibrationSet.open(resealed(whole, tmp_path / "other.npz", change))


@pytest.mark.parametrize("content", [b"", b"no set\n" * 99, b"0" * 64], ids=["empty", "text", "digits"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileFormatError, match=r"a\.npz: .*edge-sdk calibrate RECIPE"):
        CalibrationSet.open(tmp_path / "a.npz")
    with pytest.raises(MissingFileError, match=r"calibration set: expected a file at .*b\.npz"):
        CalibrationSet.open(tmp_path / "b.npz")


def test_a_file_that_changes_after_it_was_opened_is_noticed(recorded: CalibrationSet) -> None:
    content = bytearray(recorded.path.read_bytes())
    with zipfile.ZipFile(recorded.path) as archive:
        place = archive.getinfo("clip_001/000/frame.npy").header_offset + 300
    content[place] ^= 1
    recorded.path.write_bytes(content)
    with pytest.raises(ChecksumError, match=r"'clip_001/000/frame\.npy' changed since it was opened"):
        list(recorded.passes("keyframe"))


def test_a_set_fits_its_own_pair_alone(recorded: CalibrationSet, tmp_path: Path) -> None:
    recorded.check_for(Bundle.open(tmp_path / "bundle"))
    with pytest.raises(
        BundleError, match=r"another pair, 'tiny-residual': its delta graph is \w{12}\.\.\., that of"
    ):
        recorded.check_for(PAIRS["chaining"](SIZE).write(tmp_path / "other"))
    with pytest.raises(BundleError, match=r"its delta graph is \w{12}\.\.\., that of bundle .* is none"):
        recorded.check_for(per_frame(SIZE).write(tmp_path / "single"))
