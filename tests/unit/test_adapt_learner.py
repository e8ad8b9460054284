"""The published loop on one teacher frame, and what is learned in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.trainer import learner as module
from edge_sdk.adapt.trainer.learner import Learner, Taught
from edge_sdk.compile.graphs import Decoder
from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.models import jitnet
from edge_sdk.distill.online import OnlinePair
from edge_sdk.distill.recipes import Preprocess
from edge_sdk.errors import BundleError, CheckpointError, ShapeError
from edge_sdk.tasks import TaskSpec
from tests.trainer_world import PLAIN, SIZE_HW, TASK, Teacher, lesson, pair

ALWAYS = AdaptSettings(threshold=1.0, max_updates=3)
NO_BOXES: dict[str, Any] = {"loss": {"box_weight": 1}}


def settings(**changes: Any) -> AdaptSettings:
    return AdaptSettings.model_validate({"threshold": 1.0, "max_updates": 2, **changes})


def learner(given: AdaptSettings = ALWAYS, join: str = "replace", **arguments: Any) -> Learner:
    return Learner(pair(join), PLAIN, TASK, given, **arguments)


def same(left: Learner, right: Learner) -> bool:
    mine, theirs = left.weights(), right.weights()
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


def published(accuracies: list[float], threshold: float, most: int) -> tuple[int, float, float]:
    """The paper's listing, word for word: updates, agreement before and after."""
    measured = iter(accuracies)
    u, update, a, first = 0, True, 0.0, None
    while update:
        a = next(measured)
        first = a if first is None else first
        if u < most and a < threshold:
            u += 1
        else:
            update = False
    assert first is not None
    return u, first, a


def authors(accuracies: list[float], threshold: float, most: int) -> tuple[int, float, float]:
    """The authors' loop: the step comes first, then the test of the pass that it came from."""
    u = 0
    while u < most:
        a = accuracies[u]
        u += 1
        if a > threshold:
            break
    return u, accuracies[0], accuracies[u]


@pytest.fixture(scope="module")
def shared() -> Learner:
    return learner()


@given(
    accuracies=st.lists(st.sampled_from([0.0, 0.5, 0.79, 0.8, 0.81, 1.0]), min_size=9, max_size=9),
    threshold=st.sampled_from([0.7, 0.8, 0.9, 1.0]),
    most=st.integers(1, 8),
)
@pytest.mark.parametrize(("order", "listing"), [("test_first", published), ("step_first", authors)])
def test_the_loop_is_the_published_one(
    shared: Learner, order: str, listing: Any, accuracies: list[float], threshold: float, most: int
) -> None:
    shared.settings = AdaptSettings(threshold=threshold, max_updates=most, order=order)  # type: ignore[arg-type]
    script: Iterator[float] = iter(accuracies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "agreement", lambda *_: next(script))
        taught = shared.learn(*lesson())
    assert (taught.updates, taught.before, taught.after) == listing(accuracies, threshold, most)
    assert len(taught.losses) == taught.updates


@pytest.mark.parametrize(
    ("optimiser", "extra"),
    [({}, {}), ({"nesterov": True}, {"nesterov": True}), ({"weight_decay": 0.1}, {"weight_decay": 0.1})],
)
def test_updates_are_those_of_stochastic_gradient_descent(
    optimiser: dict[str, Any], extra: dict[str, Any]
) -> None:
    taught_one = learner(settings(optimiser={"lr": 0.1, **optimiser}, **NO_BOXES))
    reference = pair().student
    sgd = torch.optim.SGD(
        reference.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 4e-5, **extra}
    )
    for seed in range(2):  # momentum reaches from one teacher frame to the next
        image, label = lesson(seed)
        label[0] = 255
        taught = taught_one.learn(image, label)
        x = FrameToInput(PLAIN)(torch.from_numpy(image)[None])
        for found in taught.losses:
            loss = F.cross_entropy(reference(x), torch.from_numpy(label).long()[None], ignore_index=255)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, value in taught_one.weights().items():
        np.testing.assert_allclose(
            value,
            dict(reference.named_parameters())[name.removeprefix("student.")].detach(),
            rtol=1e-4,
            atol=1e-6,
        )


