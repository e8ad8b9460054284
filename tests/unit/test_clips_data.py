from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from edge_sdk.distill.clips.data import ClipSet, read_clips
from edge_sdk.distill.clips.recipes import ClipData
from edge_sdk.distill.clips.targets import targets_of
from edge_sdk.distill.clips.view import ClipView
from edge_sdk.errors import EdgeSdkError, RecipeError, ShapeError
from edge_sdk.tasks.base import TaskSpec
from edge_sdk.video import MOTION_CLASSES, open_source
from tests.videos import index_of, install_fake, picture, write_image

TASK = TaskSpec(kind="classification", classes=MOTION_CLASSES)
TWO = TaskSpec(kind="classification", classes=("clap", "wave"))
SMALL = "height=16&width=20&frames=7"
LIST = f"synthetic:motions?clips=5&seed=3&{SMALL}"


def plain(**values: float) -> ClipData:
    return ClipData.model_validate(
        {"train": (LIST,), "length": 4, "flip": 0.0, "colour": 0.0, "shift": 0.0, **values}
    )


@pytest.fixture(scope="module")
def motions() -> ClipSet:
    return ClipSet.read([LIST], 4, TASK)


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.told.append((stage, done, total))


def test_frames_are_spread_evenly_over_each_clip() -> None:
    told = Told()
    found = ClipSet.read([f"synthetic:motions?clips=2&seed=3&{SMALL}", f"synthetic:motions?clips=1&seed=9&{SMALL}"],
                         4, TASK, progress=told)  # fmt: skip
    assert (len(found), found.length, found.size_hw) == (3, 4, (16, 20))
    assert found.clips.dtype == np.uint8
    assert found.names == ("down/3", "clockwise/4", "pass/9")
    assert [int(target.argmax()) for target in found.targets] == [3, 4, 9]
    assert (found.targets.sum(1) == 1).all()
    assert told.told == [("read clips", 1, 3), ("read clips", 2, 3), ("read clips", 3, 3)]
    for number, seed in enumerate((3, 4, 9)):
        frames = list(open_source(f"synthetic:motions?seed={seed}&{SMALL}"))
        assert np.array_equal(found.clips[number], np.stack([frames[index].image for index in (0, 1, 3, 5)]))


def test_a_video_that_holds_fewer_frames_than_it_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "a.mp4").write_bytes(b"x")
    for announced in (12, 0, 10):  # two too many, unknown, right
        install_fake(monkeypatch, [picture(index) for index in range(10)], announced)
        found = ClipSet.read([str(tmp_path)], 5, TWO)
        assert [index_of(image) for image in found.clips[0]] == [0, 2, 4, 6, 8]
    install_fake(monkeypatch, [picture(index) for index in range(10)], 12)
    with pytest.raises(
        RecipeError, match=r"clip wave/a\.mp4 has 10 frames, expected at least 11. Lower 'length'"
    ):
        ClipSet.read([str(tmp_path)], 11, TWO)


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("clap", (40, 60)), ("wave", (20, 20))):
        write_image(tmp_path / name / "a" / "0.png", np.tile(np.uint8(90), (*size, 3)))
    with pytest.raises(ShapeError, match=r"got 20 x 20 in wave/a and 40 x 60 in clap/a.*data\.size_hw"):
        ClipSet.read([str(tmp_path)], 1, TWO)
    data = ClipData(train=(str(tmp_path),), length=1, size_hw=(10, 12))
    found = read_clips(data.train, data, TWO)
    assert isinstance(found, ClipSet)
    assert found.clips.shape == (2, 1, 10, 12, 3)
    assert (found.clips == 90).all()
    monkeypatch.setattr("edge_sdk.distill.frames.MEMORY_LIMIT_BYTES", 2 * 10 * 12 * 3 - 1)
    with pytest.raises(
        RecipeError, match=r"2 clips of 1 frames of 10 x 12 exceed .* GiB of memory at .*Name fewer"
    ):
        ClipSet.read([str(tmp_path)], 1, TWO, (10, 12))


def test_resizing_takes_the_whole_picture_and_means_over_areas(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2] = 200
    write_image(tmp_path / "wave" / "a" / "0.png", image)
    found = ClipSet.read([str(tmp_path)], 1, TWO, (1, 2)).clips
    assert found[0, 0, 0, :, 0].tolist() == [100, 0]


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (
            ("clab",),
            {},
            "clip x is labelled 'clab', which is none of the 2 classes. Did you mean 'clap'.*Name every",
        ),
        (("clap", "wave"), {}, "expected one label a clip, x has 2. Set 'task.multi_label'"),
        ((), {}, "expected one label a clip, x has 0"),
        (("clap",), {"kind": "segmentation"}, "clips are for a classification, got 'segmentation'"),
    ],
)
def test_bad_labels(labels: tuple[str, ...], task: dict[str, str], message: str) -> None:
    spec = TaskSpec.model_validate({"kind": "classification", "classes": ("clap", "wave"), **task})
    with pytest.raises(RecipeError, match=message):
        targets_of(labels, spec, "x")


