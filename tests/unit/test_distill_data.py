"""Training data: views that keep image and label together, pairs and their motion, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
cv2 = pytest.importorskip("cv2", reason="frames need OpenCV")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edge_sdk.distill.frames import FrameSet, FrameToInput, View  # noqa: E402
from edge_sdk.distill.pairs import PairSampler, moved  # noqa: E402
from edge_sdk.distill.recipes import Augment, Motion, PairData, Preprocess  # noqa: E402
from edge_sdk.errors import RecipeError, ShapeError  # noqa: E402
from edge_sdk.tasks.base import TaskSpec  # noqa: E402

HW = (40, 56)
TASK = TaskSpec(classes=("a", "b", "c", "d"))
STILL = Motion(max_gap=4, shift=0, zoom=0, turn=0, parallax=0, light=0)


def painted(size_hw: tuple[int, int] = HW) -> tuple[np.ndarray, np.ndarray]:
    """A label mask of big shapes, and an image whose red channel is 60 times the label."""
    mask = np.zeros(size_hw, np.uint8)
    cv2.circle(mask, (20, 18), 11, 1, -1)
    cv2.rectangle(mask, (34, 8), (50, 30), 2, -1)
    cv2.rectangle(mask, (4, 32), (40, 38), 3, -1)
    image = np.full((*size_hw, 3), 100, np.uint8)
    image[..., 2] = mask * 60
    return image, mask


@settings(max_examples=60)
@given(
    st.integers(0, 9999),
    st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.6, 0.9), (1.5, 3.0)]),
    st.sampled_from([None, (24, 24), (40, 60), (64, 80)]),
    st.sampled_from([0.0, 1.0]),
)
def test_a_view_keeps_image_and_mask_together(
    seed: int, scale: tuple[float, float], crop: tuple[int, int] | None, flip: float
) -> None:
    image, mask = painted()
    augment = Augment(crop_hw=crop, scale=scale, flip=flip, colour=0)
    view = View(np.random.default_rng(seed), augment, HW)
    seen, label = view.image(image), view.mask(mask, 255)
    assert seen.shape == (*(crop or HW), 3)
    assert label.shape == (crop or HW)
    # A source pixel's blend reaches up to three pixels at the largest zoom, and past the crop's edge.
    inside = np.pad((label != 255)[4:-4, 4:-4], 4)
    assert inside.any()
    assert set(np.unique(label)) <= {0, 1, 2, 3, 255}
    # Away from borders between classes, where one is interpolated and the other is not, they agree exactly.
    around = np.ones((9, 9), np.uint8)
    flat = (cv2.erode(label, around) == label) & (cv2.dilate(label, around) == label) & inside
    assert (np.abs(seen[..., 2].astype(int) - 60 * label)[flat] <= 1).all()


def test_pixels_from_outside_the_frame_are_ignored_and_only_they() -> None:
    image, mask = painted()
    augment = Augment(scale=(0.5, 0.5), flip=0, colour=0)
    label = View(np.random.default_rng(0), augment, HW).mask(mask, 255)
    assert 0.2 < (label != 255).mean() < 0.3  # a quarter of the crop is frame
    whole = Augment(scale=(1, 1), flip=0, colour=0)
    view = View(np.random.default_rng(0), whole, HW)
    assert np.array_equal(view.mask(mask, 255), mask)
    assert np.array_equal(view.image(image), image)


def test_a_mirrored_view_is_the_mirror_image() -> None:
    image, mask = painted()
    plain = View(np.random.default_rng(3), Augment(scale=(1, 1), flip=0, colour=0), HW)
    mirror = View(np.random.default_rng(3), Augment(scale=(1, 1), flip=1, colour=0), HW)
    assert np.array_equal(mirror.image(image), plain.image(image)[:, ::-1])
    assert np.array_equal(mirror.mask(mask, 255), plain.mask(mask, 255)[:, ::-1])
    chances = [View(np.random.default_rng(i), Augment(flip=0.3), HW).to_source[0, 0] < 0 for i in range(300)]
    assert 0.2 < np.mean(chances) < 0.4


def test_a_turned_crop_is_turned_about_its_middle_and_no_draw_is_spent_without() -> None:
    image = np.zeros((*HW, 3), np.uint8)
    image[: HW[0] // 2, : HW[1] // 2] = 200
    plain = Augment(scale=(1, 1), flip=0, colour=0)
    turned = [View(np.random.default_rng(i), plain.model_copy(update={"turn": 180.0}), HW) for i in range(40)]
    angles = [np.arctan2(view.to_source[1, 0], view.to_source[0, 0]) for view in turned]
    assert min(angles) < -2
    assert max(angles) > 2
    middle = np.array([(HW[1] - 1) / 2, (HW[0] - 1) / 2, 1])
    straight = View(np.random.default_rng(0), plain, HW)
    for view in turned:
        assert view.to_source @ middle == pytest.approx(straight.to_source @ middle)
        inside = view.mask(np.ones(HW, np.uint8), 255)
        assert set(np.unique(inside)) <= {1, 255}
        assert (inside == 1).mean() > 0.5


def test_colour_is_one_draw_for_all_frames_of_a_view() -> None:
    image, mask = painted()
    view = View(np.random.default_rng(1), Augment(scale=(1, 1), flip=0, colour=0.4), HW)
    first, again = view.image(image), view.image(image)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, image)
    assert np.array_equal(view.mask(mask, 255), mask)
    # A monotone table: brighter stays brighter.
    assert (np.diff(view.table[0].astype(int), axis=0) >= 0).all()


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_frames_become_network_input(order: str) -> None:
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    frame = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    out = FrameToInput(Preprocess(mean=mean, std=std, order=order))(frame)  # type: ignore[arg-type]
    channels = frame.flip(-1) if order == "RGB" else frame
    expected = (channels.float() - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(out, expected.permute(0, 3, 1, 2))
    resized = FrameToInput(Preprocess(size_hw=(8, 3)))(frame)
    assert resized.shape == (2, 3, 8, 3)


# Pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of one clip; a frame's blue channel is its index."""
    root = tmp_path_factory.mktemp("clip")
    for part in ("images", "labels"):
        (root / part).mkdir()
    for index in range(6):
        image, mask = painted()
        image[..., 0] = 10 * index
        cv2.imwrite(str(root / "images" / f"{index}.png"), image)
        cv2.imwrite(str(root / "labels" / f"{index}.png"), mask)
    return root


