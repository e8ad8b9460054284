"""Masks of a recorded teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.adapt.recorded import RecordedMasks
from edge_sdk.errors import EdgeSdkError, MissingFileError, RecipeError, VideoError
from tests.videos import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        mask = np.full((4, 6), index, np.uint8)
        mask[0] = 255
        write_image(tmp_path / "labels" / f"m{index}.png", mask)
    return tmp_path


def test_masks_in_natural_order(folder: Path) -> None:
    for place in (folder, folder / "labels"):
        masks = RecordedMasks(place, (4, 6))
        assert len(masks) == 12
        assert [int(masks.mask(index)[1, 0]) for index in (0, 2, 10, 11)] == [0, 2, 10, 11]
        assert masks.mask(3).dtype == np.uint8
        assert int(masks.mask(3)[0, 0]) == 255


def test_values_stand_for_classes(folder: Path) -> None:
    masks = RecordedMasks(folder, (4, 6), {255: 1, 2: 0})
    assert [[int(masks.mask(index)[row, 0]) for row in (0, 1)] for index in (1, 2, 3)] == [
        [1, 1],
        [1, 0],
        [1, 3],
    ]


def test_frames_without_a_mask(folder: Path) -> None:
    masks = RecordedMasks(folder, (4, 6))
    with pytest.raises(MissingFileError, match=r"labels: expected a mask of frame 12, found 12 masks"):
        masks.mask(12)
    with pytest.raises(IndexError, match="-1"):
        masks.mask(-1)


def test_each_mask_is_checked_when_it_is_read(folder: Path) -> None:
    write_image(folder / "labels" / "m5.png", np.zeros((5, 6), np.uint8))
    masks = RecordedMasks(folder, (4, 6))
    with pytest.raises(VideoError, match=r"m5\.png: the label is 5 x 6, the frames 4 x 6.*nearest"):
        masks.mask(5)


@pytest.mark.parametrize(
    ("first", "size", "values", "error", "message"),
    [
        ("mask", (6, 4), None, VideoError, r"m0\.png: the label is 4 x 6, the frames 6 x 4"),
        ("colour", (4, 6), None, VideoError, r"m0\.png: expected a label of one byte a pixel"),
        ("text", (4, 6), None, VideoError, r"m0\.png: cannot be decoded"),
        ("mask", (4, 6), {256: 1}, RecipeError, "0-255, got 256"),
        ("mask", (4, 6), {1: -1}, RecipeError, "0-255, got -1"),
        ("none", (4, 6), None, VideoError, "expected images"),
        ("no folder", (4, 6), None, MissingFileError, "recorded masks at .*nowhere"),
    ],
)
def test_refused_at_once(
    folder: Path,
    first: str,
    size: tuple[int, int],
    values: dict[int, int] | None,
    error: type[EdgeSdkError],
    message: str,
) -> None:
    place, path = folder, folder / "labels" / "m0.png"
    if first == "colour":
        write_image(path, np.zeros((4, 6, 3), np.uint8))
    elif first == "text":
        path.write_text("no image")
    elif first == "none":
        place = folder / "empty"
        place.mkdir()
    elif first == "no folder":
        place = folder / "nowhere"
    with pytest.raises(error, match=message):
        RecordedMasks(place, size, values)
