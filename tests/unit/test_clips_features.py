from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from edge_sdk.distill.clips.data import FeatureSet, dequantised, read_clips
from edge_sdk.distill.clips.features import checksum, features_of, is_features, read_records, write_records
from edge_sdk.distill.clips.recipes import ClipData
from edge_sdk.errors import (
    DependencyError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
    RecipeError,
    ShapeError,
)
from edge_sdk.tasks.base import TaskSpec
from tests.feature_files import FOREIGN, record, write_features

TASK = TaskSpec(kind="classification", classes=("a", "b", "c", "d"), multi_label=True)
RNG = np.random.default_rng(0)
LONG = RNG.integers(0, 256, (7, 4), np.uint8)
SHORT = RNG.integers(0, 256, (2, 4), np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir()
    write_features(folder / "t10.tfrecord", record("last", [], rgb=LONG[:3], audio=LONG[:3, :2]))
    write_features(
        folder / "t2.tfrecord",
        record("long", [1, 3], rgb=LONG, audio=LONG[:, :2]),
        record("short", [0], "video_id", rgb=SHORT, audio=SHORT[:, :2]),
    )
    (folder / "notes.txt").touch()
    return folder


def test_file_of_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(FOREIGN)
    (clip,) = features_of(path, 300)
    assert (clip.name, clip.labels) == ("aB3d", (3, 1))
    assert clip.values.tolist() == [[0, 1, 2, 255, 128, 5], [7, 8, 9, 10, 6, 7]]
    again = write_features(tmp_path / "b.tfrecord", *read_records(path))
    assert again.read_bytes() == FOREIGN
    rgb, audio = np.split(clip.values, [4], axis=1)
    write_features(path, record("aB3d", [3, 1], rgb=rgb, audio=audio))
    (ours,) = features_of(path, 300)
    assert (ours.name, ours.labels) == (clip.name, clip.labels)
    assert np.array_equal(ours.values, clip.values)
    assert checksum(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_clips_of_a_folder_in_natural_order(files: Path) -> None:
    clips = list(features_of(files, 5))
    assert [(clip.name, clip.labels) for clip in clips] == [("long", (1, 3)), ("short", (0,)), ("last", ())]
    assert [clip.values.shape for clip in clips] == [(5, 6), (2, 6), (3, 6)]
    assert np.array_equal(clips[0].values, np.hstack((LONG, LONG[:, :2]))[:5])
    (first,) = features_of(f"{files}?lists=audio&clips=1", 300)
    assert np.array_equal(first.values, LONG[:, :2])
    (turned, *_) = features_of(f"{files}?lists=audio,rgb", 300)
    assert np.array_equal(turned.values, np.hstack((LONG[:, :2], LONG)))


def test_what_is_features(files: Path) -> None:
    assert is_features(files)
    assert is_features(f"{files}/t2.tfrecord?clips=1")
    assert not is_features(files.parent)
    assert not is_features("synthetic:motions?clips=3")


def test_set_of_features(files: Path) -> None:
    found = FeatureSet.read([str(files)], 5, TASK)
    assert (len(found), found.length, found.features, found.names) == (3, 5, 6, ("long", "short", "last"))
    assert found.counts.tolist() == [5, 2, 3]
    assert found.targets.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found.targets.dtype == np.float32
    whole = found.take([0, 1])
    clip = whole["clip"].numpy()
    assert clip.dtype == np.float32
    raw = LONG.astype(np.float64) * 4 / 255 + 4 / 512 - 2
    raw = np.hstack((raw, raw[:, :2]))[:5]
    np.testing.assert_allclose(clip[0], raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(clip[1], axis=1), [1, 1, 0, 0, 0], atol=1e-6)
    assert not clip[1, 2:].any()
    assert whole["count"].tolist() == [5, 2]
    assert whole["target"].tolist() == found.targets[:2].tolist()


def test_some_frames_of_features(files: Path) -> None:
    found = FeatureSet.read([str(files)], 5, TASK)
    whole = found.take([2, 1])["clip"].numpy()
    assert np.array_equal(found.take([2, 1], np.array([0, 2, 4]))["clip"], whole[:, [0, 2, 4]])
    own = found.take([2, 1], np.array([[0, 1], [1, 4]]))["clip"].numpy()
    assert np.array_equal(own, np.stack((whole[0, [0, 1]], whole[1, [1, 4]])))
    batch = found.batch(np.random.default_rng(1), 3)
    assert sorted(batch["count"].tolist()) == [2, 3, 5]
    assert found.batch(np.random.default_rng(1), 8, seen=np.array([0]))["clip"].shape == (8, 1, 6)


def test_bytes_as_published() -> None:
    found = dequantised(np.array([0, 128, 255], np.uint8))
    np.testing.assert_allclose(found, [-1.9921875, 0.0156556, 2.0078125], atol=1e-6)
    assert found.dtype == np.float32


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(FOREIGN) - 1), bit=st.integers(0, 7))
def test_any_bit_that_changed_is_found(tmp_path: Path, place: int, bit: int) -> None:
    data = bytearray(FOREIGN)
    data[place] ^= 1 << bit
    path = tmp_path / "a.tfrecord"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="record 0: not readable"):
        list(read_records(path))


