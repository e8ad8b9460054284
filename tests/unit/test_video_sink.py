from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sdk.errors import ClosedError, EdgeSdkError, RecipeError, ShapeError, VideoError
from edge_sdk.video import open_sink, open_source

SIZE = (48, 64)


def picture(index: int, size_hw: tuple[int, int] = SIZE) -> np.ndarray:
    image = np.full((*size_hw, 3), 30 + 20 * index, np.uint8)
    image[:, : size_hw[1] // 2] //= 2
    return image


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def fail_while_writing(uri: str, error: BaseException) -> None:
    with open_sink(uri, fps=9.0, size_hw=SIZE) as sink:
        sink.write(picture(0))
        raise error


@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "OUT.MP4", "deep/down/out.mp4"])
@pytest.mark.parametrize("fps", [12.5, 29.97])
def test_video_file_comes_back(tmp_path: Path, name: str, fps: float) -> None:
    path = tmp_path / name
    with open_sink(path, fps=fps, size_hw=SIZE) as sink:
        for index in range(9):
            sink.write(picture(index))
            assert not path.exists()  # only a finished file has the name
    assert sink.frames == 9
    assert [p for p in files_in(path.parent) if not (path.parent / p).is_dir()] == [path.name]
    with open_source(path) as source:
        assert source.size_hw == SIZE
        assert source.fps == pytest.approx(fps, rel=1e-4)
        back = [frame.image for frame in source]
    assert len(back) == 9
    # MPEG-4 and Motion JPEG at their default quality keep a flat picture within a few levels.
    for index, image in enumerate(back):
        inner = np.abs(image.astype(int) - picture(index))[8:-8, 40:-8]
        assert inner.max() <= 6


@pytest.mark.parametrize("name", ["out.mp4", "out.avi"])
def test_odd_size_keeps_its_last_row_and_column(tmp_path: Path, name: str) -> None:
    with open_sink(tmp_path / name, fps=10.0, size_hw=(47, 63)) as sink:
        for index in range(3):
            sink.write(picture(index, (47, 63)))
    assert open_source(tmp_path / name).size_hw == (48, 64)


def test_numbered_pngs_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8) for _ in range(3)]
    with open_sink(f"{tmp_path}/new/frames/", fps=10.0, size_hw=SIZE) as sink:
        for image in images:
            sink.write(image)
    assert files_in(tmp_path / "new") == ["frames", *(f"frames/00000{i}.png" for i in range(3))]
    back = list(open_source(tmp_path / "new" / "frames"))
    assert all(np.array_equal(frame.image, image) for frame, image in zip(back, images))


def test_earlier_pngs_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    for count in (5, 2):
        with open_sink(f"{folder}/", fps=10.0, size_hw=SIZE) as sink:
            for index in range(count):
                sink.write(picture(index))
    assert files_in(tmp_path) == ["frames", "frames/000000.png", "frames/000001.png"]
    (folder / "thesis.doc").touch()
    for uri in (f"{folder}/", folder):  # a folder that exists is meant as one
        with pytest.raises(VideoError, match=r"new folder or one of numbered PNGs, found thesis\.doc"):
            open_sink(uri, fps=10.0, size_hw=SIZE)
    assert (folder / "000001.png").exists()


def test_file_uri(tmp_path: Path) -> None:
    with open_sink((tmp_path / "a b.avi").as_uri(), fps=10.0, size_hw=SIZE) as sink:
        sink.write(picture(0))
    assert files_in(tmp_path) == ["a b.avi"]


def test_null_sink_counts() -> None:
    with open_sink(None, fps=30.0, size_hw=SIZE) as sink:
        for index in range(4):
            sink.write(picture(index))
    assert sink.frames == 4


@pytest.mark.parametrize("name", ["out.mp4", "frames/"])
def test_nothing_is_left_after_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="model"):
        fail_while_writing(f"{tmp_path}/{name}", RuntimeError("model failed"))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "frames/"])
def test_an_older_result_survives_an_error(tmp_path: Path, name: str) -> None:
    uri = f"{tmp_path}/{name}"
    with open_sink(uri, fps=9.0, size_hw=SIZE) as sink:
        sink.write(picture(3))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(KeyboardInterrupt):
        fail_while_writing(uri, KeyboardInterrupt())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["out.mp4", "frames/"])
def test_no_frames_is_an_error(tmp_path: Path, name: str) -> None:
    sink = open_sink(f"{tmp_path}/{name}", fps=9.0, size_hw=SIZE)
    with pytest.raises(VideoError, match="closed before a frame was written"):
        sink.close()
    sink.close()
    assert files_in(tmp_path) == []


