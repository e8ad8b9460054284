"""Calibration sets: what is recorded is what the graphs received, at every distance; no other file is taken for one."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.arrays import HEADER, ArrayWriter, write_arrays
from edge_sdk.bundle import Bundle
from edge_sdk.cli.calibrate import by_distance
from edge_sdk.compile.calibrate import calibrate, clip_bytes, record
from edge_sdk.compile.calibration_frames import FrameFacts
from edge_sdk.compile.calibration_set import CALIBRATION_SET, CalibrationSet, PassRecord, counts_of
from edge_sdk.errors import (
    ChecksumError,
    EdgeSdkError,
    OutputError,
    RecipeError,
    ShapeError,
)
from edge_sdk.runtime.result import StepKind
from edge_sdk.runtime.schedule import EverySchedule
from edge_sdk.video.clips import CalibrationClips
from tests.calibration_world import CLIPS, FRAMES, SIZE, make_clips, moving, recipe, scene, sha256, smooth
from tests.graphs import PAIRS, TinyPair, per_frame, random_images


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> TinyPair:
    found = PAIRS[request.param](SIZE)
    found.write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    return found


@pytest.fixture
def recorded(tmp_path: Path) -> CalibrationSet:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    return calibrate(recipe(tmp_path))


def states_before(pair: TinyPair, images: list[np.ndarray]) -> list[np.ndarray | None]:
    """By the pair's own formulas: the state that each step of a clip finds."""
    assert pair.delta_formula is not None
    _, state = pair.keyframe_formula(images[0], None)
    found: list[np.ndarray | None] = [None]
    for image in images[1:]:
        found.append(state)
        _, state = pair.delta_formula(image, state)
    return found


def test_what_is_recorded_is_what_each_graph_received(pair: TinyPair, tmp_path: Path) -> None:
    found = calibrate(recipe(tmp_path))
    passes = [*found.passes("keyframe"), *found.passes("delta")]
    by_place = {(one.clip, one.distance): one for one in passes}
    assert sorted(by_place) == [(clip, distance) for clip in range(CLIPS) for distance in range(FRAMES)]
    for clip, images in enumerate(moving()):
        expected = states_before(pair, images)
        for distance, (image, state) in enumerate(zip(images, expected, strict=True)):
            one = by_place[clip, distance]
            assert one.step == ("delta" if distance else "keyframe")
            assert set(one.inputs) == ({"frame", "state.memory"} if distance else {"frame"})
            assert np.array_equal(one.inputs["frame"], image)
            assert all(not array.flags.writeable for array in one.inputs.values())
            if state is not None:
                assert one.inputs["state.memory"].dtype == np.float32
                assert np.array_equal(one.inputs["state.memory"], state)


def test_a_state_that_is_rewritten_differs_at_each_distance_and_another_is_stored_once(
    pair: TinyPair, tmp_path: Path
) -> None:
    found = calibrate(recipe(tmp_path))
    rewritten = pair.name == "tiny-chaining"
    states = [one.inputs["state.memory"] for one in found.passes("delta") if one.clip == 0]
    assert len({state.tobytes() for state in states}) == (FRAMES - 1 if rewritten else 1)
    with zipfile.ZipFile(found.path) as archive:
        stored = [name for name in archive.namelist() if name.endswith("state.memory.npy")]
    assert len(stored) == CLIPS * (FRAMES - 1 if rewritten else 1)
    bundle = Bundle.open(tmp_path / "bundle")
    told = CLIPS * clip_bytes(bundle, FRAMES)
    assert 0.9 * told < found.size_bytes - 8_000 < told  # the header, a few kB here, is not counted