def test_it_learns_and_says_what_it_sees() -> None:
    taught = learner(settings(max_updates=8, optimiser={"lr": 3.0})).learn(*lesson())
    assert taught.before < 0.6 < 0.9 < taught.after
    assert taught.finite
    assert taught.losses[-1] < taught.losses[0]
    assert taught.mask.shape == SIZE_HW
    assert taught.mask.dtype == np.uint8


def test_layers_of_another_precision_learn_the_same() -> None:
    fast, exact = (
        learner(settings(max_updates=8, precision=precision, optimiser={"lr": 1.0}))
        for precision in ("bfloat16", "float32")
    )
    left, right = (one.learn(*lesson()) for one in (fast, exact))
    assert left.losses != right.losses
    assert left.losses == pytest.approx(right.losses, rel=0.02)
    assert all(value.dtype == np.float32 for value in fast.weights().values())


def test_a_gradient_is_cut_to_its_largest_norm() -> None:
    one = learner(
        settings(max_updates=1, optimiser={"lr": 1.0, "momentum": 0.0, "weight_decay": 0, "clip_norm": 1e-3})
    )
    before = one.weights()
    one.learn(*lesson())
    moved = sum(float(((value - before[name]) ** 2).sum()) for name, value in one.weights().items())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_masks_are_decoded_as_the_graphs_do(stride: int) -> None:
    torch.manual_seed(0)
    network = jitnet(3, 0.1)
    size_hw = (35, 50)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    task = TaskSpec(classes=("a", "b", "c"))
    # Nothing to learn: every pixel is ignored.
    taught = Learner(OnlinePair(network, Teacher()), Preprocess(), task, ALWAYS, decode_stride=stride).learn(
        image, np.full(size_hw, 255, np.uint8)
    )
    with torch.no_grad():
        logits = network(FrameToInput(Preprocess())(torch.from_numpy(image)[None]))
    assert taught.updates == 0
    assert np.unique(taught.mask).size > 1
    assert np.array_equal(taught.mask, Decoder(size_hw, stride)(logits).numpy())


def test_only_what_is_trained_changes() -> None:
    one = learner(trained=["student.bias"])
    before = one.weights()
    one.learn(*lesson())
    after = one.weights()
    assert np.array_equal(before["student.weight"], after["student.weight"])
    assert not np.array_equal(before["student.bias"], after["student.bias"])


@pytest.mark.parametrize(
    ("trained", "said"), [(["student.nothing"], "student.nothing"), ([], "nothing could learn")]
)
def test_what_cannot_be_trained_is_refused(trained: list[str], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        learner(trained=trained)


IMAGE, LABEL = lesson()


@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        (IMAGE[..., :2], LABEL, "image: expected"),
        (IMAGE.astype(np.float32), LABEL, "float32"),
        (IMAGE, LABEL[1:], "label: expected"),
        (IMAGE, LABEL.astype(np.int64), "int64"),
        (IMAGE, np.full_like(LABEL, 2), "class ids below 2"),
    ],
)
def test_bad_lessons_are_refused_and_change_nothing(image: np.ndarray, label: np.ndarray, said: str) -> None:
    one = learner()
    with pytest.raises(ShapeError, match=said):
        one.learn(image, label)
    assert same(one, learner())
    assert one.learn(IMAGE, LABEL).finite


def test_undo_goes_back_to_before_the_last_lesson_momentum_included() -> None:
    plain, undone = learner(), learner()
    for one in (plain, undone):
        one.learn(*lesson(0))
    undone.learn(*lesson(1))
    undone.undo()
    assert same(plain, undone)
    undone.undo()
    for one in (plain, undone):
        one.learn(*lesson(2))
    assert same(plain, undone)