def test_labels_of_several_classes() -> None:
    several = TaskSpec(kind="classification", classes=("a", "b", "c"), multi_label=True)
    assert targets_of(("c", "a"), several, "x").tolist() == [1, 0, 1]
    assert targets_of((), several, "x").tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("uris", "length", "message"),
    [
        ([], 4, "expected at least one list of clips, got none"),
        ([LIST], 8, "clip down/3 has 7 frames, expected at least 8"),
        (["synthetic:motions"], 4, "'clips' is missing"),
    ],
)
def test_refused(uris: list[str], length: int, message: str) -> None:
    with pytest.raises(EdgeSdkError, match=message):
        ClipSet.read(uris, length, TASK)


def test_batches_are_a_function_of_the_seed(motions: ClipSet) -> None:
    strong = plain(flip=0.5, colour=0.4, shift=0.3)
    one, again, other = (motions.batch(np.random.default_rng(seed), 5, strong) for seed in (1, 1, 2))
    assert one["clip"].shape == (5, 4, 16, 20, 3)
    assert np.array_equal(one["clip"], again["clip"])
    assert not np.array_equal(one["clip"], other["clip"])
    assert sorted(one["target"].argmax(1).tolist()) == [3, 4, 5, 6, 7]  # none twice
    assert len(motions.batch(np.random.default_rng(0), 12)["clip"]) == 12  # but where there are too few
    assert motions.clips.flags.writeable
    assert np.array_equal(motions.clips, ClipSet.read([LIST], 4, TASK).clips)  # nothing was changed in place


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    seen=st.lists(st.integers(0, 3), min_size=1, unique=True).map(sorted),
    strength=st.sampled_from((0.0, 0.3)),
)
def test_some_frames_are_those_of_the_whole_batch(
    motions: ClipSet, seed: int, seen: list[int], strength: float
) -> None:
    augment = plain(flip=0.5, colour=strength, shift=strength)
    whole = motions.batch(np.random.default_rng(seed), 3, augment)
    part = motions.batch(np.random.default_rng(seed), 3, augment, np.array(seen))
    assert np.array_equal(part["clip"], whole["clip"][:, seen])
    assert np.array_equal(part["target"], whole["target"])
    own = motions.take([4, 0], np.array([seen, seen]))
    assert np.array_equal(own["clip"], motions.clips[[4, 0]][:, seen])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    flip=st.sampled_from((0.0, 1.0)),
    shift=st.sampled_from((0.0, 0.2, 1.0)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_every_frame_is_moved_alike_and_not_too_far(
    seed: int, flip: float, shift: float, size: tuple[int, int]
) -> None:
    height, width = size
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = np.arange(height)[:, None] * 10
    frame[..., 1] = np.arange(width) * 10
    view = ClipView(np.random.default_rng(seed), plain(flip=flip, shift=shift), size)
    found = view.apply(np.stack([frame, frame, frame]))
    assert (found == found[0]).all()
    rows, columns = found[0, :, 0, 0].astype(int) // 10, found[0, 0, :, 1].astype(int) // 10
    assert (found[0, ..., 0] == rows[:, None] * 10).all()
    assert (found[0, ..., 1] == columns * 10).all()
    if flip:
        columns = columns[::-1]
    for places, count in ((rows, height), (columns, width)):
        assert np.abs(places - np.arange(count)).max() <= round(shift * count)
        assert set(np.abs(np.diff(places))) <= {1}  # mirrored at the edge: no jump, nothing twice in a row


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), colour=st.sampled_from((0.0, 0.2, 1.0)))
def test_colour_changes_alike_and_not_too_far(seed: int, colour: float) -> None:
    grey = np.full((2, 1, 256, 3), np.arange(256)[:, None], np.uint8)
    found = ClipView(np.random.default_rng(seed), plain(colour=colour), (1, 256)).apply(grey).astype(float)
    assert (found[0] == found[1]).all()
    levels = np.arange(256)[:, None]
    least = np.floor(levels * (1 - colour) ** 2)
    most = np.minimum(np.ceil(levels * (1 + colour) ** 2), 255)
    assert ((found[0, 0] >= least) & (found[0, 0] <= most)).all()
    assert (np.diff(found[0, 0], axis=0) >= 0).all()


def test_flip_is_a_chance(motions: ClipSet) -> None:
    views = [ClipView(np.random.default_rng(seed), plain(flip=0.25), motions.size_hw) for seed in range(800)]
    assert 0.19 < np.mean([view.mirror for view in views]) < 0.31
    clip = motions.clips[0]
    for view in views[:20]:
        assert np.array_equal(view.apply(clip), clip[:, :, ::-1] if view.mirror else clip)
