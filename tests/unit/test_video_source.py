from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import ClosedError, EdgeSdkError, MissingFileError, RecipeError, VideoError
from edge_sdk.video import Selection, VideoFile, open_source
from tests.videos import FRAMES, index_of, install_fake, picture, write_image, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "clip.mp4", code="mp4v")
    write_video(folder / "clip.avi")
    whole = (folder / "clip.avi").read_bytes()
    (folder / "truncated.avi").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a video\n" * 500)
    (folder / "nothing.mp4").touch()
    (folder / "no frames").mkdir()
    (folder / "no frames" / "notes.txt").touch()
    write_image(folder / "still.png", picture(0))
    return folder


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_file_delivers_every_frame_in_order(videos: Path, name: str) -> None:
    with open_source(str(videos / name)) as source:
        assert (source.size_hw, source.fps, source.frame_count, source.live) == (
            (48, 64),
            12.5,
            FRAMES,
            False,
        )
        frames = list(source)
    assert [index_of(f.image) for f in frames] == list(range(FRAMES))
    assert [f.seq for f in frames] == list(range(FRAMES))
    assert [f.captured_s for f in frames] == [i / 12.5 for i in range(FRAMES)]
    assert all(f.image.flags.c_contiguous and f.image.dtype == np.uint8 and f.truth is None for f in frames)


def selected(folder: Path, kind: str) -> str:
    if kind == "file":
        return str(folder / "clip.avi")
    for index in range(FRAMES):
        write_image(folder / "numbered" / f"{index}.png", picture(index))
    return str(folder / "numbered") + "?fps=12.5"


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("start", "limit", "stride", "expected"),
    [
        (0, 1, 1, [0]),
        (5, None, 7, [5, 12, 19]),
        (20, 9, 1, [20, 21, 22, 23]),
        (3, 2, 10, [3, 13]),
        (23, None, 4, [23]),
    ],
)
def test_selection(
    videos: Path, kind: str, start: int, limit: int | None, stride: int, expected: list[int]
) -> None:
    with open_source(selected(videos, kind), start=start, limit=limit, stride=stride) as source:
        frames = list(source)
        assert source.frame_count == len(expected)
        assert source.fps == 12.5 / stride
    assert [index_of(f.image) for f in frames] == expected
    assert [f.seq for f in frames] == list(range(len(expected)))  # left out on request is not lost
    assert [f.captured_s for f in frames] == [i / 12.5 for i in expected]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    ("part", "selection", "expected"),
    [
        ("start=20", {}, [20, 21, 22, 23]),
        ("start=4&limit=3", {}, [4, 5, 6]),
        ("start=4&limit=6", {"start": 1, "stride": 2}, [5, 7, 9]),
        ("start=4&limit=6", {"start": 1, "stride": 2, "limit": 2}, [5, 7]),
        ("start=4&limit=2&loop=2", {}, [4, 5, 4, 5]),
        ("start=4&limit=2&loop=2", {"start": 1, "limit": 2}, [5, 4]),
        ("limit=99", {"start": 22}, [22, 23]),
    ],
)
def test_a_part_of_a_recording(
    videos: Path, kind: str, part: str, selection: dict[str, Any], expected: list[int]
) -> None:
    uri = selected(videos, kind)
    with open_source(f"{uri}{'&' if '?' in uri else '?'}{part}", **selection) as source:
        assert [index_of(frame.image) for frame in source] == expected


def test_a_part_ends_before_what_is_wanted_of_it(videos: Path) -> None:
    with pytest.raises(RecipeError, match="`start`: expected less than the part's 3 frames, got 3"):
        open_source(f"{videos / 'clip.avi'}?limit=3", start=3)
    with pytest.raises(RecipeError, match=r"'limit': .*greater than or equal to 1"):
        open_source(f"{videos / 'clip.avi'}?limit=0")


@pytest.mark.parametrize("name", ["clip.avi", "numbered", "synthetic:shapes?height=32&width=48&frames=9"])
def test_iterates_again_and_interleaved(videos: Path, name: str) -> None:
    uri = selected(videos, "folder") if name == "numbered" else name if ":" in name else str(videos / name)
    with open_source(uri, limit=6) as source:
        first = [f.image for f in source]
        pairs = [(a.image, b.image) for a, b in zip(source, source)]
    assert len(first) == len(pairs) == 6
    for image, (left, right) in zip(first, pairs):
        assert np.array_equal(image, left)
        assert np.array_equal(image, right)


