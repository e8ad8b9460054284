"""Recorded sources joined and played again as one stream, and labels whose values are mapped to class ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ClosedError, EdgeSdkError, MissingFileError, RecipeError, VideoError
from edge_sdk.video import Frame, JoinedSource, Selection, VideoSource, open_source
from edge_sdk.video.base import SourceBase
from edge_sdk.video.labels import label_table, parse_labels
from edge_sdk.video.uri import is_live, recorded_paths, without_password
from tests.videos import index_of, picture, write_image, write_video

# Pictures of the parts, so that a frame tells which part it is of.
FIRST, SECOND = range(0, 4), range(10, 13)


def write_folder(folder: Path, indices: range, height: int = 48) -> Path:
    for index in indices:
        write_image(folder / "images" / f"{index}.png", picture(index, height))
        label = np.zeros((height, 64), np.uint8)
        label[:8], label[8:16] = 255, 7
        write_image(folder / "labels" / f"{index}.png", label)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_folder(root / "first", FIRST)
    write_folder(root / "second", SECOND)
    write_folder(root / "small", range(2), height=40)
    write_folder(root / "with, comma", range(20, 22))
    write_video(root / "clip.avi", count=3, fps=12.5)
    return root


class Part(SourceBase):
    """``count`` frames whose first pixel is their number from ``first``."""

    def __init__(self, first: int, count: int, *, known: bool = True, live: bool = False) -> None:
        super().__init__(f"part {first}")
        self.first, self.count, self.live = first, count, live
        self.size_hw, self.fps = (2, 2), 10.0
        self.frame_count = count if known else None

    def _frames(self) -> Iterator[Frame]:
        for seq in range(self.count):
            yield Frame(np.full((2, 2, 3), self.first + seq, np.uint8), seq, seq / self.fps)
            self._require_open()

    def _release(self) -> None:
        self.released = True


def test_numbers_and_times_run_on(clips: Path) -> None:
    uri = f"joined:{clips}/first?fps=10,{clips}/second?fps=10"
    with open_source(uri) as source:
        assert (source.size_hw, source.fps, source.frame_count, source.live) == ((48, 64), 10.0, 7, False)
        for _ in range(2):  # each iter() starts anew
            frames = list(source)
            assert [index_of(frame.image) for frame in frames] == [*FIRST, *SECOND]
            assert [frame.seq for frame in frames] == list(range(7))
            assert [frame.captured_s for frame in frames] == [index / 10 for index in range(7)]
            assert all(frame.truth is not None for frame in frames)
    assert source.uri == uri


def test_options_of_the_whole_are_each_parts_unless_it_has_its_own(clips: Path) -> None:
    with open_source(f"joined:{clips}/first,{clips}/second?labels=0#fps=5&loop=2&labels=255:1,7:2") as source:
        assert (source.fps, source.frame_count) == (5.0, 14)
        truths = [frame.truth for frame in source]
    assert [truth is not None for truth in truths] == ([True] * 4 + [False] * 3) * 2
    mask = truths[0].mask if truths[0] is not None else None
    assert mask is not None
    assert [int(mask[row, 0]) for row in (0, 8, 16)] == [1, 2, 0]


def test_files_folders_and_scenes_are_joined(clips: Path) -> None:
    scene = "synthetic:shapes?height=48&width=64&frames=2&fps=12.5"
    with open_source(f"joined:{clips}/clip.avi,{clips}/first?fps=12.5,{scene}") as source:
        assert [index_of(frame.image) for frame in source][:7] == [0, 1, 2, *FIRST]
        assert source.frame_count == 9


def test_comma_in_a_name_is_written_as_a_file_address(clips: Path) -> None:
    address = f"file://{clips}/with%2C%20comma"
    with open_source(f"joined:{address},{clips}/first") as source:
        assert source.frame_count == 6
    assert recorded_paths(f"joined:{address},synthetic:shapes") == (clips / "with, comma",)


@pytest.mark.parametrize("name", ["clip.avi?loop=3", "first?loop=3&fps=12.5"])
def test_loop(clips: Path, name: str) -> None:
    count = 3 if "clip" in name else 4
    with open_source(f"{clips}/{name}") as source:
        assert (source.frame_count, source.fps) == (3 * count, 12.5)
        frames = list(source)
    assert [index_of(frame.image) for frame in frames] == 3 * list(range(count))
    assert [frame.seq for frame in frames] == list(range(3 * count))
    assert frames[-1].captured_s == (3 * count - 1) / 12.5


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    times=st.integers(1, 3),
    start=st.integers(0, 12),
    limit=st.none() | st.integers(1, 20),
    stride=st.integers(1, 6),
    known=st.booleans(),
)
def test_selection_is_of_the_whole(
    counts: list[int], times: int, start: int, limit: int | None, stride: int, known: bool
) -> None:
    parts: list[VideoSource] = [Part(10 * at, count, known=known) for at, count in enumerate(counts)]
    whole = [10 * at + seq for _ in range(times) for at, count in enumerate(counts) for seq in range(count)]
    wanted = list(range(start, len(whole), stride))[:limit]
    selection = Selection(start, limit, stride)
    if not wanted:
        with pytest.raises(VideoError, match="no frames to deliver"):
            list(JoinedSource(parts, times=times, selection=selection, uri="it"))
        return
    source = JoinedSource(parts, times=times, selection=selection, uri="it")
    frames = list(source)
    assert source.frame_count == (len(wanted) if known else None)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [whole[index] for index in wanted]
    assert [frame.seq for frame in frames] == list(range(len(wanted)))
    assert [frame.captured_s for frame in frames] == [index / 10.0 for index in wanted]
    assert source.fps == 10.0 / stride


def test_closing_closes_every_part() -> None:
    parts = [Part(0, 2), Part(10, 2)]
    source = JoinedSource(parts, uri="it")
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert all(part.released for part in parts)
    with pytest.raises(ClosedError):
        next(frames)
    with pytest.raises(ClosedError):
        iter(source)


@pytest.mark.parametrize(
    ("parts", "times", "message"),
    [([], 1, "expected at least one"), ([Part(0, 1)], 0, "0 times"), ([Part(0, 1, live=True)], 1, "is live")],
)
def test_joined_refuses(parts: list[VideoSource], times: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        JoinedSource(parts, times=times, uri="it")


BAD = [
    ("joined:", RecipeError, "an empty source.*%2C"),
    ("joined:{clips}/first,", RecipeError, "an empty source"),
    ("joined:{clips}/first,camera:0", RecipeError, "recorded sources, got one of kind camera"),
    ("joined:{clips}/first,joined:{clips}/second", RecipeError, "got one of kind joined"),
    ("joined:{clips}/first,{clips}/nowhere", MissingFileError, "nowhere, found none"),
    (
        "joined:{clips}/first,{clips}/small",
        VideoError,
        "small: its frames are 40 x 64, those of .*first 48 x 64",
    ),
    ("joined:{clips}/first,{clips}/clip.avi", VideoError, "12.5 frames a second, .*first 30.*fps="),
    ("joined:{clips}/first#loop=0", RecipeError, "'loop'.*greater than or equal to 1"),
    ("joined:{clips}/first#speed=2", RecipeError, "unknown key 'speed'"),
    ("joined:{clips}/first#loop=2&loop=3", RecipeError, "a key is given twice"),
    ("{clips}/first?loop=-1", RecipeError, "'loop'"),
    ("{clips}/clip.avi?loop=often", RecipeError, "'loop'.*integer"),
    ("{clips}/first?labels=255", RecipeError, "'labels': expected 0, 1 or VALUE:CLASS"),
    ("{clips}/first?labels=255:1,255:2", RecipeError, "each value once"),
    ("{clips}/first?labels=300:1", RecipeError, "values and class ids of 0-255, got 300"),
    ("{clips}/first/images?labels=255:1", MissingFileError, "images/ and labels/"),
]


@pytest.mark.parametrize(("uri", "error", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_uris(clips: Path, uri: str, error: type[EdgeSdkError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(uri.format(clips=clips))


def test_a_password_in_a_joined_uri_is_not_shown() -> None:
    uri = "joined:a.mp4,rtsp://me:se,cret@host/live"
    assert without_password(uri) == "joined:***"
    with pytest.raises(RecipeError) as caught:
        open_source(uri)
    assert "cret" not in str(caught.value)
    shown = "joined:file:///a.mp4,b"
    assert without_password(shown) == shown


def test_joined_is_recorded() -> None:
    assert not is_live("joined:a.mp4,b.mp4")
    assert recorded_paths("joined:a.mp4?fps=3,b") == (Path("a.mp4"), Path("b"))
    assert recorded_paths("camera:0") == ()


@given(st.dictionaries(st.integers(0, 255), st.integers(0, 255), min_size=1, max_size=6))
def test_label_values_survive_their_text(values: dict[int, int]) -> None:
    text = ",".join(f"{value}:{class_id}" for value, class_id in values.items())
    assert parse_labels(text) == values
    table = label_table(values)
    assert [int(table[value]) for value in range(256)] == [values.get(value, value) for value in range(256)]
