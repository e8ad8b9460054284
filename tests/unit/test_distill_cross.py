"""Cross-resolution pairs: what the student sees, where the keyframe corrects it, what learns, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("lightning_fabric", reason="training needs lightning-fabric")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.correction import Confidence, confidence, kept, shift_of_shares  # noqa: E402
from edge_sdk.distill.cross import (  # noqa: E402
    CrossPair,
    SmallInput,
    load_cross,
    make_cross,
    small_input,
)
from edge_sdk.distill.cross_recipe import CrossRecipe  # noqa: E402
from edge_sdk.distill.cross_training import CrossObjective, distill_cross  # noqa: E402
from edge_sdk.distill.delta_recipe import DistillRecipe  # noqa: E402
from edge_sdk.distill.frames import FrameSet, FrameToInput  # noqa: E402
from edge_sdk.distill.losses import SegmentationLoss  # noqa: E402
from edge_sdk.distill.modules import load_module, read_checkpoint, save_checkpoint  # noqa: E402
from edge_sdk.distill.recipes import ModuleSettings, Preprocess  # noqa: E402
from edge_sdk.distill.steps import TRUST  # noqa: E402
from edge_sdk.distill.taps import drawn_to, feature_loss, size_of  # noqa: E402
from edge_sdk.distill.train import frame_miou  # noqa: E402
from edge_sdk.errors import CheckpointError, RecipeError, ShapeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import nets  # noqa: E402
from tests.cross_recipes import CLASSES, CLIP, SIZE_HW, TASK, module, recipe  # noqa: E402


def frame(seed: int = 0, size_hw: tuple[int, int] = (24, 40), count: int = 1) -> Tensor:
    return torch.randn(count, 3, *size_hw, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# Recipes

BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "delta"}, "kind"),
    ({"scale": 0.0}, "scale"),
    ({"scale": 1.0}, "'scale' 1 needs 'student'"),
    ({"scale": 1.1}, "scale"),
    ({"multiple": 0}, "multiple"),
    ({"confidence": -1}, "confidence"),
    ({"confidence": "all"}, "confidence"),
    ({"join": "add"}, "join"),
    ({"join": "replace", "motion": {}}, "'motion' needs join 'correct'"),
    ({"motion": {"radius": 0}}, "radius"),
    ({"join": "blend", "confidence": "none"}, "join 'blend' needs 'confidence'"),
    ({"join": "blend", "motion": {}}, "join 'blend' needs 'motion.follow'"),
    ({"student_lr": 1.5}, "student_lr"),
    ({"student_lr": 0.0, "join": "replace"}, "'student_lr' 0 needs"),
    ({"student_lr": 0.0, "confidence": "none"}, "'student_lr' 0 needs"),
    ({"data": {"between": 1}}, "'data.between': expected 0"),
    ({"data": {"between": 1}, "motion": {}}, "'data.between': expected 0"),
    ({"loss": {"motion": -1.0}}, "motion"),
    ({"loss": {"features": 1.0, "feature_at": ""}}, "'features' needs 'feature_at'"),
    ({"loss": {"alone": -1.0}}, "alone"),
    ({"data": {"video": [], "stills": []}}, "expected sources"),
    ({"student_hw": [4, 4]}, "student_hw"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_settings_out_of_range(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **changes)


def test_delta_students_see_no_frames_between() -> None:
    given = {
        "out": "o", "task": {"classes": ["a"]}, "loop": {"steps": 1}, "teacher": {"factory": "a:b"},
        "data": {"stills": ["x"], "between": 1},
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"'data\.between': expected 0"):
        parse_settings(given, DistillRecipe, "test")


def test_a_recipe_says_its_kind(tmp_path: Path) -> None:
    data = recipe(tmp_path).model_dump(exclude={"kind"})
    with pytest.raises(RecipeError, match="kind"):
        parse_settings(data, CrossRecipe, "test")


# What the student sees


@pytest.mark.parametrize(
    ("size_hw", "scale", "multiple", "expected"),
    [
        ((360, 480), 0.5, 8, (184, 240)),
        ((360, 480), 0.5, 1, (180, 240)),
        ((80, 80), 0.7, 8, (56, 56)),  # 0.7 * 80 is a little more than 56 in floating point
        ((1024, 2048), 0.25, 32, (256, 512)),
        ((5, 5), 0.1, 4, (4, 4)),
    ],
)
def test_the_students_sides(
    size_hw: tuple[int, int], scale: float, multiple: int, expected: tuple[int, int]
) -> None:
    small = SmallInput(nn.Identity(), scale, multiple)
    assert small.size_of(size_hw) == expected
    assert tuple(small(torch.zeros(1, 3, *size_hw)).shape[-2:]) == expected


@given(st.integers(1, 4000), st.integers(1, 999), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_sides_are_the_next_multiple_of_the_share(side: int, thousandths: int, multiple: int) -> None:
    found, _ = SmallInput(nn.Identity(), thousandths / 1000, multiple).size_of((side, 7))
    assert found % multiple == 0 < found
    assert 1000 * found >= side * thousandths  # in whole numbers, without rounding
    assert found == multiple or 1000 * (found - multiple) < side * thousandths


def test_the_input_is_drawn_down_without_smoothing() -> None:
    x = torch.arange(32.0).reshape(1, 1, 4, 8)
    small = SmallInput(nn.Identity(), 0.25, 1)(x)  # one of every four, between the two in the middle
    assert torch.equal(small, torch.tensor([[[[13.5, 17.5]]]]))


@pytest.mark.parametrize("size_hw", [(12, 16), (12, 14), (14, 16), (13, 15), (6, 7)])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_halving_by_means_is_the_bilinear_resize(size_hw: tuple[int, int], multiple: int) -> None:
    small = SmallInput(nn.Identity(), 0.5, multiple)
    x = frame(3, size_hw)
    expected = F.interpolate(x, size=small.size_of(size_hw), mode="bilinear")
    assert close(small(x), expected)


class Every8th(nn.Module):
    """Logits are every eighth pixel, as a network of stride 8 places them."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::8, ::8]


