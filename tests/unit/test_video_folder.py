from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import EdgeSdkError, MissingFileError, VideoError
from edge_sdk.video import FrameFolder, open_source
from tests.videos import index_of, picture, write_image


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for index in range(12):
        write_image(tmp_path / "clip" / "images" / f"f{index}.png", picture(index))
        write_image(tmp_path / "clip" / "labels" / f"f{index}.png", np.full((48, 64), index, np.uint8))
    return tmp_path / "clip"


def test_folder_is_sorted_naturally(labelled: Path) -> None:
    (labelled / "images" / ".hidden.png").touch()
    (labelled / "images" / "notes.txt").touch()
    with open_source(f"{labelled}?fps=15") as source:
        assert (source.size_hw, source.fps, source.frame_count) == ((48, 64), 15.0, 12)
        frames = list(source)
    assert [index_of(f.image) for f in frames] == list(range(12))  # f2 before f10
    assert [
        int(f.truth.mask[0, 0]) for f in frames if f.truth is not None and f.truth.mask is not None
    ] == list(range(12))
    assert frames[3].captured_s == 3 / 15
    assert open_source(labelled).fps == 30.0


def test_folder_without_labels(labelled: Path) -> None:
    assert all(f.truth is None for f in open_source(f"{labelled}?labels=0"))
    assert all(f.truth is None for f in open_source(labelled / "images"))
    shutil.rmtree(labelled / "labels")
    assert all(f.truth is None for f in open_source(labelled))


def broken(labelled: Path, how: str) -> None:
    images, labels = labelled / "images", labelled / "labels"
    if how == "label missing":
        (labels / "f4.png").unlink()
    elif how == "label of another size":
        write_image(labels / "f4.png", np.zeros((24, 32), np.uint8))
    elif how == "label in colour":
        write_image(labels / "f4.png", np.zeros((48, 64, 3), np.uint8))
    elif how == "label of 16 bits":
        write_image(labels / "f4.png", np.zeros((48, 64), np.uint16))
    elif how == "frame of another size":
        write_image(images / "f4.png", picture(0, 24, 32))
    elif how == "frame truncated":
        data = (images / "f4.png").read_bytes()
        (images / "f4.png").write_bytes(data[: len(data) // 2])
    elif how == "frame is text":
        (images / "f4.png").write_text("not an image")
    elif how == "two of one stem":
        write_image(images / "f4.jpg", picture(4))
    elif how == "first frame empty":
        (images / "f0.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (
            "label missing",
            MissingFileError,
            r"expected a label f4\.png, found none \(1 of 12 are missing\).*labels=0",
        ),
        ("label of another size", VideoError, r"f4\.png: the label is 24 x 32, its frame 48 x 64.*nearest"),
        (
            "label in colour",
            VideoError,
            r"f4\.png: expected a label of one byte a pixel, got \(48, 64, 3\) uint8",
        ),
        ("label of 16 bits", VideoError, r"f4\.png: .*got \(48, 64\) uint16"),
        ("frame of another size", VideoError, r"f4\.png: 24 x 32, but the first frame f0\.png is 48 x 64"),
        ("frame truncated", VideoError, r"f4\.png: cannot be decoded, truncated or not an image"),
        ("frame is text", VideoError, r"f4\.png: cannot be decoded, .* \(12 bytes\)"),
        ("two of one stem", VideoError, r"two images named 'f4' share one label"),
        ("first frame empty", VideoError, r"f0\.png: cannot be decoded, .* \(0 bytes\)"),
    ],
)
def test_broken_folder(labelled: Path, how: str, error: type[EdgeSdkError], message: str) -> None:
    broken(labelled, how)
    with pytest.raises(error, match=message):
        list(open_source(labelled))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_every_truncation_of_an_image_is_noticed(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    write_image(tmp_path / f"0{suffix}", image)
    data = (tmp_path / f"0{suffix}").read_bytes()
    assert next(iter(FrameFolder(tmp_path))).image.shape == (40, 40, 3)
    for keep in range(0, len(data) - 12, 97):
        (tmp_path / f"0{suffix}").write_bytes(data[:keep])
        with pytest.raises(VideoError, match="truncated"):
            FrameFolder(tmp_path)


def test_jpeg_with_a_thumbnail_and_a_tail_is_whole(tmp_path: Path) -> None:
    good, coded = cv2.imencode(".jpg", picture(3))
    assert good
    data = coded.tobytes()
    extra = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data  # a segment that holds a JPEG of its own
    whole = data[:2] + extra + data[2:]
    (tmp_path / "0.jpg").write_bytes(whole + b"tail of a phone \xff\xda")
    assert index_of(next(iter(FrameFolder(tmp_path))).image) == 3
    (tmp_path / "0.jpg").write_bytes(whole[: -len(data) // 2])  # the thumbnail's end is not the picture's
    with pytest.raises(VideoError, match="truncated"):
        FrameFolder(tmp_path)
