"""Boxes, the loss, and the memory of past teacher frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_sdk.adapt.settings import AdaptSettings, MemorySettings, OnlineLoss
from edge_sdk.adapt.trainer.boxes import box_weights
from edge_sdk.adapt.trainer.learner import Learner
from edge_sdk.adapt.trainer.loss import online_loss
from edge_sdk.adapt.trainer.recall import Memory, TeacherFrame
from tests.trainer_world import PLAIN, TASK, lesson, pair

SIZE = (40, 60)


def label(*boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    """A label with boxes (top, left, height, width, class)."""
    out = np.zeros(SIZE, np.uint8)
    for top, left, height, width, index in boxes:
        out[top : top + height, left : left + width] = index
    return out


@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    [
        pytest.param(label(), {}, [], id="background alone"),
        pytest.param(label((10, 20, 20, 10, 1)), {}, [(7, 18, 26, 14)], id="15 % of height and width on every side"),
        pytest.param(label((10, 20, 20, 10, 1)), {"box_margin": 0}, [(10, 20, 20, 10)], id="no margin"),
        pytest.param(label((0, 50, 20, 10, 1)), {}, [(0, 48, 23, 12)], id="cut off at the border"),
        pytest.param(label((5, 5, 5, 3, 1)), {}, [], id="15 pixels are noise"),
        pytest.param(label((5, 5, 4, 4, 1)), {"box_margin": 0}, [(5, 5, 4, 4)], id="16 are not"),
        pytest.param(label((5, 5, 2, 1, 1)), {"box_least": 0, "box_margin": 0}, [(5, 5, 2, 1)], id="no least"),
        pytest.param(
            label((0, 0, *SIZE, 1), (5, 5, 6, 6, 2)), {"box_most": 0.5, "box_margin": 0}, [(5, 5, 6, 6)],
            id="scenery has none, what stands in it has",
        ),
        pytest.param(label((0, 0, *SIZE, 1)), {}, [(0, 0, *SIZE)], id="published: any box"),
        pytest.param(label((10, 20, 20, 10, 255)), {}, [], id="what is ignored has no box"),
        pytest.param(
            label((0, 0, 5, 5, 1), (20, 20, 5, 5, 1)), {"box_margin": 0}, [(0, 0, 5, 5), (20, 20, 5, 5)],
            id="two of one class",
        ),
        pytest.param(
            label((0, 0, 5, 5, 1), (5, 5, 5, 5, 1)), {"box_margin": 0}, [(0, 0, 10, 10)], id="joined by a corner"
        ),
        pytest.param(
            label((0, 0, 5, 5, 1), (0, 5, 5, 5, 2)), {"box_margin": 0, "box_weight": 9}, [(0, 0, 5, 10)],
            id="two classes side by side, weights do not add up",
        ),
        pytest.param(label((10, 20, 20, 10, 1)), {"box_weight": 1}, [], id="no boxes"),
    ],
)  # fmt: skip
def test_boxes(
    given: np.ndarray, settings: dict[str, Any], expected: list[tuple[int, int, int, int]]
) -> None:
    chosen = OnlineLoss(**settings)
    wanted = np.ones(SIZE, np.float32)
    for top, left, height, width in expected:
        wanted[top : top + height, left : left + width] = chosen.box_weight
    found = box_weights(given, 3, chosen)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted)


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 3, 6, 8, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (1, 6, 8), generator=generator)
    return logits, target, torch.where(target == 1, 5.0, 1.0)


def test_the_loss_is_the_mean_of_weighted_cross_entropy_over_labelled_pixels() -> None:
    logits, target, weights = drawn()
    target[0, :2] = 255
    each = F.cross_entropy(logits, target, ignore_index=255, reduction="none") * weights
    found = online_loss(logits, target, weights, 255, OnlineLoss())
    assert float(found) == pytest.approx(float(each[0, 2:].mean()))
    found.backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, :2].any()


def test_the_focal_loss_counts_what_is_right_already_less() -> None:
    logits, target, weights = drawn()
    entropy = F.cross_entropy(logits, target, reduction="none")
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    expected = (10 * weights * entropy * (1 + (1 - p).clamp(0.1, 0.9) ** 2)).mean()
    found = online_loss(logits, target, weights, 255, OnlineLoss(kind="focal"))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_without_a_labelled_pixel_there_is_no_loss() -> None:
    logits, target, weights = drawn()
    loss = online_loss(logits, torch.full_like(target, 255), weights, 255, OnlineLoss())
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def frame(index: int) -> TeacherFrame:
    return TeacherFrame(np.full((2, 2, 3), index, np.uint8), np.zeros((2, 2), np.uint8))


def numbers(memory: Memory) -> list[int]:
    return [int(kept["image"][0, 0, 0]) for kept in memory.state_dict()["frames"]]


def test_the_memory_is_a_fair_sample_of_all_frames() -> None:
    counts = np.zeros(20)
    for seed in range(600):
        memory = Memory(MemorySettings(frames=5), seed)
        for index in range(20):
            memory.add(frame(index))
        assert len(memory) == 5
        counts[numbers(memory)] += 1
    # 600 * 5 / 20 = 150 each, deviation 10.6.
    assert counts.min() > 105
    assert counts.max() < 195


def test_draws_are_different_frames_and_as_many_as_there_are() -> None:
    memory = Memory(MemorySettings(frames=5, per_update=3), 0)
    assert [*memory.draw()] == []
    memory.add(frame(0))
    assert len([*memory.draw()]) == 1
    for index in range(1, 5):
        memory.add(frame(index))
    for _ in range(10):
        assert len({int(drawn.image[0, 0, 0]) for drawn in memory.draw()}) == 3


def test_without_a_memory_nothing_is_kept() -> None:
    memory = Memory(None, 0)
    memory.add(frame(0))
    assert len(memory) == 0


def test_a_memory_that_became_smaller_keeps_what_fits() -> None:
    memory = Memory(MemorySettings(frames=5), 0)
    for index in range(5):
        memory.add(frame(index))
    smaller = Memory(MemorySettings(frames=2), 0)
    smaller.load_state_dict(memory.state_dict())
    assert len(smaller) == 2


def test_an_update_learns_the_mean_of_newest_and_remembered_frames() -> None:
    """A second lesson with its one remembered frame is one step on the mean of both losses."""
    given = AdaptSettings.model_validate(
        {"threshold": 1.0, "max_updates": 1, "memory": {"frames": 1}, "loss": {"box_weight": 1}}
    )
    one = Learner(pair(), PLAIN, TASK, given)
    one.learn(*lesson(0))
    before = {name: torch.from_numpy(value) for name, value in one.weights().items()}
    taught = one.learn(*lesson(1))
    losses = []
    for seed in (0, 1):
        image, mask = lesson(seed)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        logits = F.conv2d(x, before["student.weight"], before["student.bias"])
        losses.append(float(F.cross_entropy(logits, torch.from_numpy(mask).long()[None])))
    assert taught.losses[0] == pytest.approx(np.mean(losses), rel=1e-5)
