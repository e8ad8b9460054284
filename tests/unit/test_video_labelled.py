from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.errors import EdgeSdkError, FileFormatError, MissingFileError, RecipeError, VideoError
from edge_sdk.video import MOTION_CLASSES, open_clips, open_source
from tests.videos import index_of, picture, write_image, write_video

SMALL = "height=24&width=32&frames=4"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes: three videos, and a folder of frames."""
    root = tmp_path / "clips"
    for name in ("wave/clip_2.avi", "wave/clip_10.avi", "clap/a.avi"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, 3)
    for index in range(5):
        write_image(root / "clap" / "b #1?" / f"{index:03d}.png", picture(index))
    return root


def table(root: Path, text: str) -> Path:
    path = root / "clips.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_folder_of_class_folders(root: Path) -> None:
    for name in (".hidden", "notes.txt", "wave/notes.txt", "wave/.hidden.avi"):
        (root / name).touch()
    clips = open_clips(root)
    assert [clip.name for clip in clips] == [
        "clap/a.avi",
        "clap/b #1?",
        "wave/clip_2.avi",
        "wave/clip_10.avi",
    ]
    assert [clip.labels for clip in clips] == [("clap",), ("clap",), ("wave",), ("wave",)]
    assert (clips.classes, len(clips), clips.uri) == (("clap", "wave"), 4, str(root))
    with clips[1].open() as source:
        assert (source.frame_count, source.size_hw, source.fps, source.live) == (5, (48, 64), 30.0, False)
        frames = list(source)
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    assert all(frame.truth is not None and frame.truth.labels == ("clap",) for frame in frames)


def test_a_clip_opens_as_a_source_does(root: Path) -> None:
    clips = open_clips(f"{root}?fps=15")
    with clips[1].open(start=1, stride=2) as source:
        assert source.fps == 7.5
        assert [(f.seq, index_of(f.image), f.captured_s) for f in source] == [(0, 1, 1 / 15), (1, 3, 3 / 15)]
    assert open_clips(root)[2].open().fps == 12.5
    assert clips[2].open().fps == 15
    source.close()
    with pytest.raises(EdgeSdkError, match="closed"):
        list(source)


def test_masks_of_a_clip_are_kept(tmp_path: Path) -> None:
    for index in range(2):
        write_image(tmp_path / "walk" / "a" / "images" / f"{index}.png", picture(index))
        write_image(tmp_path / "walk" / "a" / "labels" / f"{index}.png", np.full((48, 64), index, np.uint8))
    truths = [frame.truth for frame in open_clips(tmp_path)[0].open()]
    assert [(t.labels, int(t.mask[0, 0])) for t in truths if t is not None and t.mask is not None] == [
        (("walk",), 0),
        (("walk",), 1),
    ]


def test_table_of_clips(root: Path) -> None:
    elsewhere = root.parent / "elsewhere.avi"
    shutil.copy(root / "clap" / "a.avi", elsewhere)
    text = f'\ufeffpath, labels\r\nclap/a.avi,clap; indoors\r\n\r\n"clap/b #1?",\r\n{elsewhere},wave\r\n'
    clips = open_clips(table(root, text))
    assert [clip.labels for clip in clips] == [("clap", "indoors"), (), ("wave",)]
    assert [clip.name for clip in clips] == ["clap/a.avi", "clap/b #1?", str(elsewhere)]
    assert clips.classes == ("clap", "indoors", "wave")
    assert [len(list(clip.open())) for clip in clips] == [3, 5, 3]
    assert [frame.truth.labels for frame in clips[1].open(limit=1) if frame.truth is not None] == [()]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), clips=st.integers(1, 30))
def test_generated_clips_go_round(seed: int, clips: int) -> None:
    seed = min(seed, 2**63 - clips)
    found = open_clips(f"synthetic:motions?clips={clips}&seed={seed}&{SMALL}")
    assert [clip.labels[0] for clip in found] == [MOTION_CLASSES[(seed + i) % 12] for i in range(clips)]
    assert len({clip.name for clip in found}) == clips
    last = next(iter(found[clips - 1].open()))
    alone = next(iter(open_source(f"synthetic:motions?seed={seed + clips - 1}&{SMALL}")))
    assert np.array_equal(last.image, alone.image)
    assert last.truth is not None
    assert alone.truth is not None
    assert last.truth.labels == alone.truth.labels == found[clips - 1].labels


def test_generated_clips_of_one_class() -> None:
    found = open_clips(f"synthetic:motions?clips=3&motion=pass&noise=0&{SMALL}")
    assert found.classes == ("pass",)
    with found[1].open() as source:
        assert source.size_hw == (24, 32)


BAD_LISTS: list[tuple[str, type[EdgeSdkError], str]] = [
    ("camera:0", RecipeError, "expected a folder of class folders, .*got a source of kind camera"),
    ("synthetic:motions", RecipeError, "'clips' is missing"),
    ("synthetic:motions?clips=0", RecipeError, "'clips': .*greater than or equal to 1, got '0'"),
    ("synthetic:motions?clips=2&sead=1", RecipeError, "unknown key 'sead', did you mean 'seed'"),
    (
        "synthetic:motions?clips=2&motion=sideways",
        RecipeError,
        "expected motion to be one of .*got 'sideways'",
    ),
    (f"synthetic:motions?clips=2&seed={2**63 - 1}", RecipeError, "'seed'"),
    ("synthetic:shapes?clips=2", RecipeError, "scene 'shapes' has no labelled clips"),
    ("none", MissingFileError, "none, found none. Check the path"),
    ("train.tfrecord", RecipeError, "TFRecord files hold features and no frames"),
    ("clap/a.avi", RecipeError, "expected a folder of class folders or a .csv file, got a file 'a.avi'"),
    ("?fps=0", RecipeError, "'fps': .*greater than 0"),
    ("?rate=3", RecipeError, "unknown key 'rate'"),
    ("empty", VideoError, "expected class folders, found none. Lay clips out as ROOT/CLASS/clip.mp4"),
    ("wave", VideoError, "expected class folders, found none"),
    ("clap", VideoError, "b #1.: expected clips in it, found single images"),
    ("hollow", VideoError, "hollow/class: expected clips .*found none. Remove the class folder"),
]


@pytest.mark.parametrize(("name", "error", "message"), BAD_LISTS, ids=[row[0] for row in BAD_LISTS])
def test_bad_list(root: Path, name: str, error: type[EdgeSdkError], message: str) -> None:
    (root / "empty").mkdir()
    (root / "hollow" / "class").mkdir(parents=True)
    (root / "train.tfrecord").touch()
    uri = name if ":" in name else f"{root}{name}" if name.startswith("?") else str(root / name)
    with pytest.raises(error, match=message) as caught:
        open_clips(uri)
    assert "\n" not in str(caught.value)


BAD_TABLES: list[tuple[str, str, type[EdgeSdkError], str]] = [
    ("empty", "", FileFormatError, "expected the header 'path,labels', got 'nothing'"),
    (
        "no header",
        "clap/a.avi,clap\n",
        FileFormatError,
        "expected the header 'path,labels', got 'clap/a.avi,clap'",
    ),
    ("other header", "path,label\n", FileFormatError, "got 'path,label'"),
    ("no clips", "path,labels\n\n", FileFormatError, "expected at least one clip"),
    (
        "cells",
        "path,labels\nclap/a.avi,clap,wave\n",
        FileFormatError,
        "line 2: expected 2 cells.*got 3. Separate labels with ';'",
    ),
    (
        "one cell",
        "path,labels\nclap/a.avi\n",
        FileFormatError,
        "line 2: expected 2 cells, path and labels, got 1",
    ),
    ("no path", "path,labels\n ,clap\n", FileFormatError, "line 2: expected a path, got none"),
    (
        "gone",
        "path,labels\n\nclap/c.avi,clap\n",
        MissingFileError,
        "line 3: .*clap/c.avi, found none. Paths are",
    ),
    (
        "outside",
        "path,labels\nclap/../../clips/clap/a.avi,x\n",
        FileFormatError,
        "line 2: .*leads out of the folder",
    ),
    ("twice", "path,labels\nclap/a.avi,x\nclap/./a.avi,y\n", FileFormatError, "line 3: .*is also in line 2"),
    ("empty label", "path,labels\nclap/a.avi,x;\n", FileFormatError, "expected labels that differ.*got 'x;'"),
    ("label twice", "path,labels\nclap/a.avi,x; x\n", FileFormatError, "expected labels that differ"),
    ("quote", 'path,labels\n"clap/a.avi,x\n', FileFormatError, "not readable as CSV"),
]


@pytest.mark.parametrize(
    ("text", "error", "message"), [row[1:] for row in BAD_TABLES], ids=[r[0] for r in BAD_TABLES]
)
def test_bad_table(root: Path, text: str, error: type[EdgeSdkError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_clips(table(root, text))


def test_table_that_is_no_text(root: Path) -> None:
    (root / "clips.csv").write_bytes(b"path,labels\n\xff\xfe,x\n")
    with pytest.raises(FileFormatError, match="not readable as CSV"):
        open_clips(root / "clips.csv")


def test_a_clip_that_is_gone_when_opened(root: Path) -> None:
    clips = open_clips(root)
    (root / "clap" / "a.avi").unlink()
    with pytest.raises(MissingFileError, match=r"a\.avi"):
        clips[0].open()
