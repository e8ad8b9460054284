"""Online pairs: recipes that contradict themselves, weights that are never random by omission, and the two joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.modules import save_checkpoint  # noqa: E402
from edge_sdk.distill.online import (  # noqa: E402
    OnlinePair,
    OnlineRecipe,
    make_pair,
    open_names,
)
from edge_sdk.errors import CheckpointError, FileFormatError, RecipeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import nets, online_pairs  # noqa: E402


def recipe(folder: Path, **changes: Any) -> OnlineRecipe:
    return parse_settings(online_pairs.data(folder, **changes), OnlineRecipe, "test")


def frame(size_hw: tuple[int, int] = (24, 40), seed: int = 0) -> Tensor:
    return torch.randn(1, 3, *size_hw, generator=torch.Generator().manual_seed(seed))


# Recipes

NO_TEACHER: dict[str, Any] = {"teacher": None, "teacher_classes": (), "groups": None}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"teacher": None}, "'teacher_classes' is about the teacher"),
    ({"teacher": None, "teacher_classes": ()}, "'groups' is about the teacher"),
    ({**NO_TEACHER, "join": "correct"}, "join 'correct' needs a 'teacher'"),
    ({"groups": None}, "'teacher_classes' are not task.classes"),
    ({"teacher_classes": ()}, "'groups' need 'teacher_classes'"),
    ({"teacher_classes": ("x", "x", "y", "z")}, "'groups' need 'teacher_classes', each named once"),
    ({"groups": {"a": ("x",)}}, "'groups': expected one for each of a, b .*got a"),
    ({"groups": {}}, "'groups': expected one for each of a, b .*got none"),
    ({"groups": {"background": ("w",), "a": ("x",), "b": ("y",)}}, "'groups': expected one for each of a, b"),
    ({"groups": {"a": (), "b": ("y",)}}, r"'groups\.a': expected at least one"),
    ({"groups": {"a": ("x", "q"), "b": ("y",)}}, "'groups': 'q' is none of teacher_classes"),
    ({"groups": {"a": ("x", "y"), "b": ("y",)}}, "'groups': 'y' is named twice"),
    ({"groups": {"a": ("w", "x", "z"), "b": ("y",)}}, "no teacher class is left for the background"),
    ({"join": "add"}, "'join'"),
    ({"open": "logits"}, "'open'"),
]


@pytest.mark.parametrize(("changes", "message"), CONTRADICTIONS)
def test_recipes_that_contradict_themselves(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, **changes)


def test_recipes_that_do_not(tmp_path: Path) -> None:
    assert recipe(tmp_path).members == ((0,), (1, 3), (2,))
    assert recipe(tmp_path, **NO_TEACHER).members == ()
    alike = {"task": {"classes": online_pairs.TEACHER_CLASSES}, "groups": None}
    assert recipe(tmp_path, **alike).members == ()


# Groups


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_a_pixel_belongs_to_the_group_of_the_teachers_winning_class(seed: int) -> None:
    members = ((0, 4), (1, 3), (2,))
    logits = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(seed))
    grouped = OnlinePair(nn.Identity(), nn.Identity(), members=members).keyframe(logits)[0]
    group_of = {index: group for group, ids in enumerate(members) for index in ids}
    expected = logits.argmax(1).apply_(lambda index: group_of[int(index)])
    assert torch.equal(grouped.argmax(1), expected)
    assert torch.equal(grouped.amax(1), logits.amax(1))


# Weights


def test_the_checkpoints_weights_are_taken(tmp_path: Path) -> None:
    pair = make_pair(recipe(tmp_path))
    for name in ("student", "teacher"):
        kept = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert all(
            torch.equal(value, kept[key]) for key, value in pair.get_submodule(name).state_dict().items()
        )
    assert not pair.training
    assert not any(p.requires_grad for p in pair.teacher.parameters())


def test_only_what_is_fresh_begins_at_random(tmp_path: Path) -> None:
    """The checkpoint has four classes, the stream three."""
    student = online_pairs.module(tmp_path, "wide", 4, 5)
    student = {**student, "arguments": {"classes": 3}}
    with pytest.raises(CheckpointError, match=r"2 of another shape \(8\.weight.*belongs under 'fresh'"):
        make_pair(recipe(tmp_path, student=student))
    kept = torch.load(tmp_path / "wide.pt", weights_only=True)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, again, other = (
        make_pair(recipe(tmp_path, student=student, fresh=("8.*",), seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before), "nobody else's draws are changed"
    for name, value in first.student.state_dict().items():
        if name.startswith("8."):
            assert torch.equal(value, again.student.state_dict()[name])
            assert not torch.equal(value, other.student.state_dict()[name])
        else:
            assert torch.equal(value, kept[name])


def test_weights_that_are_missing(tmp_path: Path) -> None:
    kept = torch.load(online_pairs.module(tmp_path, "half", 3, 1)["checkpoint"], weights_only=True)
    save_checkpoint(tmp_path / "half.pt", {name: value for name, value in kept.items() if name != "3.weight"})
    student = {**online_pairs.module(tmp_path, "other", 3, 1), "checkpoint": tmp_path / "half.pt"}
    with pytest.raises(CheckpointError, match=r"1 missing \(3\.weight\)"):
        make_pair(recipe(tmp_path, student=student))
    bare = {**student, "checkpoint": None}
    with pytest.raises(RecipeError, match=r"expected a file with trained weights.*fresh: \['\*'\]"):
        make_pair(recipe(tmp_path, student=bare, fresh=("8.*",)))
    make_pair(recipe(tmp_path, student=bare, fresh=("*",)))
    with pytest.raises(RecipeError, match=r"'fresh': the pattern 'logits\.\*' matches no tensor.*8\.bias"):
        make_pair(recipe(tmp_path, fresh=("logits.*",)))
    teacher = {**online_pairs.module(tmp_path, "t", 4, 1), "checkpoint": None}
    with pytest.raises(RecipeError, match="trained weights, got none"):
        make_pair(recipe(tmp_path, teacher=teacher))


@pytest.mark.parametrize("join", ["replace", "correct"])
def test_a_file_of_the_whole_pair(join: str, tmp_path: Path) -> None:
    """What a bundle carries: the checkpoints are gone, and nothing of them is asked for."""
    written = make_pair(recipe(tmp_path, join=join))
    with torch.no_grad():
        for parameter in written.learnable().values():
            parameter.add_(1.0)
    save_checkpoint(tmp_path / "online.pt", {"pair": written.state_dict()})
    gone = {
        name: {**online_pairs.data(tmp_path)[name], "checkpoint": None} for name in ("student", "teacher")
    }
    bare = recipe(tmp_path, join=join, **gone)
    found = make_pair(bare, tmp_path / "online.pt").state_dict()
    assert list(found) == list(written.state_dict())
    assert all(torch.equal(value, written.state_dict()[name]) for name, value in found.items())
    for content, error, message in (
        ({"pair": {**written.state_dict(), "more": torch.zeros(1)}}, CheckpointError, r"not in the module"),
        ({"pair": {}}, CheckpointError, "missing"),
        ({"pair": 3}, CheckpointError, "expected a pair's weights under 'pair'"),
        (written.state_dict(), CheckpointError, "expected a pair's weights under 'pair'"),
        ({"pair": print}, FileFormatError, "code in it"),
    ):
        save_checkpoint(tmp_path / "bad.pt", content)
        with pytest.raises(error, match=message):
            make_pair(bare, tmp_path / "bad.pt")


def test_without_a_teacher_the_keyframe_step_is_the_student_of_before(tmp_path: Path) -> None:
    pair = make_pair(recipe(tmp_path, **NO_TEACHER))
    x = frame()
    with torch.no_grad():
        before = pair.delta(x, {})[0]
        for parameter in pair.learnable().values():
            parameter.mul_(1.5)
        assert torch.equal(pair.keyframe(x)[0], before)
        assert not torch.equal(pair.delta(x, {})[0], before)


CALLED: list[str] = []


def spy(classes: int = 3) -> nn.Module:
    CALLED.append("spy")
    return nets.tiny(classes)


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_factory_that_nobody_allowed_is_not_called(which: str, tmp_path: Path) -> None:
    CALLED.clear()
    strange = {"factory": f"{__name__}:spy"}
    given = recipe(tmp_path, **{which: strange})
    for allowed in (("tests.nets:",), ("tests.nets:", "edge_sdk.distill.models:")):
        with pytest.raises(
            RecipeError, match=rf"would run {__name__}:spy.*'{__name__}:' to AdaptSettings\.fac"
        ):
            make_pair(given, tmp_path / "none.pt", allowed=allowed)
    assert not CALLED
    make_pair(recipe(tmp_path), allowed=("tests.nets:",))


# Joins


@pytest.mark.parametrize("size_hw", [(24, 40), (25, 39), (8, 8), (7, 3)])
def test_on_the_keyframes_own_frame_the_student_is_corrected_to_the_teacher(
    size_hw: tuple[int, int], tmp_path: Path
) -> None:
    pair, x = make_pair(recipe(tmp_path, join="correct")), frame(size_hw)
    with torch.no_grad():
        pair.offset.fill_(50.0)  # full trust
        teacher, state = pair.keyframe(x)
        answer, rewritten = pair.delta(x, state)
        own = pair.student(x)
    grid = tuple(-(-side // 8) for side in size_hw)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "residual": (1, 3, *grid), "student": (1, 3, *grid),
    }  # fmt: skip
    assert rewritten == {}
    torch.testing.assert_close(state["student"].sum(1), torch.ones(1, *grid))
    up = nn.functional.interpolate(state["residual"], own.shape[-2:], mode="bilinear")
    torch.testing.assert_close(answer, own + up)
    if all(side % 8 == 0 for side in size_hw):
        pooled = nn.functional.avg_pool2d(teacher - own, 4)
        torch.testing.assert_close(state["residual"], pooled, rtol=1e-4, atol=1e-4)


def test_the_correction_fades_where_the_students_answer_has_changed() -> None:
    pair = OnlinePair(nn.Identity(), nn.Identity(), join="correct").eval()
    logits = torch.zeros(1, 2, 16, 16)
    state = {"residual": torch.ones(1, 2, 2, 2), "student": torch.full((1, 2, 2, 2), 0.5)}
    logits[:, 0, :8, :8] = 20.0  # one cell of the four: sure of class 0 where it was undecided
    with torch.no_grad():
        added = pair.delta(logits, state)[0] - logits
    assert added[0, 0, -1, -1] == pytest.approx(0.982, abs=0.001)
    assert added[0, 0, 0, 0] == pytest.approx(0.5, abs=0.001)


def test_what_learns_and_what_does_not(tmp_path: Path) -> None:
    for join, more in (("replace", []), ("correct", ["offset", "slope"])):
        pair = make_pair(recipe(tmp_path, join=join)).train()
        assert not any(module.training for module in pair.teacher.modules())
        learnable = pair.learnable()
        student = [f"student.{name}" for name, _ in pair.student.named_parameters()]
        assert sorted(learnable) == sorted(student + more)
        statistics = {"student.1.running_mean", "student.1.running_var", "student.4.running_mean"}
        assert set(pair.learned()) - set(learnable) == statistics | {"student.4.running_var"}
        before = {name: value.clone() for name, value in pair.state_dict().items()}
        x = frame()
        state = pair.keyframe(frame(seed=1))[1]
        pair.delta(x, state)[0].square().sum().backward()
        assert all(parameter.grad is not None for parameter in learnable.values())
        assert all(parameter.grad is None for parameter in pair.teacher.parameters())
        changed = {name for name, value in pair.state_dict().items() if not torch.equal(value, before[name])}
        counts = {"student.1.num_batches_tracked", "student.4.num_batches_tracked"}
        assert changed == set(pair.learned()) - set(learnable) | counts


def test_open_patterns(tmp_path: Path) -> None:
    given = recipe(tmp_path, join="correct", open=("8.*", "*.running_mean", "slope"))
    names = open_names(given, make_pair(given))
    assert set(names) == {
        "student.8.weight", "student.8.bias", "student.1.running_mean", "student.4.running_mean", "slope",
    }  # fmt: skip
    assert open_names(recipe(tmp_path), make_pair(given)) == ()
    with pytest.raises(RecipeError, match=r"'open': the pattern 'logits\.\*' matches no tensor"):
        open_names(recipe(tmp_path, open=("logits.*",)), make_pair(given))