@pytest.mark.parametrize("size_hw", [(360, 480), (240, 424), (100, 212), (56, 60)])
def test_answers_to_half_a_frame_are_in_line_with_those_to_all_of_it(size_hw: tuple[int, int]) -> None:
    """Where sides are no multiples of the stride too: each cell is as far from the teacher's as the first."""
    rows = torch.arange(float(size_hw[0]))[:, None] + torch.zeros(size_hw)
    columns = torch.arange(float(size_hw[1])) + torch.zeros(size_hw)
    x = torch.stack([rows, columns, columns])[None]
    whole = Every8th()(x)
    small = drawn_to(SmallInput(Every8th(), 0.5, 1)(x), size_of(whole))
    away = (small - whole)[0, :, 1:-1, 1:-1]
    # Half a pixel of halving, and bilinear maps have their cells' middle elsewhere.
    assert torch.allclose(away[0], torch.tensor(-3.5), atol=1e-3)
    assert torch.allclose(away[1], torch.tensor(-3.5), atol=1e-3)


def test_a_student_by_itself_is_a_network_for_every_frame(tmp_path: Path) -> None:
    pair = make_cross(recipe(tmp_path), SIZE_HW)
    given = module(tmp_path, "student", 2)
    small = small_input(ModuleSettings.model_validate(given), 0.5, 4)
    small.load_state_dict(pair.student.state_dict())
    x = frame(5, SIZE_HW)
    assert torch.equal(small.eval()(x), pair.student(x))


# Where the keyframe corrects


def test_the_confidence_begins_as_a_line_in_the_shares_shift() -> None:
    now, before = (
        torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(s)).softmax(1) for s in (0, 1)
    )
    line = Confidence(3, 0)
    expected = confidence(now, before, line.offset, line.slope)
    assert torch.equal(line(now, before), expected)
    assert close(Confidence(3, 4)(now, before), expected.expand(2, 3, 4, 5))