def test_undo_without_a_lesson_does_nothing_and_of_the_first_ends_without_momentum() -> None:
    one = learner()
    one.undo()
    one.learn(*lesson(1))
    one.undo()
    other = learner()
    assert same(one, other)
    for each in (one, other):
        each.learn(*lesson(0))
    assert same(one, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_poisoned_weights_are_told_and_make_no_update(value: float) -> None:
    one = learner()
    with torch.no_grad():
        one.pair.student.weight[0, 0] = value  # type: ignore[operator]
    taught = one.learn(*lesson())
    assert not taught.finite
    assert taught.updates == 0
    assert len(taught.losses) == 1


def test_a_lesson_that_diverges_is_told_and_undone() -> None:
    one = learner(settings(max_updates=8, optimiser={"lr": 1e38}))
    before = one.weights()
    taught = one.learn(*lesson())
    assert not taught.finite
    assert taught.updates < 8
    one.undo()
    assert all(np.array_equal(value, before[name]) for name, value in one.weights().items())


@pytest.mark.parametrize("join", ["replace", "correct"])
def test_the_state_goes_on_as_if_nothing_had_been(join: str) -> None:
    given = settings(memory={"frames": 2, "per_update": 2})
    straight = learner(given, join)
    for seed in range(3):
        straight.learn(*lesson(seed))
    kept = straight.state_dict()
    again = learner(given, join)
    again.learn(*lesson(9))
    again.load_state_dict(kept)
    assert same(straight, again)
    again.undo()  # there is nothing to undo
    results: list[list[Taught]] = [
        [each.learn(*lesson(seed)) for seed in (3, 4)] for each in (straight, again)
    ]
    assert same(straight, again)
    assert [t.losses for t in results[0]] == [t.losses for t in results[1]]


def _broken(**changes: Any) -> dict[str, Any]:
    return {**learner().state_dict(), **changes}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "kept weights"),
        (_broken(weights={}), "not in both"),
        (
            _broken(weights={**_broken()["weights"], "student.bias": torch.zeros(3)}),
            "expected \\(2,\\), got \\(3,\\)",
        ),
        (_broken(weights={**_broken()["weights"], "student.bias": 1}), "got int"),
        (_broken(momentum={"student.other": torch.zeros(2)}), "student.other"),
        (_broken(last={"image": 1}), "teacher frame"),
        (_broken(memory={}), "memory"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(state: dict[str, Any], said: str) -> None:
    one = learner()
    with pytest.raises(CheckpointError, match=said):
        one.load_state_dict(state)
    assert same(one, learner())


def test_the_teachers_last_answer_corrects_the_student() -> None:
    """Join "correct": the state is that of the teacher frame before, the teacher is asked once a frame and stays."""
    given = settings(max_updates=2, **NO_BOXES)
    one = learner(given, "correct")
    teacher = one.pair.teacher
    seen: list[torch.Tensor] = []
    plain = one.pair.state

    def state(x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x)
        return plain(x, target)

    one.pair.state = state  # type: ignore[method-assign]
    images = [lesson(seed)[0] for seed in range(3)]
    for seed in range(3):
        taught = one.learn(*lesson(seed))
        expected = FrameToInput(PLAIN)(torch.from_numpy(images[max(seed - 1, 0)])[None])
        assert len(seen) == taught.updates + 1
        assert all(torch.equal(x, expected) for x in seen)
        seen.clear()
    assert teacher.asked == 3
    assert teacher.gain == 10
    assert teacher.gain.grad is None
    changed = {name for name, value in one.pair.learnable().items() if value.grad is not None}
    assert changed == {"student.weight", "student.bias", "offset", "slope"}


def test_the_gradient_goes_through_the_student_at_the_keyframe_too() -> None:
    """On the first frame, corrected by itself, a change of the student's bias changes nothing: it cancels."""
    one = learner(settings(max_updates=1, **NO_BOXES), "correct")
    with torch.no_grad():
        one.pair.offset.fill_(50.0)  # all trust
    one.learn(*lesson())
    gradients = {name: float(value.grad.abs().max()) for name, value in one.pair.learnable().items()}  # type: ignore[union-attr]
    alone = learner(settings(max_updates=1, **NO_BOXES))
    alone.learn(*lesson())
    expected = float(alone.pair.learnable()["student.bias"].grad.abs().max())  # type: ignore[union-attr]
    assert gradients["student.bias"] < 1e-6 < expected
