"""Units that may be several things: both forms of every candidate, the draw between them, and what a choice leaves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

import yaml  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.candidates import Choice, Gate  # noqa: E402
from edge_sdk.distill.convert import Conversion, to_delta  # noqa: E402
from edge_sdk.distill.delta import DeltaBlock, DeltaConv2d, DeltaNet, Pass  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402
from edge_sdk.errors import ConversionError, MissingFileError, RecipeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import nets  # noqa: E402

EXAMPLE = torch.zeros(1, 3, *nets.SIZE_HW)
KINDS = ("full", "rank/4", "channels/2", "half", "half+rank/4", "half+channels/2", "kept")
ODD_HW = (31, 45)
CONV, BLOCK = "middle.stages.0.a.0", "middle"


def convert(teacher: nn.Module, example: Tensor = EXAMPLE, **settings: Any) -> Conversion:
    return to_delta(teacher, example, DeltaSettings(**{"include": (), **settings}))


def close(found: Tensor, expected: Tensor, rtol: float = 2e-4) -> None:
    """Equal up to reordered float32 sums, relative to the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


@torch.no_grad()
def shake(net: DeltaNet) -> None:
    """Random students, as training makes them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.student_parameters():
        if parameter.ndim > 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@torch.no_grad()
def check_forms(net: DeltaNet, teacher: nn.Module, size_hw: tuple[int, int] = nets.SIZE_HW) -> None:
    first, *later = nets.frames(3, size_hw)
    expected = teacher(first.clone())
    published: dict[str, Tensor] = {}
    close(net.run(Pass.KEYFRAME, first.clone(), published, "published")[0], expected)
    out, telescoped = net.keyframe(first.clone())
    close(out, expected)
    close(net.delta(first.clone(), telescoped)[0], expected)
    for x in later:
        old, _ = net.run(Pass.DELTA, x.clone(), published, "published")
        close(net.delta(x.clone(), telescoped)[0], old)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "unit", "size_hw"),
    [("nested", CONV, ODD_HW), ("nested", "middle", ODD_HW), ("in_place", "middle", ODD_HW),
     ("grouped", "middle.0", nets.SIZE_HW), ("shared", "middle.one", ODD_HW),
     ("transposed", "middle", nets.SIZE_HW), ("keywords", "middle.conv", nets.SIZE_HW)],
)  # fmt: skip
def test_telescoped_equals_published(kind: str, name: str, unit: str, size_hw: tuple[int, int]) -> None:
    teacher = nets.foreign(name)
    found = convert(teacher, torch.zeros(1, 3, *size_hw), units={unit: (kind,)})
    assert found.net.choice == {unit: kind}
    shake(found.net)
    check_forms(found.net, teacher, size_hw)


@pytest.mark.parametrize("unit", [CONV, BLOCK])
def test_a_unit_may_be_many_things(unit: str) -> None:
    teacher = nets.foreign("nested")
    found = convert(teacher, units={unit: KINDS})
    made = found.net.units[unit]
    assert isinstance(made, DeltaConv2d if unit == CONV else DeltaBlock)
    assert made.candidates == KINDS
    assert isinstance(made.g_gate, Choice)
    # Published: the full candidate starts less likely.
    assert made.g_gate.logits.tolist() == [-1.0] + [0.0] * 6
    macs = found.units[unit]
    assert list(macs) == list(KINDS)
    assert macs["kept"] == 0
    assert macs["half"] * 4 == macs["full"] > macs["rank/4"] > macs["half+rank/4"] > 0
    shake(found.net)
    for index in range(len(KINDS)):
        with found.net.each_as(index):
            assert found.net.choice == {unit: KINDS[index]}
            check_forms(found.net, teacher)
    assert made.g_gate.fixed is None


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("in_place", "middle.b"),
        ("nested", CONV),
        ("nested", "middle.stages.0.a"),
        ("residual", "middle.body"),
    ],
)
def test_training_draws_one_candidate_for_all(name: str, unit: str) -> None:
    """What is drawn is what the candidate alone answers; every candidate and the choice have gradients."""
    teacher = nets.foreign(name)
    kinds = ("full", "rank/4") if name == "residual" else KINDS
    net = convert(teacher, units={unit: kinds}).net
    for parameter in net.requires_grad_(False).student_parameters():
        parameter.requires_grad_()
    shake(net)
    first, later = nets.frames(2)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        net.run(Pass.KEYFRAME, first, state, "published")
        alone = []
        for index in range(len(kinds)):
            with net.each_as(index):
                alone.append(net.run(Pass.DELTA, later.clone(), state, "published")[0])
    made = net.units[unit]
    made.training = True
    assert made.g_gate is not None
    made.g_gate.training = True
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        out, _ = net.run(Pass.DELTA, later.clone(), state, "published")
        match = [i for i, answer in enumerate(alone) if torch.allclose(out, answer, atol=1e-4)]
        assert len(match) == 1
        seen.add(match[0])
    assert seen == set(range(len(kinds)))
    out.square().sum().backward()
    for part in made.students():
        for parameter in part.parameters():
            assert parameter.grad is not None
    (grad,) = (parameter.grad for parameter in made.g_gate.parameters())
    assert grad is not None
    assert bool(grad.abs().sum() > 0)
    # Adding the same to every score changes nothing.
    assert float(grad.sum()) == pytest.approx(0, abs=1e-3 * float(grad.abs().max()))


def test_two_candidates_are_drawn_as_the_published_gate_draws() -> None:
    choice, gate = Choice([-1.0, 0.0]).train(), Gate().train()
    torch.manual_seed(0)
    drawn = torch.stack([choice() for _ in range(4000)]).detach()
    assert bool((drawn.sum(1) == 1).all())
    torch.manual_seed(0)
    published = torch.stack([gate() for _ in range(4000)]).detach()
    assert torch.equal(drawn[:, 0], published)
    torch.testing.assert_close(choice.shares(), gate.shares())
    for logit in (-2.0, 0.5):
        grads = []
        for chooser, parameter, start in ((choice, choice.logits, [logit, 0.0]), (gate, gate.logit, logit)):
            parameter.data = torch.tensor(start)
            parameter.grad = None
            torch.manual_seed(3)
            chooser.weights()[0].backward()
            grads.append(parameter.grad.flatten()[0])  # type: ignore[attr-defined]
        torch.testing.assert_close(*grads)


def test_a_choice_in_evaluation_takes_the_likeliest() -> None:
    choice = Choice([0.0, 0.0, 0.0]).eval()
    for index in (2, 0, 1):
        with torch.no_grad():
            choice.logits.zero_()
            choice.logits[index] = 1.0
        assert (choice.best, choice().tolist()) == (index, [float(i == index) for i in range(3)])
    choice.fixed = 0
    assert choice.best == 0


def test_old_settings_said_as_units_are_the_same() -> None:
    """``blocks`` and ``kept`` are units of one candidate."""
    teacher = nets.foreign("nested")
    pairs = [
        (convert(teacher, blocks=(BLOCK,)), convert(teacher, units={BLOCK: ("rank/4",)})),
        (convert(teacher, kept=(BLOCK,)), convert(teacher, units={BLOCK: ("kept",)})),
    ]
    first, later = nets.frames(2)
    for old, new in pairs:
        assert old.net.choice == new.net.choice
        with torch.no_grad():
            answers = [c.net.delta(later, c.net.keyframe(first)[1])[0] for c in (old, new)]
        assert torch.equal(*answers)
        costs = [[(row.name, row.student_macs) for row in c.layers] for c in (old, new)]
        assert costs[0] == costs[1]


def test_the_table_of_layers() -> None:
    teacher = nets.foreign("nested")
    rows = {
        row.name: row for row in convert(teacher, units={CONV: ("full", "kept"), "*.b": ("half",)}).layers
    }
    assert rows[CONV].reason == "full, kept"
    assert rows[CONV].student_macs == 0
    assert rows["middle.stages.0.b.0"].reason == "unit middle.stages.0.b"
    assert rows["middle.stages.0.b.0"].student_macs * 4 == rows["middle.stages.0.b.0"].macs
    assert rows["last"].reason == "last"


def test_the_first_pattern_counts_and_the_outer_module() -> None:
    teacher = nets.foreign("nested")
    net = convert(teacher, units={"*.a": ("half",), "*.a.0": ("full",), "*.[ab]": ("rank/4",)}).net
    assert net.choice == {"middle.stages.0.a": "half", "middle.stages.0.b": "rank/4"}


# A choice


def test_a_choice_leaves_one_candidate_and_no_gate() -> None:
    teacher = nets.foreign("nested")
    whole = convert(teacher, include=("*",), units={CONV: KINDS})
    assert set(whole.units) == {CONV, "middle.stages.0.b.0"}
    other = "middle.stages.0.b.0"
    for kind in KINDS:
        choice = {CONV: kind, other: "full"}
        found = convert(teacher, include=("*",), units={CONV: KINDS}, choice=choice)
        assert found.net.choice == choice
        assert all(unit.g_gate is None for unit in found.net.units.values())
        check_forms(found.net, teacher)
        # Narrowed after training, the network has the very same tensors.
        trained = copy.deepcopy(whole.net)
        trained.units[CONV].keep(kind)
        trained.units[other].keep("full")
        assert list(trained.network.state_dict()) == list(found.net.network.state_dict())
        assert whole.units == found.units
    part = convert(teacher, include=("*",), units={CONV: KINDS}, choice={CONV: "half"}).net
    assert isinstance(part.units[other].g_gate, Gate)


def test_a_choice_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "choice.yaml"
    file.write_text(yaml.safe_dump({CONV: "half"}))
    found = parse_settings({"units": {CONV: ["full", "half"]}, "choice": str(file)}, DeltaSettings, "test")
    assert found.choice == {CONV: "half"}
    with pytest.raises(MissingFileError, match="expected a file at"):
        parse_settings({"choice": str(tmp_path / "none.yaml")}, DeltaSettings, "test")


def test_keeping_a_choice_drops_what_feeds_only_kept_units() -> None:
    teacher = nets.foreign("nested")
    both = {CONV: ("full", "kept"), "middle.stages.0.b.0": ("full", "kept")}
    whole = convert(teacher, units=both)
    # Nothing vanishes while it may still be chosen.
    assert whole.unused == frozenset()
    found = convert(teacher, units=both, choice={"middle.stages.0.b.0": "kept"})
    assert found.unused == {CONV}
    assert found.net.choice == {"middle.stages.0.b.0": "kept"}
    assert {row.name: row.reason for row in found.layers}[CONV] == "feeds only what is kept"
    check_forms(found.net, teacher)


# settings, message
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"units": {"midle": ["half"]}}, ConversionError, r"'delta.units': the pattern 'midle' matches no module"),
    ({"units": {BLOCK: ["hlaf"]}}, RecipeError, r"'candidate': expected full, rank/N.* got 'hlaf'"),
    ({"units": {BLOCK: []}}, RecipeError, r"'units': expected one or more different candidates for 'middle'"),
    ({"units": {BLOCK: ["half", "half"]}}, RecipeError, r"expected one or more different candidates for 'middle'"),
    ({"units": {BLOCK: ["half"]}, "blocks": [CONV]}, ConversionError,
     rf"'delta.blocks': '{CONV}' overlaps with the unit 'middle' of 'delta.units'"),
    ({"units": {CONV: ["half"]}, "kept": [BLOCK]}, ConversionError, r"'delta.kept': 'middle' overlaps with the unit"),
    ({"units": {BLOCK: ["half"]}, "choice": {"midle": "half"}}, RecipeError,
     r"'delta.choice': 'midle' is no unit of this network. Its units are: middle"),
    ({"units": {BLOCK: ["half", "full"]}, "choice": {BLOCK: "kept"}}, RecipeError,
     r"'delta.choice': expected one of half, full for 'middle', got 'kept'"),
    ({"units": {BLOCK: ["half"]}, "choice": [1]}, RecipeError, r"'choice': Input should be a valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "message"), WRONG)
def test_wrong_settings_are_named(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    def use() -> None:
        settings = parse_settings({"include": [], **given}, DeltaSettings, "test")
        to_delta(nets.foreign("nested"), EXAMPLE, settings)

    with pytest.raises(kind, match=message):
        use()


def test_a_candidate_that_a_network_does_not_bear_is_refused() -> None:
    """A block that works in place on what its network reads again cannot be kept: nothing would work on it."""
    with pytest.raises(ConversionError, match="the converted delta step differs from the teacher"):
        convert(nets.foreign("residual"), units={"middle.body": ("full", "kept")})