def test_confidence_in_numbers() -> None:
    before = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    for moved, expected in ((0.0, 0.98201), (0.5, 0.5), (1.0, 0.01799)):
        now = torch.tensor([1 - moved, moved]).reshape(1, 2, 1, 1)
        assert float(shift_of_shares(now, before)) == pytest.approx(moved)
        assert float(Confidence(2, 0)(now, before).detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("width", [0, 4])
@given(seed=st.integers(0, 1000), height=st.integers(9, 33), side=st.integers(9, 40))
@settings(max_examples=8, deadline=None)
def test_full_confidence_at_the_keyframe_is_the_teacher_and_none_is_the_student(
    width: int, seed: int, height: int, side: int
) -> None:
    torch.manual_seed(seed)
    teacher, student = (nets.randomise(nets.tiny(CLASSES), seed + i) for i in (0, 1))
    pair = CrossPair(teacher, SmallInput(student, 0.5, 4), "correct", Confidence(CLASSES, width)).eval()
    x = frame(seed, (height, side))
    with torch.no_grad():
        target, state = pair.keyframe(x)
        assert close(target, teacher(x))
        assert {name: value.shape for name, value in state.items()} == dict.fromkeys(
            ("residual", "student"), target.shape
        )
        assert pair.confidence is not None
        pair.confidence.offset.fill_(50.0)
        again, rewritten = pair.delta(x, state)
        assert set(rewritten) == {TRUST}
        assert close(again, target)
        pair.confidence.offset.fill_(-50.0)
        by_itself, _ = pair.delta(x, state)
        own = pair.student(x)
        assert close(by_itself, F.interpolate(own, size=target.shape[-2:], mode="bilinear"))


def test_the_correction_fades_where_the_answer_changed_and_stays_elsewhere() -> None:
    pair = CrossPair(nn.Identity(), SmallInput(nn.Identity(), 0.5, 1), "correct", Confidence(2, 0))
    before = torch.tensor([9.0, -9.0]).reshape(1, 2, 1, 1).repeat(1, 1, 1, 2)
    state = kept(before + torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1), before)
    now = before.clone()
    now[..., 1] *= -1  # the second place now shows the other class
    added = (pair.corrected(now, state)[0] - now).detach()
    assert added[0, :, 0, 0].tolist() == pytest.approx([1.964, -0.982], abs=1e-3)
    assert added[0, :, 0, 1].tolist() == pytest.approx([0.036, -0.018], abs=1e-3)


def test_join_replace_has_no_state_and_answers_alone(tmp_path: Path) -> None:
    pair = make_cross(recipe(tmp_path, join="replace"), SIZE_HW)
    assert pair.confidence is None
    with torch.no_grad():
        _, state = pair.keyframe(frame())
        answer, rewritten = pair.delta(frame(1), state)
    assert state == rewritten == {}
    assert torch.equal(answer, pair.student(frame(1)).detach())


def test_blending_carries_the_last_answer_on(tmp_path: Path) -> None:
    """Each step: as far from the student's answer towards the last one as m says; m is of those two."""
    pair = make_cross(recipe(tmp_path, join="blend", confidence=0), SIZE_HW)
    assert pair.confidence is not None
    with torch.no_grad():
        answer, state = pair.keyframe(frame())
        assert set(state) == {"answer"}
        for seed in (1, 2, 3):
            before, x = answer, frame(seed)
            own = F.interpolate(pair.student(x), size=before.shape[-2:], mode="bilinear")
            shift = 0.5 * (own.softmax(1) - before.softmax(1)).abs().sum(1, keepdim=True)
            m = torch.sigmoid(1.0 - 4.0 * shift)
            answer, state = pair.delta(x, state)
            assert close(answer, own + m * (before - own))
            assert close(state["answer"], answer)
            assert float(state.pop(TRUST)) == pytest.approx(float(m.mean()), abs=1e-5)
        for offset, expected in ((60.0, before), (-60.0, own)):
            pair.confidence.offset.fill_(offset)
            assert close(pair.delta(x, {"answer": before})[0], expected)


# Learning


def test_a_blended_pair_learns_from_one_step_where_nothing_lies_between(tmp_path: Path) -> None:
    objective = objective_of(recipe(tmp_path, join="blend"))
    pair, drawn = objective.pair.eval(), batch()  # as batch norm sees other batches in training
    loss, parts = objective(drawn)
    with torch.no_grad():
        first, x = (objective.to_input(drawn[name]) for name in ("first", "frame"))
        answer, _ = pair.delta(x, pair.keyframe(first)[1])
        expected = objective.task_loss(answer, drawn["mask"].long(), pair.teacher(x))
    assert float(parts["task"]) == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in pair.confidence.parameters())  # type: ignore[union-attr]


