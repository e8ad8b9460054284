"""Calibration clips: what is drawn is what the source holds, spread over it, hashed, and refused where it cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import (
    ChecksumError,
    FileFormatError,
    MissingFileError,
    OutputError,
    RecipeError,
    ShapeError,
    VideoError,
)
from edge_sdk.settings import parse_settings
from edge_sdk.video import open_source
from edge_sdk.video.clips import (
    CalibrationClips,
    CalibrationClipsRecipe,
    _fitted,
    _plan,
    draw_clips,
    read_clip,
)
from edge_sdk.video.labelled import open_clips
from edge_sdk.video.uri import parse_source_uri
from tests.videos import FRAMES, install_fake, picture, write_image, write_video

ROOT = Path(__file__).parents[2]


def scene(seed: int, frames: int = 30, height: int = 32) -> str:
    return f"synthetic:shapes?height={height}&width=48&frames={frames}&seed={seed}"


def recipe(out: Path, *sources: str | Path, **values: object) -> CalibrationClipsRecipe:
    data = {"out": out, "sources": [str(source) for source in sources], "clips": 4, "frames": 3, **values}
    return parse_settings(data, CalibrationClipsRecipe, "recipe")


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


@pytest.fixture
def drawn(tmp_path: Path) -> CalibrationClips:
    return draw_clips(recipe(tmp_path / "set", scene(1), scene(2), clips=5))


def test_every_png_is_the_frame_that_its_record_names(drawn: CalibrationClips, tmp_path: Path) -> None:
    assert [clip.folder for clip in drawn.clips] == [f"clip_{n:03d}" for n in range(5)]
    assert [clip.source for clip in drawn.clips] == [scene(1)] * 3 + [scene(2)] * 2
    for clip in drawn.clips:
        images = [frame.image for frame in open_source(clip.source)]
        indices = [frame.index for frame in clip.frames]
        assert indices == list(range(indices[0], indices[0] + 3))
        for (name, digest), index in zip(clip.files(), indices, strict=True):
            file = tmp_path / "set" / name
            assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
            assert np.array_equal(read(file), images[index])


def test_the_json_tells_counts_source_and_recipe_and_the_hash_of_all(
    drawn: CalibrationClips, tmp_path: Path
) -> None:
    told = json.loads((tmp_path / "set" / "clips.json").read_text())
    assert (told["frame_count"], told["size_hw"], told["format"]) == (15, [32, 48], 1)
    assert told["recipe"]["seed"] == 0
    assert told["recipe"]["sources"] == [scene(1), scene(2)]
    assert told["created"].endswith("+00:00")
    lines = [
        f"{clip['folder']}/{n:06d}.png {frame['sha256']}\n"
        for clip in told["clips"]
        for n, frame in enumerate(clip["frames"])
    ]
    assert told["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert CalibrationClips.load(tmp_path / "set") == drawn
    pngs = sum(path.suffix == ".png" for path in (tmp_path / "set").rglob("*"))
    assert pngs == told["frame_count"]


def test_a_seed_gives_the_same_set_and_another_seed_another(drawn: CalibrationClips, tmp_path: Path) -> None:
    again = draw_clips(recipe(tmp_path / "again", scene(1), scene(2), clips=5))
    other = draw_clips(recipe(tmp_path / "other", scene(1), scene(2), clips=5, seed=1))
    assert again.sha256 == drawn.sha256
    assert other.sha256 != drawn.sha256


@given(
    lengths=st.lists(st.integers(20, 200), min_size=1, max_size=4),
    clips=st.integers(4, 8),
    frames=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_clips_are_spread_evenly_and_never_overlap(
    lengths: list[int], clips: int, frames: int, seed: int
) -> None:
    sources = [scene(position, length) for position, length in enumerate(lengths)]
    try:
        plans = _plan(recipe(Path("unused"), *sources, clips=clips, frames=frames, seed=seed))
    except RecipeError:
        needed = -(-clips // len(sources)) * frames
        assert min(lengths) < needed
        return
    counts = [len(plan.clips) for plan in plans]
    assert sum(counts) == clips
    assert max(counts) - min(counts) <= 1
    for plan, length in zip(plans, lengths, strict=True):
        for part, places in enumerate(plan.clips):
            assert places == tuple(range(places[0], places[0] + frames))
            # Each clip lies inside its own part of the source.
            assert length * part // len(plan.clips) <= places[0]
            assert places[-1] < length * (part + 1) // len(plan.clips)


def test_a_video_file_and_a_folder_are_drawn_from(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi")
    for index in range(12):
        write_image(tmp_path / "frames" / f"{index}.png", picture(index))
    found = draw_clips(recipe(tmp_path / "set", video, tmp_path / "frames"))
    assert found.size_hw == (48, 64)
    assert [clip.source for clip in found.clips] == [str(video)] * 2 + [str(tmp_path / "frames")] * 2
    # A container may announce frames that it lacks, so the last ones are not drawn.
    assert max(frame.index for frame in found.clips[1].frames) < FRAMES - 3


def test_frames_are_brought_to_the_size_asked_for(tmp_path: Path) -> None:
    sources = (scene(1, height=32), scene(1, height=40))
    with pytest.raises(ShapeError, match=r"one size .* 32 x 48 in .* 40 x 48 in .*'size_hw'"):
        draw_clips(recipe(tmp_path / "set", *sources))
    assert list(tmp_path.iterdir()) == []
    found = draw_clips(recipe(tmp_path / "set", *sources, size_hw=(16, 16)))
    shapes = {read(path).shape for path in (tmp_path / "set").rglob("*.png")}
    assert (found.size_hw, shapes) == ((16, 16), {(16, 16, 3)})


MOTIONS = "synthetic:motions?clips=6&height=32&width=32"


def test_labelled_clips_are_taken_evenly_and_their_frames_spread_over_each(tmp_path: Path) -> None:
    found = draw_clips(
        recipe(tmp_path / "set", labelled=[f"{MOTIONS}&frames=10", f"{MOTIONS}&frames=7&seed=6"], frames=3)
    )
    seeds = [parse_source_uri(clip.source).query["seed"] for clip in found.clips]
    assert seeds == ["0", "3", "6", "9"]
    places = [[frame.index for frame in clip.frames] for clip in found.clips]
    assert places == [[0, 3, 6]] * 2 + [[0, 2, 4]] * 2
    with open_clips(f"{MOTIONS}&frames=10")[3].open() as source:
        expected = [frame.image.copy() for frame in source if frame.seq in places[1]]
    for image, wanted in zip(read_clip(tmp_path / "set", found.clips[1]), expected, strict=True):
        assert np.array_equal(image, wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clips": 7}, "the lists hold 6 clips, 'clips' asks for 7"),
        ({"frames": 11}, "clip left/0 has 10 frames, 'frames' asks for 11"),
    ],
)
def test_lists_that_hold_too_little_are_refused(values: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        draw_clips(recipe(tmp_path / "set", labelled=[f"{MOTIONS}&frames=10"], **values))
    assert list(tmp_path.iterdir()) == []


def test_a_frame_is_cut_in_the_middle_and_not_stretched() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 200
    assert (_fitted(image, (10, 10)) == 200).all()
    assert _fitted(image, (20, 60)) is image


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sources": []}, "expected either 'sources' or 'labelled'"),
        ({"labelled": ["synthetic:motions?clips=4"]}, "expected either 'sources' or 'labelled'"),
        ({"sources": [""]}, r"'sources\.0'"),
        ({"sources": [scene(1), scene(1)]}, "expected each source once"),
        ({"clips": 1}, "'clips'.*greater than or equal to 2, got 1"),
        (
            {"clips": 2, "sources": [scene(1), scene(2), scene(3)]},
            "'clips' 2 is below the number of sources 3",
        ),
        ({"frames": 1}, "'frames'.*greater than or equal to 2, got 1"),
        ({"seed": -1}, "'seed'"),
        ({"size_hw": [0, 4]}, r"'size_hw\.0'"),
        ({"clip": 3}, "unknown key 'clip', did you mean 'clips'"),
    ],
)
def test_wrong_recipes_are_refused(values: dict, message: str, tmp_path: Path) -> None:
    data = {"out": tmp_path / "set", "sources": [scene(1)], **values}
    with pytest.raises(RecipeError, match=message):
        parse_settings(data, CalibrationClipsRecipe, "recipe")


def test_a_source_that_is_too_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"seed=2 has 5 frames to draw from, 2 clips of 3 need 6\. Lower"):
        draw_clips(recipe(tmp_path / "set", scene(1), scene(2, frames=5)))
    assert list(tmp_path.iterdir()) == []


def test_a_live_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch, [picture(0)] * 9)
    with pytest.raises(RecipeError, match=r"expected recorded frames, camera:0 is live\. Record it"):
        draw_clips(recipe(tmp_path / "set", "camera:0"))


def test_a_video_of_unknown_length_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mkv").write_bytes(b"x")
    install_fake(monkeypatch, [picture(index) for index in range(9)], count=0)
    with pytest.raises(RecipeError, match=r"a\.mkv does not tell how many frames it has\. .*re-encode"):
        draw_clips(recipe(tmp_path / "set", tmp_path / "a.mkv"))


def test_a_video_that_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mkv").write_bytes(b"x")
    install_fake(monkeypatch, [picture(index) for index in range(9)], count=20)
    with pytest.raises(VideoError, match=r"a\.mkv: ends or cannot be decoded at frame 9"):
        draw_clips(recipe(tmp_path / "set", tmp_path / "a.mkv"))
    # The decoder's end is within what may be missing, but not beyond what was to be drawn.
    monkeypatch.setattr("edge_sdk.video.clips._length", lambda source: 12)
    install_fake(monkeypatch, [picture(index) for index in range(9)], count=12)
    with pytest.raises(VideoError, match=r"ended before frame \d+, which was to be drawn\. .*\?missing=N"):
        draw_clips(recipe(tmp_path / "set", tmp_path / "a.mkv"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    draw_clips(recipe(tmp_path / "set", scene(1)))  # an empty one is filled
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"'out': expected a new or empty folder, .*set holds something"):
        draw_clips(recipe(tmp_path / "set", scene(2)))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file holds something"):
        draw_clips(recipe(tmp_path / "file", scene(2)))


def _cut(folder: Path) -> None:
    (folder / "clips.json").write_text((folder / "clips.json").read_text()[:-40])


def _reword(folder: Path) -> None:
    text = (folder / "clips.json").read_text()
    (folder / "clips.json").write_text(text.replace('"clip_001"', '"clip_002"'))


def _swap(folder: Path) -> None:
    shutil.copy(folder / "clip_000" / "000000.png", folder / "clip_000" / "000001.png")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda folder: (folder / "clips.json").unlink(),
            MissingFileError,
            r"expected a file at .*clips\.json",
        ),
        (_cut, FileFormatError, "not readable as calibration clips"),
        (_reword, ChecksumError, "frames are not those"),
        (_swap, ChecksumError, r"'clip_000/000001\.png' was changed"),
        (lambda folder: (folder / "clip_001" / "000002.png").unlink(), MissingFileError, "is missing"),
    ],
)
def test_a_damaged_set_is_refused(
    damage, error: type[Exception], message: str, drawn: CalibrationClips, tmp_path: Path
) -> None:
    damage(tmp_path / "set")
    with pytest.raises(error, match=message + ".*draw_clips"):
        CalibrationClips.load(tmp_path / "set")


def test_the_script_draws_without_workstation_packages(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"out: {tmp_path / 'unused'}\nsources: ['{scene(3)}']\nclips: 2\nframes: 2\n"
    )
    code = (
        "import sys, runpy\n"
        "for name in ('torch', 'onnx', 'onnxruntime', 'matplotlib', 'jinja2'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = [sys.executable, "-c", code, str(ROOT / "calibration" / "draw_clips.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*script, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    done = run(tmp_path / "recipe.yaml", "--out", tmp_path / "set", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] == CalibrationClips.load(tmp_path / "set").sha256
    again = run(tmp_path / "recipe.yaml", "--out", tmp_path / "set")
    assert again.returncode == 2
    (line,) = again.stderr.splitlines()
    assert line.startswith("edge-sdk: error: 'out': expected a new or empty folder")