def test_closed_sink_refuses(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out.avi", fps=9.0, size_hw=SIZE)
    sink.write(picture(0))
    sink.close()
    sink.close()
    with pytest.raises(ClosedError, match=r"out\.avi: the sink is closed"):
        sink.write(picture(0))
    with pytest.raises(ClosedError), sink:
        pass


@pytest.mark.parametrize("uri", [None, "out.mp4", "frames/"])
@pytest.mark.parametrize(
    "image",
    [np.zeros((24, 32, 3), np.uint8), np.zeros((*SIZE, 3), np.float32), np.zeros(SIZE, np.uint8)],
    ids=["size", "dtype", "grey"],
)
def test_wrong_frame(tmp_path: Path, uri: str | None, image: np.ndarray) -> None:
    with open_sink(uri and f"{tmp_path}/{uri}", fps=9.0, size_hw=SIZE) as sink:
        sink.write(picture(0))
        with pytest.raises(ShapeError, match=r"expected a frame \(48, 64, 3\) uint8, got \(") as caught:
            sink.write(image)
        assert f"got {image.shape} {image.dtype}" in str(caught.value)
    assert sink.frames == 1


@pytest.mark.parametrize(
    ("uri", "values", "error", "message"),
    [
        ("out.mov", {}, RecipeError, r"out\.mov: expected \*\.mp4, \*\.avi or a folder ending in '/'"),
        ("out", {}, RecipeError, r"expected \*\.mp4"),
        ("rtsp://host/live/", {}, RecipeError, r"unknown scheme 'rtsp'"),
        ("out.mp4", {"fps": 0.0}, RecipeError, r"`fps`: expected a frame rate, got 0\.0"),
        ("out.mp4", {"fps": float("nan")}, RecipeError, r"`fps`: .* got nan"),
        ("out.mp4", {"size_hw": (0, 64)}, RecipeError, r"`size_hw`: .* got \(0, 64\)"),
        ("/proc/nothing/out.mp4", {}, VideoError, r"cannot be written .*rights"),
        ("file/out.mp4", {}, VideoError, r"cannot be written"),
        ("file/", {}, VideoError, r"found a file"),
    ],
)
def test_bad_sink(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    values: dict,
    error: type[EdgeSdkError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(error, match=message):
        open_sink(uri, **{"fps": 30.0, "size_hw": SIZE, **values})
    assert files_in(tmp_path) == ["file"]


class DeadWriter:
    """An encoder that does not open, or takes frames and writes none, as on a full disk."""

    opens = True

    def __init__(self, *_: object) -> None:
        pass

    def isOpened(self) -> bool:
        return self.opens

    def write(self, image: np.ndarray) -> None:
        pass

    def release(self) -> None:
        pass


def test_encoder_that_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeadWriter, "opens", False)
    monkeypatch.setattr(cv2, "VideoWriter", DeadWriter)
    with pytest.raises(
        VideoError, match=r"out\.mp4: no encoder could be opened \(mp4v, 48 x 64, 30 fps\).*PNGs"
    ):
        open_sink(tmp_path / "out.mp4", fps=30.0, size_hw=SIZE)
    assert files_in(tmp_path) == []


def test_frames_that_never_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoWriter", DeadWriter)
    sink = open_sink(tmp_path / "out.mp4", fps=30.0, size_hw=SIZE)
    sink.write(picture(0))
    with pytest.raises(VideoError, match=r"1 frames were written, the file holds 0.*disk"):
        sink.close()
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("written", [False, True])
def test_a_write_that_a_signal_cuts_short_costs_nothing_that_was_written(tmp_path, monkeypatch, written):
    sink = open_sink(tmp_path / "out.avi", fps=30.0, size_hw=SIZE)
    write = sink._write

    def cut_short(image):
        if written:
            write(image)
        raise KeyboardInterrupt

    with sink:
        sink.write(picture(0))
        monkeypatch.setattr(sink, "_write", cut_short)
        with pytest.raises(KeyboardInterrupt):
            sink.write(picture(1))
    with open_source(tmp_path / "out.avi") as video:
        assert video.frame_count == 1 + written


def test_garbage_collected_sink_leaves_nothing(tmp_path: Path) -> None:
    import gc

    sink = open_sink(tmp_path / "out.avi", fps=30.0, size_hw=SIZE)
    sink.write(picture(0))
    del sink
    gc.collect()
    assert files_in(tmp_path) == []