def test_feature_loss_is_the_mean_over_all_elements() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 3, 4, 6, generator=generator)
    assert float(feature_loss(teacher + 2.0, teacher)) == pytest.approx(4.0)
    small = torch.randn(2, 3, 2, 3, generator=generator)
    expected = np.square((F.interpolate(small, size=(4, 6), mode="bilinear") - teacher).numpy()).mean()
    assert float(feature_loss(small, teacher)) == pytest.approx(expected)


def objective_of(given: CrossRecipe) -> CrossObjective:
    task_loss = SegmentationLoss(given.loss.task, TASK.ignore_label)
    return CrossObjective(make_cross(given, SIZE_HW), FrameToInput(Preprocess()), given.loss, task_loss)


def batch() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 2, 32, 48, 3), np.uint8)
    mask = rng.integers(0, CLASSES, (2, 32, 48)).astype(np.uint8)
    return {
        "first": torch.from_numpy(frames[0]),
        "frame": torch.from_numpy(frames[1]),
        "mask": torch.from_numpy(mask),
    }


def test_only_the_student_and_the_confidence_learn(tmp_path: Path) -> None:
    objective = objective_of(recipe(tmp_path)).train()
    pair = objective.pair
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    loss, figures = objective(batch())
    loss.backward()
    assert set(figures) == {"task", "alone", "feature"}
    parts = objective.settings
    total = figures["task"] + parts.alone * figures["alone"] + parts.features * figures["feature"]
    assert float(loss.detach()) == pytest.approx(float(total), rel=1e-5)
    for name, parameter in pair.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        # The convolution begins at zero: only what is behind it sees a gradient in the first step.
        wanted = not name.startswith("teacher.") and "more.0" not in name
        assert reached == wanted, name
    after = pair.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("student.") and ("running" in name or "num_batches" in name) for name in moved)
    assert not any(name.startswith("pair.teacher.") for name in objective.weights())


def test_a_loss_of_weight_zero_is_not_counted(tmp_path: Path) -> None:
    objective = objective_of(recipe(tmp_path, loss={"features": 0.0, "alone": 0.0}))
    loss, figures = objective(batch())
    assert float(figures["feature"]) == float(figures["alone"]) == 0.0
    assert float(loss.detach()) == pytest.approx(float(figures["task"]))


def test_join_replace_learns_from_the_later_frame_alone(tmp_path: Path) -> None:
    objective = objective_of(recipe(tmp_path, join="replace"))
    given = batch()
    loss, _ = objective(given)
    other, _ = objective({**given, "first": torch.zeros_like(given["first"])})
    assert float(loss.detach()) == float(other.detach())
    corrected = objective_of(recipe(tmp_path))
    with torch.no_grad():
        first, second = (
            corrected(b)[0] for b in (given, {**given, "first": torch.zeros_like(given["first"])})
        )
    assert float(first) != float(second)


class _Stop(Exception):
    pass


class _StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        if done == self.step:
            raise _Stop


def test_a_stopped_distillation_goes_on_bit_for_bit_and_loads(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"validation": [CLIP], "intervals": [3], "loop": {"validate_every": 4}}
    straight = recipe(tmp_path, **changes)
    report = distill_cross(straight)
    assert {"task", "alone", "feature", "miou_k1", "miou_k3", "miou_alone"} <= set(report.figures)
    stopped = straight.model_copy(update={"out": tmp_path / "other"})
    with pytest.raises(_Stop):
        distill_cross(stopped, progress=_StopAt(3))
    assert distill_cross(stopped).figures == report.figures
    content = read_checkpoint(tmp_path / "out" / "student.pt")
    other = read_checkpoint(tmp_path / "other" / "student.pt")
    assert set(content["state_dict"]) == set(other["state_dict"])
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in content["state_dict"].items())

    # The file alone is enough: the teacher's checkpoint may be gone.
    teacher = load_module(ModuleSettings.model_validate(straight.teacher.model_dump()))
    (tmp_path / "teacher.pt").unlink()
    pair, known, meta = load_cross(report.checkpoint)
    assert known == straight
    assert meta["figures"] == report.figures
    assert not any(part.training for part in pair.modules())
    x = frame()
    with torch.no_grad():
        assert torch.equal(pair.keyframe(x)[0], teacher(x))
    # With a keyframe on every frame the pair is the teacher, and it has not learnt.
    expected = frame_miou(
        teacher, FrameToInput(straight.preprocess), FrameSet.read([CLIP], labelled=True), TASK
    )
    assert report.figures["miou_k1"] == pytest.approx(expected, abs=1e-6)
    learnt, began = pair.student.network.state_dict(), teacher.state_dict()
    assert any(not torch.equal(learnt[name], began[name]) for name in learnt)