PLAIN = Augment(scale=(1, 1), flip=0, colour=0)


def sampler(
    data: PairData, *, batch: int = 4, augment: Augment = PLAIN, labelled: bool = True
) -> PairSampler:
    return PairSampler(data, augment, TASK, batch, labelled=labelled)


def test_pairs_from_video_are_real_frames_at_the_gap_drawn(folder: Path) -> None:
    draw = sampler(PairData(video=(str(folder),), max_gap=3), batch=64)
    batch = draw(np.random.default_rng(0))
    assert batch["first"].shape == batch["frame"].shape == (64, *HW, 3)
    assert batch["mask"].shape == (64, *HW)
    assert {value.dtype for key, value in batch.items() if key != "gap"} == {torch.uint8}
    first, frame = batch["first"][:, 0, 0, 0] // 10, batch["frame"][:, 0, 0, 0] // 10
    gap = batch["gap"]
    assert torch.equal(frame.long() - first.long(), gap)
    assert set(gap.tolist()) == {1, 2, 3}
    assert set(frame.tolist()) == {1, 2, 3, 4, 5}
    mask = torch.from_numpy(painted()[1])
    assert all(torch.equal(row, mask) for row in batch["mask"])


def test_pairs_never_cross_clips(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for part in ("images", "labels"):
        (other / part).mkdir(parents=True)
    for index in range(3):
        image, mask = painted()
        image[..., 0] = 200 + 10 * index
        cv2.imwrite(str(other / "images" / f"{index}.png"), image)
        cv2.imwrite(str(other / "labels" / f"{index}.png"), mask)
    draw = sampler(PairData(video=(str(folder), str(other)), max_gap=9), batch=200)
    batch = draw(np.random.default_rng(0))
    first, frame = batch["first"][:, 0, 0, 0].int(), batch["frame"][:, 0, 0, 0].int()
    assert torch.equal(first >= 200, frame >= 200)
    assert (first < frame).all()
    assert (frame >= 200).any()


def test_stills_without_motion_are_their_own_pair(folder: Path) -> None:
    draw = sampler(PairData(stills=(str(folder),), motion=STILL), batch=64)
    batch = draw(np.random.default_rng(0))
    assert torch.equal(batch["first"], batch["frame"])
    assert set(batch["gap"].tolist()) == {1, 2, 3, 4}
    assert set((batch["frame"][:, 0, 0, 0] // 10).tolist()) == set(range(6))


def test_stills_under_motion_move_and_keep_their_label(folder: Path) -> None:
    augment = Augment(scale=(1.0, 1.6), flip=0.5, colour=0.2)
    draw = sampler(PairData(stills=(str(folder),)), batch=8, augment=augment)
    batch = draw(np.random.default_rng(0))
    assert all(not torch.equal(a, b) for a, b in zip(batch["first"], batch["frame"], strict=True))
    assert all(len(torch.unique(mask)) > 1 for mask in batch["mask"])


def test_video_and_stills_together(folder: Path) -> None:
    # Five later frames of video and six stills are drawn evenly, or as the share says.
    for share, expected in ((None, 6 / 11), (0.9, 0.1), (1.0, 0.0), (0.0, 1.0)):
        data = PairData(
            video=(str(folder),), stills=(f"{folder}?fps=1",), max_gap=2, motion=STILL, video_share=share
        )
        batch = sampler(data, batch=100)(np.random.default_rng(0))
        still = (batch["first"] == batch["frame"]).flatten(1).all(1)
        assert float(still.float().mean()) == pytest.approx(expected, abs=0.15 if 0 < expected < 1 else 0)


def test_batches_are_a_function_of_the_seed(folder: Path) -> None:
    draw = sampler(PairData(stills=(str(folder),), video=(str(folder),)), augment=Augment())
    one, same, other = (draw(np.random.default_rng(seed)) for seed in ([0, 1], [0, 1], [0, 2]))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["frame"], other["frame"])


def test_frames_without_a_label_are_all_ignored(folder: Path) -> None:
    data = PairData(video=(f"{folder}?labels=0",))
    batch = sampler(data, labelled=False)(np.random.default_rng(0))
    assert (batch["mask"] == 255).all()
    with pytest.raises(RecipeError, match=r"expected labels, but frame 0 of .* has none.*labels/"):
        sampler(data)


@pytest.mark.parametrize("gap", [1, 4])
def test_motion_is_per_frame_of_gap(gap: int) -> None:
    """A translation moves a dot by the shift times the frame's side, times the gap."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[38:43, 58:63] = 255
    distances = []
    for seed in range(60):
        motion = Motion(shift=0.01, zoom=0, turn=0, parallax=0, light=0)
        out = moved(image, np.random.default_rng(seed), motion, gap)
        y, x = (
            np.average(np.arange(n), weights=out[..., 0].sum(1 - axis)) for axis, n in ((0, 80), (1, 120))
        )
        distances.append(((x - 60) / 120, (y - 40) / 80))
    spread = np.std(distances, axis=0)
    assert spread == pytest.approx(0.01 * gap, rel=0.35)


def test_motion_directions() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    cv2.circle(image, (60, 40), 20, (255, 255, 255), -1)
    area = int((image > 127).sum())
    zoomed = [
        (
            moved(image, np.random.default_rng(s), Motion(shift=0, zoom=0.1, turn=0, parallax=0, light=0), 1)
            > 127
        ).sum()
        for s in range(80)
    ]
    # Cameras travel forward more often than back, so the earlier frame more often sees the disc smaller.
    assert np.mean(np.array(zoomed) < area) > 0.55
    grey = np.full((8, 8, 3), 100, np.uint8)
    lit = moved(grey, np.random.default_rng(0), Motion(shift=0, zoom=0, turn=0, parallax=0, light=0.1), 1)
    assert len(np.unique(lit)) == 1
    assert lit[0, 0, 0] != 100


# What is refused


def test_a_single_frame_is_no_video(folder: Path) -> None:
    from edge_sdk.errors import EdgeSdkError

    one = folder.parent / "one"
    (one / "images").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(one / "images" / "0.png"), painted()[0])
    with pytest.raises(
        EdgeSdkError, match=r"expected at least 2 consecutive frames, .*one has 1.*data.stills"
    ):
        sampler(PairData(video=(str(one),)), labelled=False)


def test_what_a_frame_set_refuses(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected at least one source, got none"):
        FrameSet.read([])
    small = TaskSpec(classes=("a", "b"))
    with pytest.raises(RecipeError, match=r"labelled with ids \[2, 3\], expected 0\.\.1 or ignore_label 255"):
        FrameSet.read([str(folder)], task=small)
    other = tmp_path / "small"
    other.mkdir()
    cv2.imwrite(str(other / "0.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ShapeError, match="expected frames of one size"):
        FrameSet.read([str(folder), str(other)])


def test_a_frame_set_knows_its_clips_and_classes(folder: Path) -> None:
    frames = FrameSet.read([str(folder), f"{folder}?fps=5"], labelled=True, task=TASK)
    assert len(frames) == 12
    assert frames.clips == ((0, 6), (6, 12))
    assert frames.size_hw == HW
    counts = np.bincount(painted()[1].ravel(), minlength=4)
    np.testing.assert_allclose(frames.class_share(4), counts / counts.sum())