@pytest.mark.parametrize("name", ["clip.avi", "numbered", "synthetic:shapes?height=32&width=48"])
def test_closed_source_refuses(videos: Path, name: str) -> None:
    uri = selected(videos, "folder") if name == "numbered" else name if ":" in name else str(videos / name)
    source = open_source(uri)
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    with pytest.raises(ClosedError, match="closed"):
        next(frames)
    with pytest.raises(ClosedError, match="open_source"):
        iter(source)
    with pytest.raises(ClosedError), source:
        pass


def test_captures_are_released_on_every_way_out(videos: Path) -> None:
    source = VideoFile(videos / "clip.avi")
    abandoned = iter(source)
    next(abandoned)
    assert len(source._active) == 1
    abandoned.close()  # type: ignore[attr-defined]
    assert source._active == []
    list(source)
    assert source._active == []
    with pytest.raises(VideoError):
        list(VideoFile(videos / "truncated.avi"))
    next(iter(source))
    source.close()
    assert source._active == []


BAD_PATHS = [
    (
        "nowhere.mp4",
        MissingFileError,
        r"expected a video file or a folder of images at .*nowhere\.mp4.*Check the path",
    ),
    ("text.mp4", VideoError, r"text\.mp4: cannot be opened as a video \(6000 bytes\)"),
    ("nothing.mp4", VideoError, r"nothing\.mp4: cannot be opened as a video \(0 bytes\)"),
    ("truncated.mp4", VideoError, r"truncated\.mp4: cannot be opened as a video"),  # its index was at the end
    ("still.png", VideoError, r"still\.png: .*a still image.*folder"),
    (
        "truncated.avi",
        VideoError,
        r"truncated\.avi: ends or cannot be decoded at frame \d+ of the 24 that.*missing=",
    ),
    ("no frames", VideoError, r"expected images .*found none.*Name a folder"),
    ("clip.avi?fsp=15", RecipeError, r"unknown key 'fsp', did you mean 'fps'\?"),
    ("clip.avi?fps=fast", RecipeError, r"'fps': .*number.*got 'fast'"),
    ("clip.avi?fps=-3", RecipeError, r"'fps': .*greater than 0, got '-3'"),
    ("clip.avi?fps=nan", RecipeError, r"'fps': .*finite"),
    ("clip.avi?fps", RecipeError, r"expected \?key=value"),
    ("clip.avi?fps=1&fps=2", RecipeError, r"given twice"),
    ("no frames?labels=perhaps", RecipeError, r"'labels': expected 0, 1 or VALUE:CLASS.*got 'perhaps'"),
]