# What is refused


def test_networks_without_weights_are_refused(tmp_path: Path) -> None:
    bare = {"factory": "tests.nets:tiny", "arguments": {"classes": CLASSES}}
    with pytest.raises(RecipeError, match="expected a file with trained weights"):
        make_cross(recipe(tmp_path, student=bare), SIZE_HW)
    with pytest.raises(RecipeError, match="expected a file with trained weights"):
        make_cross(recipe(tmp_path, teacher={"checkpoint": None}), SIZE_HW)


def test_a_student_of_its_own_begins_with_its_own_weights(tmp_path: Path) -> None:
    own = module(tmp_path, "own", 5, width=6)
    pair = make_cross(recipe(tmp_path, student=own), SIZE_HW)
    loaded = load_module(ModuleSettings.model_validate(own)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in pair.student.network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"feature_at": "nowhere"}}, "has no module 'nowhere'.*"),
        ({"loss": {"feature_at": "5"}, "width": 6}, r"as many channels .* \(1, 8, .* \(1, 6,"),
    ],
)
def test_features_that_cannot_be_compared(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    width = changes.pop("width", None)
    if width is not None:
        changes["student"] = module(tmp_path, "narrow", 2, width=width)
    with pytest.raises(RecipeError, match=message):
        distill_cross(recipe(tmp_path, **changes))
    assert not (tmp_path / "out" / "student.pt").exists()


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_students_share_of_the_learning_rate(share: float, tmp_path: Path) -> None:
    """At 0 it stays as it is, its statistics too, and the join learns."""
    given = recipe(tmp_path, student_lr=share)
    before = make_cross(given, SIZE_HW).state_dict()
    after = read_checkpoint(distill_cross(given).checkpoint)["state_dict"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("confidence.") for name in changed)
    assert any(name.startswith("student.") for name in changed) == (share > 0)
    objective = CrossObjective(
        make_cross(given, SIZE_HW), FrameToInput(Preprocess()), given.loss,
        SegmentationLoss(given.loss.task, given.task.ignore_label), given.student_lr,
    )  # fmt: skip
    rates = [group["lr"] for group in objective.groups(given.optimiser)]
    lr = given.optimiser.lr
    assert rates == pytest.approx([share * lr, lr] if share else [lr])


@pytest.mark.parametrize("norm", ["learn", "keep"])
def test_a_students_batch_norm_may_keep_its_statistics(norm: str, tmp_path: Path) -> None:
    """Its weights learn all the same."""
    given = recipe(tmp_path, student_norm=norm)
    before = make_cross(given, SIZE_HW).state_dict()
    after = read_checkpoint(distill_cross(given).checkpoint)["state_dict"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_student = {name for name in changed if name.startswith("student.")}
    assert any(name.endswith("weight") for name in of_student)
    assert any("running_" in name for name in of_student) == (norm == "learn")


def test_a_student_of_other_classes_is_refused(tmp_path: Path) -> None:
    other = module(tmp_path, "other", 2)
    other["arguments"] = {"classes": 3}
    save_checkpoint(other["checkpoint"], nets.tiny(3).state_dict())
    with pytest.raises(ShapeError, match=rf"expected class logits \(1, {CLASSES}, h, w\)"):
        distill_cross(recipe(tmp_path, student=other))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: {**c, "meta": {**c["meta"], "kind": "delta"}}, "expected a student of a cross-resolution"),
        (lambda c: {"state_dict": c["state_dict"]}, "expected a student of a cross-resolution"),
        (lambda c: {"meta": c["meta"]}, "expected the weights of a pair"),
        (lambda c: {**c, "state_dict": {"confidence.offset": torch.zeros(1)}}, "does not fit CrossPair"),
    ],
)
def test_other_files_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    given, path = recipe(tmp_path), tmp_path / "student.pt"
    meta = {"kind": "cross", "recipe": given.model_dump(mode="json"), "figures": {}}
    save_checkpoint(path, spoil({"state_dict": make_cross(given, SIZE_HW).state_dict(), "meta": meta}))
    with pytest.raises(CheckpointError, match=message):
        load_cross(path)
