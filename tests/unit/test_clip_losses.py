"""Losses of clip students against the formulas written out with numpy, and where gradients may not go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.clips.losses import (  # noqa: E402
    features_loss,
    label_loss,
    log_shares,
    places_loss,
    prediction_loss,
    representation_loss,
    student_loss,
)
from edge_sdk.distill.clips.network import Seen  # noqa: E402
from edge_sdk.distill.clips.recipes import ClipLoss  # noqa: E402
from edge_sdk.errors import ShapeError  # noqa: E402

ALL = ClipLoss(label=0.5, representation=2.0, prediction=3.0, features=100.0, places=200.0, temperature=2.0)
SEEDS = st.integers(0, 2**31)
HEAT = st.floats(0.5, 4.0)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape)


def tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def softmax(logits: np.ndarray, axis: int = 1) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def shares(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    if not multi_label:
        return softmax(logits)
    return sigmoid(logits) / sigmoid(logits).sum(1, keepdims=True)


def divergence(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    return wanted * np.log(wanted / got)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, clips=st.integers(1, 4), classes=st.integers(1, 6))
def test_label_loss_of_several_labels_is_summed_over_classes(seed: int, clips: int, classes: int) -> None:
    logits, truth = drawn(seed, clips, classes), drawn(seed + 1, clips, classes) > 0
    chance = sigmoid(logits)
    expected = -np.where(truth, np.log(chance), np.log(1 - chance)).sum(1).mean()
    assert float(label_loss(tensor(logits), tensor(truth), True)) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, clips=st.integers(1, 4), classes=st.integers(2, 6))
def test_label_loss_of_one_label_is_over_a_softmax(seed: int, clips: int, classes: int) -> None:
    logits = drawn(seed, clips, classes)
    truth = np.eye(classes)[np.random.default_rng(seed).integers(0, classes, clips)]
    expected = -(truth * np.log(softmax(logits))).sum(1).mean()
    assert float(label_loss(tensor(logits), tensor(truth), False)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_clip_without_labels_counts_as_zero(multi_label: bool) -> None:
    logits, truth = torch.randn(3, 4, generator=torch.manual_seed(0)).requires_grad_(), torch.eye(4)[:3]
    unknown = truth.clone()
    unknown[1] = float("nan")
    found = label_loss(logits, unknown, multi_label)
    plain = logits.detach()
    alone = [float(label_loss(plain[i : i + 1], truth[i : i + 1], multi_label)) for i in (0, 2)]
    assert float(found.detach()) == pytest.approx(sum(alone) / 3)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, clips=st.integers(1, 4), classes=st.integers(2, 6), heat=HEAT, multi_label=st.booleans())
def test_prediction_loss_is_the_divergence_of_shares_that_add_up_to_1(
    seed: int, clips: int, classes: int, heat: float, multi_label: bool
) -> None:
    student, teacher = drawn(seed, clips, classes), drawn(seed + 1, clips, classes)
    found = log_shares(tensor(teacher), heat, multi_label).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(clips))
    wanted, got = shares(teacher / heat, multi_label), shares(student / heat, multi_label)
    expected = heat**2 * divergence(wanted, got).sum() / clips
    loss = prediction_loss(tensor(student), tensor(teacher), heat, multi_label)
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert float(prediction_loss(tensor(teacher), tensor(teacher), heat, multi_label)) == pytest.approx(
        0, abs=1e-5
    )


def test_shares_of_classes_that_are_surely_not_there_stay_finite() -> None:
    logits = torch.full((1, 3), -200.0)
    torch.testing.assert_close(log_shares(logits, 1.0, True).exp(), torch.full((1, 3), 1 / 3))


def test_representation_loss_is_summed_over_the_vector() -> None:
    student, teacher = drawn(0, 3, 5), drawn(1, 3, 5)
    expected = ((student - teacher) ** 2).sum() / 3
    assert float(representation_loss(tensor(student), tensor(teacher))) == pytest.approx(expected, rel=1e-5)


def test_features_loss_draws_the_students_maps_to_the_teachers_size() -> None:
    student, teacher = drawn(0, 2, 3, 4, 2, 2), drawn(1, 2, 3, 4, 5, 7)
    up = nn.functional.interpolate(
        tensor(student).flatten(0, 1), size=(5, 7), mode="bilinear", align_corners=False
    )
    expected = ((up.numpy() - teacher.reshape(6, 4, 5, 7)) ** 2).mean()
    assert float(features_loss(tensor(student), tensor(teacher))) == pytest.approx(expected, rel=1e-5)
    same = tensor(teacher)
    assert float(features_loss(same, same)) == 0


def test_places_loss_is_the_mean_over_places_and_classes_alike() -> None:
    student, teacher = drawn(0, 2, 2, 3, 4, 4), drawn(1, 2, 2, 5, 4, 4)
    heads = [torch.nn.Conv2d(channels, 6, 1) for channels in (3, 5)]
    heat = 2.0
    said = [
        softmax(head(tensor(maps).flatten(0, 1)).detach().numpy().astype(np.float64) / heat)
        for head, maps in zip(heads, (student, teacher), strict=True)
    ]
    expected = heat**2 * divergence(said[1], said[0]).sum() / (4 * 6 * 16)
    loss = places_loss(tensor(student), tensor(teacher), heads[0], heads[1], heat)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def seen(seed: int, requires_grad: bool = True) -> tuple[Seen, list[Tensor]]:
    parts = [
        tensor(drawn(seed, *shape)).requires_grad_(requires_grad)
        for shape in ((2, 4), (2, 6), (2, 3, 5, 2, 2))
    ]
    return Seen(*parts), parts


def test_the_weighted_sum_and_its_parts() -> None:
    (student, own), (teacher, theirs) = seen(0), seen(1)
    heads = nn.Conv2d(5, 4, 1), nn.Conv2d(5, 4, 1)
    targets = torch.eye(4)[:2]
    total, parts = student_loss(ALL, False, student, targets, teacher, heads)
    assert set(parts) == {"label", "representation", "prediction", "features", "places"}
    expected = sum(getattr(ALL, name) * float(value) for name, value in parts.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert all(part.grad is not None and bool(part.grad.any()) for part in own)
    assert all(part.grad is None for part in theirs)
    assert heads[0].weight.grad is not None
    assert heads[1].weight.grad is None


@pytest.mark.parametrize("name", ["label", "representation", "prediction", "features", "places"])
def test_a_loss_without_weight_is_not_computed(name: str) -> None:
    (student, _), (teacher, _) = seen(0), seen(1)
    head = nn.Conv2d(5, 4, 1)
    weights: dict[str, Any] = {"label": 0.0, name: 1.0}
    _, parts = student_loss(ClipLoss(**weights), False, student, torch.eye(4)[:2], teacher, (head, head))
    assert list(parts) == [name]


@pytest.mark.parametrize("name", ["features", "places"])
def test_maps_that_are_not_there_are_an_error(name: str) -> None:
    (student, _), (teacher, _) = seen(0), seen(1)
    blind = Seen(student.logits, student.representation, None)
    head = nn.Conv2d(5, 4, 1)
    with pytest.raises(ShapeError, match="gives no feature maps"):
        student_loss(ClipLoss(**{name: 1.0}), False, blind, torch.eye(4)[:2], teacher, (head, head))