def test_the_header_tells_source_and_counts(recorded: CalibrationSet, tmp_path: Path) -> None:
    header = recorded.header
    clips = CalibrationClips.load(tmp_path / "clips")
    assert (header.clips_sha256, header.clips) == (clips.sha256, clips.clips)
    assert header.counts == {"keyframe": (3,), "delta": (0, 3, 3, 3, 3)}
    assert (recorded.count("keyframe"), recorded.count("delta")) == (3, 12)
    assert (header.bundle, header.interval) == ("tiny-residual", 3)
    assert header.graphs == {step: sha256(tmp_path / f"bundle/{step}.onnx") for step in ("keyframe", "delta")}
    assert header.runtime.startswith("onnxruntime ")
    assert header.created.endswith("+00:00")
    again = CalibrationSet.open(recorded.path)
    assert (again.header, again.sha256, again.size_bytes) == (header, recorded.sha256, recorded.size_bytes)
    # It is what numpy calls an npz.
    with np.load(recorded.path) as arrays:
        assert np.array_equal(arrays["clip_001/002/frame"], smooth(12))


def test_a_per_frame_network_has_keyframe_passes_alone(tmp_path: Path) -> None:
    per_frame(SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    found = calibrate(recipe(tmp_path))
    assert found.header.counts == {"keyframe": (CLIPS * FRAMES,)}
    frames = [one.inputs["frame"] for one in found.passes("keyframe")]
    assert np.array_equal(np.stack(frames), np.stack([image for clip in moving() for image in clip]))
    with pytest.raises(RecipeError, match="it has no delta step, only a keyframe step"):
        next(found.passes("delta"))


def test_clips_are_drawn_at_the_bundles_size_and_as_long_as_its_interval(tmp_path: Path) -> None:
    PAIRS["residual"]((16, 16)).write(tmp_path / "bundle", EverySchedule(interval=4))
    drawn = {"sources": [scene(1), scene(2)], "clips": 5}
    found = calibrate(recipe(tmp_path, clips=None, draw=drawn))
    assert found.header.counts == {"keyframe": (5,), "delta": (0, 5, 5, 5)}
    assert {clip.source for clip in found.header.clips} == {scene(1), scene(2)}
    assert next(found.passes("keyframe")).inputs["frame"].shape == (16, 16, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "set.npz"]


def test_the_same_recording_has_the_same_bytes_but_for_its_date(
    recorded: CalibrationSet, tmp_path: Path
) -> None:
    again = calibrate(recipe(tmp_path, out=tmp_path / "again.npz"))
    assert again.header.model_copy(update={"created": ""}) == recorded.header.model_copy(
        update={"created": ""}
    )
    for ours, theirs in zip(again.passes("delta"), recorded.passes("delta"), strict=True):
        assert all(np.array_equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)


def still(clips: int, frames: int) -> list[list[np.ndarray]]:
    return [[smooth(clip)] * frames for clip in range(clips)]


def noise(clips: int, frames: int) -> list[list[np.ndarray]]:
    return [random_images(frames, SIZE, seed) for seed in range(clips)]


def flat(clips: int, frames: int) -> list[list[np.ndarray]]:
    return [
        [np.full((*SIZE, 3), 10 * clip + frame, np.uint8) for frame in range(frames)] for clip in range(clips)
    ]


REFUSED: dict[str, tuple[list[list[np.ndarray]], type[EdgeSdkError], str]] = {
    "no clips": ([], RecipeError, "expected clips of frames, found none"),
    "no frames": ([[], []], RecipeError, "expected clips of frames, found none"),
    "noise": (noise(3, 3), RecipeError, "expected pictures, 9 of 9 frames are noise"),
    "noise for the most part": (noise(3, 3) + moving(2, 3), RecipeError, "9 of 15 frames are noise"),
    "one colour": (flat(3, 3), RecipeError, "expected pictures, 9 of 9 frames are of one colour"),
    "single frames": (moving(4, 1), RecipeError, "clips of at least 2 frames for the delta step, each has one"),
    "all the same": ([[smooth(0)] * 3] * 3, RecipeError, "expected different frames, all 9 are the same"),
    "stills": (still(4, 3), RecipeError, "in no clip does anything change"),
    "another size": ([[smooth(i, (40, 48)) for i in range(3)]] * 2, ShapeError,
                     r"their frames are 40 x 48 .* takes 32 x 48.*'size_hw: \[32, 48\]'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_clips_that_say_nothing_are_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    clips, error, message = REFUSED[name]
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", clips)
    with pytest.raises(error, match=message) as caught:
        calibrate(recipe(tmp_path))
    assert caught.value.hint
    assert not (tmp_path / "set.npz").exists()


def test_some_bad_frames_do_no_harm(tmp_path: Path) -> None:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", flat(1, 3) + moving(2, 3) + still(1, 3))
    assert calibrate(recipe(tmp_path)).count("delta") == 8


def test_stills_are_enough_for_a_network_without_delta(tmp_path: Path) -> None:
    per_frame(SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving(3, 1))
    assert calibrate(recipe(tmp_path)).header.counts == {"keyframe": (3,)}


@pytest.mark.parametrize(
    ("image", "least", "most"),
    [
        (random_images(1, (60, 80))[0], -0.1, 0.1),
        (smooth(3), 0.9, 1.0),
        # A picture that is dark and as noisy as a sensor at night gives it.
        ((smooth(3) // 8 + random_images(1, SIZE)[0] // 32), 0.6, 1.0),
        (np.full((8, 8, 3), 7, np.uint8), 0.0, 0.0),
    ],
    ids=["noise", "picture", "night", "one colour"],
)
def test_pictures_are_told_from_noise(image: np.ndarray, least: float, most: float) -> None:
    assert least <= FrameFacts.of(image).correlation <= most


def test_changed_clips_are_refused(tmp_path: Path) -> None:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    frame = tmp_path / "clips/clip_001/000002.png"
    frame.write_bytes(frame.read_bytes() + b"\0")
    with pytest.raises(ChecksumError, match=r"'clip_001/000002\.png' was changed"):
        calibrate(recipe(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clips": None}, "expected either 'clips' or 'draw'"),
        ({"draw": {"sources": ["a.mp4"]}}, "expected either 'clips' or 'draw'"),
        ({"out": "set.zip"}, r"'out': expected a file \*\.npz, got set\.zip"),
        ({"clips": None, "draw": {"sources": []}}, "'draw': expected either 'sources' or 'labelled'"),
        (
            {"clips": None, "draw": {"sources": ["a.mp4"], "labelled": ["clips/"]}},
            "'draw': expected either 'sources' or 'labelled'",
        ),
        ({"max_bytes": 0}, "'max_bytes'.*greater than 0"),
        ({"thread": 1}, "unknown key 'thread', did you mean 'threads'?"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **values)


def test_fewer_clips_than_sources_are_refused(tmp_path: Path) -> None:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    drawn = {"sources": [scene(seed) for seed in range(3)], "clips": 2}
    with pytest.raises(RecipeError, match="'draw': 'clips' 2 is below the number of sources 3"):
        calibrate(recipe(tmp_path, clips=None, draw=drawn))


def test_a_set_that_would_be_too_large_is_refused_with_advice(tmp_path: Path) -> None:
    bundle = PAIRS["chaining"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving(4, 3))
    each = clip_bytes(bundle, 3)
    with pytest.raises(
        RecipeError, match=r"'max_bytes' is .*Draw at most 2 clips of 3 frames, or raise 'max_bytes'"
    ):
        calibrate(recipe(tmp_path, max_bytes=3 * each - 1))
    with pytest.raises(RecipeError, match=r"Draw shorter clips, or raise 'max_bytes'"):
        calibrate(recipe(tmp_path, max_bytes=each - 1))
    assert calibrate(recipe(tmp_path, max_bytes=4 * each)).count("delta") == 8


def test_no_room_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PAIRS["residual"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(OutputError, match=r"it takes .* GB, 0\.00 GB are free there"):
        calibrate(recipe(tmp_path))


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_after_a_failure_what_was_there_is_still_there(
    recorded: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = recorded.path.read_bytes()
    write, calls = np.lib.format.write_array, 0

    def failing(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise failure
        write(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "write_array", failing)
    expected = OutputError if isinstance(failure, OSError) else KeyboardInterrupt
    for out in (recorded.path, tmp_path / "new.npz"):
        calls = 0
        with pytest.raises(expected):
            calibrate(recipe(tmp_path, out=out))
    assert recorded.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "clips", "set.npz"]


def test_other_peoples_files_are_not_overwritten(recorded: CalibrationSet, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", a=np.zeros(3))
    with pytest.raises(OutputError, match=r"mine\.npz: something else than a calibration set is there"):
        calibrate(recipe(tmp_path, out=tmp_path / "mine.npz"))
    assert calibrate(recipe(tmp_path)).sha256  # an older set is replaced


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    size = (96, 128)
    bundle = PAIRS["chaining"](size).write(tmp_path / "bundle")

    def endless(clips: int) -> Iterator[Iterator[np.ndarray]]:
        return ((smooth(7 * clip + frame, size) for frame in range(4)) for clip in range(clips))

    def peak_bytes(clips: int) -> int:
        with write_arrays(tmp_path / "set.npz", CALIBRATION_SET) as writer:
            tracemalloc.start()
            try:
                passes = record(bundle, endless(clips), writer, 0)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            finish(writer, passes, tmp_path)
        return peak

    few, many = peak_bytes(2), peak_bytes(40)
    assert many - few < 38 * clip_bytes(bundle, 4) / 20
    found = CalibrationSet.open(tmp_path / "set.npz")
    tracemalloc.start()
    try:
        assert sum(1 for _ in found.passes("delta")) == 120
        assert tracemalloc.get_traced_memory()[1] < found.size_bytes / 20
    finally:
        tracemalloc.stop()


def finish(writer: ArrayWriter, passes: list[PassRecord], folder: Path) -> None:
    """End a set that was not made of a folder of clips, with the header of one that was."""
    if not (folder / "clips").exists():
        PAIRS["chaining"](SIZE).write(folder / "small")
        make_clips(folder / "clips", moving(2, 2))
        calibrate(recipe(folder, bundle=folder / "small", out=folder / "small.npz"))
    header = CalibrationSet.open(folder / "small.npz").header
    inputs = {step: spec.inputs for step, spec in Bundle.open(folder / "bundle").manifest.steps.items()}
    update = {"counts": counts_of(passes), "passes": tuple(passes), "inputs": inputs}
    writer.finish(header.model_copy(update=update))


def test_distance_is_the_runners_own_age_of_the_state(tmp_path: Path) -> None:
    """The runner, asked as the device asks it, gives each frame of a clip the age under which it was recorded."""
    from edge_sdk.runtime.runner import EdgeRunner

    bundle = PAIRS["chaining"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    found = calibrate(recipe(tmp_path))
    ages = []
    with EdgeRunner(bundle, schedule=EverySchedule(interval=FRAMES)) as runner:
        for clip in moving():
            runner.reset()
            results = [runner(image) for image in clip]
            ages += [(result.kind, result.state_age) for result in results]
    steps = [(StepKind(one.step), one.distance) for one in found.header.passes]
    assert steps == ages


def test_the_warm_up_is_not_recorded(tmp_path: Path) -> None:
    bundle = PAIRS["chaining"](SIZE).write(tmp_path / "bundle")
    with write_arrays(tmp_path / "set.npz", CALIBRATION_SET) as writer:
        passes = record(bundle, [], writer, 0)
        assert passes == []
        finish(writer, passes, tmp_path)
    with zipfile.ZipFile(tmp_path / "set.npz") as archive:
        assert archive.namelist() == [HEADER]


def test_recording_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    PAIRS["chaining"](SIZE).write(tmp_path / "bundle")
    make_clips(tmp_path / "clips", moving())
    code = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = None  # importing either is now an ImportError
from pathlib import Path
from edge_sdk.compile import CalibrateRecipe, calibrate
here = Path(sys.argv[1])
print(calibrate(CalibrateRecipe(bundle=here / "bundle", clips=here / "clips", out=here / "set.npz")).count("delta"))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "12\n"


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((32,), "32 at distance 0"),
        ((0, 5), "5 at distance 1"),
        ((0, 4, 4, 4), "4 at each distance 1-3"),
        ((0, 4, 4, 0, 1), "4 at each distance 1-2, 1 at distance 4"),
    ],
)
def test_counts_read_as_text(counts: tuple[int, ...], text: str) -> None:
    assert by_distance(counts) == text