@pytest.mark.parametrize(("name", "error", "message"), BAD_PATHS, ids=[row[0] for row in BAD_PATHS])
def test_bad_path(videos: Path, name: str, error: type[EdgeSdkError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        list(open_source(str(videos / name)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "expected a path, file://PATH, camera:INDEX, csi://INDEX, .* or joined:SOURCE,SOURCE, got ''"),
        ("http://host/stream", "unknown scheme 'http', expected a path"),
        ("camera:front", "expected camera:INDEX such as camera:0, got 'front'"),
        ("camera:-1", "got '-1'"),
        ("camera:0?hight=720", "unknown key 'hight', did you mean 'height'"),
        ("file://elsewhere/clip.mp4", "got host 'elsewhere'"),
        ("synthetic:cubes", "unknown scene 'cubes', expected one of: shapes"),
        ("synthetic:shapes?colour=1", "unknown key 'colour'"),
        ("synthetic:shapes?height=12.5", "'height': .*integer.*got '12.5'"),
        ("synthetic:shapes?width=8", "'width': .*greater than or equal to 32, got '8'"),
        ("synthetic:shapes?fps=0", "'fps': .*greater than 0"),
        ("synthetic:shapes?frames=0&seed=-1", "'frames'.*'seed'"),
        ("synthetic:shapes?speed=inf", "'speed'"),
    ],
)
def test_bad_uri(uri: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_source(uri)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": -1}, "`start`: expected an integer of at least 0, got -1"),
        ({"limit": 0}, "`limit`: expected an integer of at least 1, got 0"),
        ({"stride": 0}, "`stride`: expected an integer of at least 1, got 0"),
        ({"stride": 1.5}, "`stride`: .* got 1.5"),
        ({"start": True}, "`start`: .* got True"),
    ],
)
def test_bad_selection(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        open_source("synthetic:shapes", **values)


@pytest.mark.parametrize("name", ["clip.avi", "numbered", "synthetic:shapes?frames=24"])
def test_start_beyond_the_end(videos: Path, name: str) -> None:
    uri = selected(videos, "folder") if name == "numbered" else name if ":" in name else str(videos / name)
    with pytest.raises(VideoError, match="no frames to deliver, it has 24 and `start` is 24"):
        open_source(uri, start=24)


def test_truncated_file_gives_its_good_part_where_asked(videos: Path) -> None:
    path = str(videos / "truncated.avi")
    with pytest.raises(VideoError) as caught:
        list(open_source(path))
    good = int(re.findall(r"frame (\d+) of", str(caught.value))[0])
    assert 0 < good < FRAMES
    assert len(list(open_source(path, limit=good))) == good
    assert len(list(open_source(f"{path}?missing={FRAMES - good}"))) == good
    with pytest.raises(VideoError):
        list(open_source(f"{path}?missing={FRAMES - good - 1}"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def install(pictures: list, count: float = 0.0, fps: float = 25.0) -> tuple[Path, list]:
        (tmp_path / "fake.mp4").touch()
        return tmp_path / "fake.mp4", install_fake(monkeypatch, pictures, count, fps)

    return install


@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf"), -1.0, 90000.0])
def test_container_without_a_rate(fake, fps: float) -> None:
    path, made = fake([picture(i) for i in range(3)], count=3, fps=fps)
    with pytest.raises(VideoError, match=r"frame rate is unknown .*\?fps=30"):
        open_source(str(path))
    assert all(c.released for c in made)
    source = open_source(f"{path}?fps=29.97")
    assert source.fps == 29.97
    assert [f.captured_s for f in source] == [0.0, 1 / 29.97, 2 / 29.97]


@pytest.mark.parametrize(
    ("announced", "held", "accepted"),
    [(10, 10, True), (13, 10, True), (14, 10, False), (8, 10, True), (-9.2e18, 10, True), (0, 10, True)],
)
def test_announced_count(fake, announced: float, held: int, accepted: bool) -> None:
    path, made = fake([picture(i) for i in range(held)], count=announced)
    source = open_source(str(path))
    assert source.frame_count == (int(announced) if announced > 0 else None)
    if accepted:
        assert len(list(source)) == held
    else:
        with pytest.raises(VideoError, match=r"fake\.mp4: ends or cannot be decoded at frame 10 of the 14"):
            list(source)
    assert all(c.released for c in made)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (None, r"fake\.mp4: frame 1 cannot be decoded"),
        (picture(1, 24, 32), r"fake\.mp4: frame 1 is 24 x 32, the frames before it 48 x 64"),
        (picture(1)[..., 0], r"fake\.mp4: frame 1: expected \(H, W, 3\) uint8, got \(48, 64\) uint8"),
    ],
)
def test_bad_frame_within_a_file(fake, second: np.ndarray | None, message: str) -> None:
    path, made = fake([picture(0), second, picture(2)])
    frames = iter(open_source(str(path)))
    assert next(frames).seq == 0
    with pytest.raises(VideoError, match=message):
        next(frames)
    assert all(c.released for c in made)


def test_file_of_unknown_length_shorter_than_start(fake) -> None:
    path, _ = fake([picture(i) for i in range(3)])
    with pytest.raises(VideoError, match="it has 3 and `start` is 5"):
        list(open_source(str(path), start=5))


def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MissingFileError, match="expected a file"):
        open_source(str(tmp_path / "pipe.mp4"))


def test_paths_with_marks_of_a_uri(videos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "what? 12:30 a%20b.avi"
    shutil.copy(videos / "clip.avi", odd)
    assert len(list(open_source(odd))) == FRAMES
    assert len(list(open_source(odd.as_uri()))) == FRAMES
    assert open_source(odd.as_uri() + "?fps=5").fps == 5.0


def test_selection_of_an_endless_stream() -> None:
    selection = Selection(start=2, limit=3, stride=5)
    assert list(selection.indices(None)) == [2, 7, 12]
    assert selection.count(None) is None


def real_data() -> Path:
    named = os.environ.get("EDGE_SDK_DATA")
    if not named:
        pytest.skip("EDGE_SDK_DATA is not set: it names a folder of real video (videos/*.mp4, camvid/val)")
    if not Path(named).is_dir():
        pytest.skip(f"EDGE_SDK_DATA: no folder at {named}")
    return Path(named)


def test_real_videos_decode_to_their_end() -> None:
    paths = sorted((real_data() / "videos").glob("*.mp4"))
    if not paths:
        pytest.skip("EDGE_SDK_DATA: no videos/*.mp4 in it")
    for path in paths:
        with open_source(path, stride=10) as source:
            assert sum(1 for _ in source) == source.frame_count


def test_real_labelled_stream() -> None:
    folder = real_data() / "camvid" / "val"
    if not folder.is_dir():
        pytest.skip("EDGE_SDK_DATA: no camvid/val in it")
    with open_source(f"{folder}?fps=15", limit=5) as source:
        masks = [frame.truth.mask for frame in source if frame.truth is not None]
    assert len(masks) == 5
    assert all(m is not None and m.shape == source.size_hw and m.max() <= 11 for m in masks)