def test_any_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    for cut in range(1, len(FOREIGN)):
        path.write_bytes(FOREIGN + FOREIGN[:cut])
        with pytest.raises(FileFormatError, match="record 1: not readable, the file ends in it"):
            list(read_records(path))
    path.write_bytes(FOREIGN * 2)
    assert len(list(read_records(path))) == 2


def test_a_length_beyond_sense_is_not_read(tmp_path: Path) -> None:
    import struct

    head = struct.pack("<Q", 1 << 60)
    (tmp_path / "a.tfrecord").write_bytes(head + struct.pack("<I", checksum(head)) + b"x" * 100)
    with pytest.raises(FileFormatError, match="it has 1152921504606846976 bytes"):
        list(read_records(tmp_path / "a.tfrecord"))


BAD_RECORDS: list[tuple[str, bytes, str]] = [
    ("no message", b"\xff\xff\xff", "record 0: no SequenceExample"),
    (
        "no id",
        record(key="", rgb=LONG, audio=LONG),
        "expected 'id' and 'labels' in its context, got .'labels'.",
    ),
    ("no list", record(rgb=LONG), "expected the feature list 'audio', got .'rgb'.. Name the lists to read"),
    ("video level", record(), "expected the feature list 'rgb', got "),
    (
        "no frames",
        record(rgb=LONG[:0], audio=LONG[:0]),
        "list 'rgb': expected a string of bytes for each frame",
    ),
    (
        "unlike",
        record(rgb=LONG, audio=SHORT),
        "as many frames in every feature list, got 7 in 'rgb', 2 in 'audio'",
    ),
    (
        "widths",
        record(rgb=[[b"ab"], [b"abc"]], audio=SHORT),
        "list 'rgb': expected a string of bytes for each frame",
    ),
    ("strings", record(rgb=[[b"ab", b"cd"]], audio=SHORT[:1]), "expected a string of bytes for each frame"),
    ("empty", record(rgb=[[b""]], audio=SHORT[:1]), "expected a string of bytes for each frame"),
]


@pytest.mark.parametrize(
    ("content", "message"), [row[1:] for row in BAD_RECORDS], ids=[r[0] for r in BAD_RECORDS]
)
def test_bad_record(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_features(tmp_path / "a.tfrecord", content)
    with pytest.raises(FileFormatError, match=message):
        list(features_of(path, 300))


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("?lists=rgb,", RecipeError, "expected names of feature lists, separated by ','"),
        ("?lists=rgb,rgb", RecipeError, "expected names of feature lists"),
        ("?clips=0", RecipeError, "'clips'"),
        ("?clip=1", RecipeError, "unknown key 'clip', did you mean 'clips'"),
        ("/none.tfrecord", MissingFileError, "none.tfrecord, found none"),
        ("/..", MissingFileError, "expected files .tfrecord"),
    ],
)
def test_bad_features(files: Path, query: str, error: type[EdgeSdkError], message: str) -> None:
    with pytest.raises(error, match=message):
        list(features_of(f"{files}{query}", 300))


def test_a_file_of_no_records(tmp_path: Path) -> None:
    write_records(tmp_path / "a.tfrecord", [])
    with pytest.raises(FileFormatError, match="expected at least one clip, found none"):
        list(features_of(tmp_path / "a.tfrecord", 300))


def test_labels_and_widths_that_do_not_fit(files: Path, tmp_path: Path) -> None:
    uri = str(files)
    with pytest.raises(RecipeError, match=r"clip long is labelled 3, expected 0 to 1.*Name every class"):
        FeatureSet.read([uri], 5, TaskSpec(kind="classification", classes=("a", "b"), multi_label=True))
    with pytest.raises(RecipeError, match="expected one label a clip, long has 2"):
        FeatureSet.read([uri], 5, TaskSpec(kind="classification", classes=TASK.classes))
    wide = write_features(tmp_path / "w.tfrecord", record("wide", rgb=LONG, audio=LONG))
    with pytest.raises(ShapeError, match="one width, got 8 in wide and 6 in long"):
        FeatureSet.read([uri, str(wide)], 5, TASK)
    with pytest.raises(RecipeError, match="expected at least one list of clips"):
        FeatureSet.read([], 5, TASK)


def test_features_and_frames_are_kept_apart(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    motions = "synthetic:motions?clips=2"
    data = ClipData(train=(str(files),), length=5)
    assert isinstance(read_clips(data.train, data, TASK), FeatureSet)
    with pytest.raises(RecipeError, match=r"frames or features alone, got features .* and synthetic:motions"):
        read_clips([str(files), motions], data, TASK)
    monkeypatch.setattr("edge_sdk.distill.frames.MEMORY_LIMIT_BYTES", 70)
    with pytest.raises(RecipeError, match=r"2 clips of 5 frames exceed .* GiB of memory"):
        read_clips(data.train, data, TASK)


def test_without_the_package_for_checksums(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(DependencyError, match=r"needs the package crc32c.*edge_sdk\[workstation\]"):
        list(features_of(files, 5))
