"""Conversion of networks that nobody here wrote: converted rightly, left exact with a reason, or refused by name."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.convert import Conversion, to_delta  # noqa: E402
from edge_sdk.distill.delta import DeltaNet, Pass  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402
from edge_sdk.errors import ConversionError  # noqa: E402
from tests import nets  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")

EXAMPLE = torch.zeros(1, 3, *nets.SIZE_HW)


def convert(network: nn.Module, **settings: object) -> Conversion:
    return to_delta(network, EXAMPLE, DeltaSettings(**settings))  # type: ignore[arg-type]


def close(found: Tensor, expected: Tensor, rtol: float = 2e-4) -> None:
    """Equal up to reordered float32 sums, relative to the largest value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * float(expected.abs().max()))


def check_forms(net: DeltaNet, teacher: nn.Module, *, steps: int = 3) -> None:
    """The keyframe step is the teacher, a delta on the keyframe itself too, and later frames agree in both forms."""
    images = nets.frames(steps + 1)
    with torch.no_grad():
        # Copies, because a network may work in place on its input.
        expected = teacher(images[0].clone())
        published: dict[str, Tensor] = {}
        out, _ = net.run(Pass.KEYFRAME, images[0].clone(), published, "published")
        close(out, expected)
        out, telescoped = net.keyframe(images[0].clone())
        close(out, expected)
        still, _ = net.delta(images[0].clone(), telescoped)
        close(still, expected)
        kept = {name: value.clone() for name, value in telescoped.items()}
        moved = []
        for image in images[1:]:
            old, _ = net.run(Pass.DELTA, image.clone(), published, "published")
            new, rewritten = net.delta(image.clone(), telescoped)
            assert rewritten == {}
            close(new, old)
            moved.append(new)
        for name, value in kept.items():
            assert torch.equal(telescoped[name], value), f"the delta step changed {name}"
        # Low-rank students answer something else than the teacher on other frames, or the test would show nothing.
        assert not torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("name", nets.MIDDLES)
def test_foreign_networks_are_converted_or_left_exact_with_a_reason(name: str) -> None:
    teacher = nets.foreign(name)
    before = copy.deepcopy({k: v.detach().clone() for k, v in teacher.state_dict().items()})
    found = convert(teacher)
    reasons = {row.name: row.reason for row in found.layers}
    expected = {f"middle.{layer}": reason for layer, reason in nets.MIDDLES[name][1].items()}
    assert reasons == {"first": "first", **expected, "last": "last"}
    for row in found.layers:
        assert row.converted == (row.reason == "full and low rank")
        if row.converted:
            assert 0 < row.student_macs < row.macs
    check_forms(found.net, teacher)
    after = teacher.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("name", ["grouped", "in_place", "shared", "residual"])
@pytest.mark.parametrize("candidates", ["full", "low_rank"])
def test_foreign_networks_with_one_candidate(name: str, candidates: str) -> None:
    teacher = nets.foreign(name)
    net = convert(teacher, candidates=candidates).net
    assert all(layer.g_gate is None for layer in net.layers)
    if candidates == "full":
        # The full candidate starts as the teacher, so the student is the teacher on every frame.
        with torch.no_grad():
            _, state = net.keyframe(nets.frames(1)[0])
            later = nets.frames(1, seed=9)[0]
            close(net.delta(later.clone(), state)[0], teacher(later.clone()), rtol=1e-3)
    check_forms(net, teacher)


# name of the middle, how many norms stay
NORMS = [
    ("nested", 0),
    ("keywords", 0),
    ("grouped", 0),
    ("depthwise", 0),
    ("residual", 0),
    ("shared_head", 2),
    ("tied_weights", 1),
    ("subclass", 1),
    ("hooked_weight_norm", 1),
    ("weight_norm", 1),
    ("functional", 1),
    ("functional_norm", 1),
    ("tapped", 1),
    ("shared_norm", 1),
    ("train_statistics", 1),
]


@pytest.mark.parametrize(("name", "left"), NORMS)
def test_batch_norm_is_folded_only_where_nothing_else_reads(name: str, left: int) -> None:
    net = convert(nets.foreign(name)).net
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == left


def test_a_norm_with_hooks_is_not_folded() -> None:
    teacher = nets.foreign("grouped")
    teacher.middle[1].register_forward_hook(lambda module, args, out: out + 1)  # type: ignore[index,union-attr]
    net = convert(teacher).net
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 1
    check_forms(net, teacher)


def test_a_returned_convolution_keeps_its_norm() -> None:
    torch.manual_seed(0)
    teacher = nets.randomise(nets.ReturnsRaw())
    net = convert(teacher).net
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 1
    image, later = nets.frames(2)
    with torch.no_grad():
        out, state = net.keyframe(image)
        for key, value in teacher(image).items():
            close(out[key], value)
        assert set(net.delta(later, state)[0]) == {"out", "raw"}


def test_tied_weights_stay_tied() -> None:
    net = convert(nets.foreign("tied_weights")).net
    a, b = net.layers
    assert a.weight is b.weight
    assert a.label == "middle.a"


def test_a_convolution_called_twice_has_two_entries() -> None:
    net = convert(nets.foreign("shared")).net
    with torch.no_grad():
        _, state = net.keyframe(EXAMPLE)
    assert set(state) == {"middle.one", "middle.one.call2"}
    assert net.joins == 2
    macs = {row.name: row.macs for row in convert(nets.foreign("shared")).layers}
    assert macs["middle.one"] == 2 * (8 * 8 * 9) * (16 * 24)


def test_both_names_of_a_shared_layer_may_be_used() -> None:
    for pattern in ("middle.one", "middle.other"):
        rows = convert(nets.foreign("shared"), include=(pattern,)).layers
        assert [row.converted for row in rows] == [False, True, False]
    with pytest.raises(ConversionError, match=r"no convolution of Ends can be converted .*excluded"):
        convert(nets.foreign("shared"), exclude=("middle.other",))


def test_settings_choose_layers() -> None:
    teacher = nets.foreign("nested")
    rows = {r.name: r.reason for r in convert(teacher, skip_first=0, skip_last=0, exclude=("*.b.0",)).layers}
    assert rows == {
        "first": "full and low rank",
        "middle.stages.0.a.0": "full and low rank",
        "middle.stages.0.b.0": "excluded",
        # The published rule does not shrink to less than one channel of four.
        "last": "no cheaper candidate",
    }
    rows = {r.name: r.reason for r in convert(teacher, full=("*.b.0",), include=("middle.*",)).layers}
    assert rows["middle.stages.0.b.0"] == "full"
    # 1x1 to 8 channels at gamma 2 costs 8 * 4 + 4 * 8 = 8 * 8: nothing is won.
    rows = {r.name: r.reason for r in convert(teacher, gamma=2).layers}
    assert rows["middle.stages.0.b.0"] == "no cheaper candidate"


def test_whether_a_candidate_is_cheaper_is_seen_on_the_very_sizes() -> None:
    """A strided 1x1 convolution, as in a residual block's shortcut: as cheap at even sizes, cheaper at odd ones."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 64, 1, 2), nn.Conv2d(64, 4, 1))
    for size_hw, converted in (((32, 48), False), ((33, 48), False), ((32, 47), True)):
        example = torch.zeros(1, 3, *size_hw)
        settings = DeltaSettings(candidates="low_rank", include=("1",), rank_multiple=16)
        if converted:
            assert [*to_delta(teacher, example, settings).net.network.state_dict()][2:6] == [
                "1.weight", "1.bias", "1.g_low.0.weight", "1.g_low.1.weight",
            ]  # fmt: skip
        else:
            with pytest.raises(ConversionError, match="no cheaper candidate"):
                to_delta(teacher, example, settings)


@pytest.mark.parametrize("key", ["include", "exclude", "full"])
def test_a_pattern_that_matches_nothing_names_the_layers(key: str) -> None:
    with pytest.raises(
        ConversionError,
        match=rf"'delta.{key}': the pattern 'midle.\*' matches no convolution. .*first, middle.one",
    ):
        convert(nets.foreign("shared"), **{key: ("midle.*",)})


@pytest.mark.parametrize("key", ["blocks", "kept"])
def test_a_block_pattern_that_matches_nothing_names_the_parts(key: str) -> None:
    with pytest.raises(ConversionError, match=rf"'delta.{key}': the pattern 'midle' .* first, middle, last"):
        convert(nets.foreign("shared"), **{key: ("midle",)})


def test_nothing_to_convert_is_an_error_with_the_reasons() -> None:
    with pytest.raises(
        ConversionError, match=r"no convolution of Sequential can be converted \(first; last\)"
    ):
        convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
    with pytest.raises(ConversionError, match="the network has no Conv2d"):
        convert(nn.Sequential(nn.Flatten(), nn.ReLU()))


def test_a_network_that_is_one_convolution() -> None:
    torch.manual_seed(0)
    teacher = nn.Conv2d(3, 8, 3)
    net = convert(teacher, skip_first=0, skip_last=0).net
    assert len(net.layers) == 1
    check_forms(net, teacher)


def test_unused_convolutions_do_no_harm() -> None:
    teacher = nets.foreign("nested")
    teacher.aux = nn.Conv2d(8, 4, 1)
    found = convert(teacher)
    assert "aux" not in {row.name for row in found.layers}
    check_forms(found.net, teacher)


class _Remembers(nn.Module):
    """Adds its last input: what it answers depends on more than the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.last = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x) + self.last
        self.last = x * 100
        return out


def test_a_network_with_a_memory_is_refused() -> None:
    with pytest.raises(ConversionError, match="keyframe step differs from the teacher by"):
        convert(nets.randomise(nets.Ends(_Remembers())))


class _ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).to(self.conv.weight.dtype)


def test_what_a_block_student_lacks_is_named() -> None:
    with pytest.raises(ConversionError, match=r"step fails \(AttributeError.*'weight'"):
        convert(nets.randomise(nets.Ends(_ReadsWeight())), blocks=("middle",))


def test_double_precision() -> None:
    torch.manual_seed(0)
    teacher = nets.foreign("in_place").double()
    net = to_delta(teacher, EXAMPLE.double(), DeltaSettings()).net
    assert {p.dtype for p in net.student_parameters() if p.ndim} == {torch.float64}


# Blocks


@pytest.mark.parametrize(
    "name", ["nested", "in_place", "residual", "tapped", "reads_sizes", "conv1d", "grouped"]
)
def test_blocks_in_both_forms(name: str) -> None:
    teacher = nets.foreign(name)
    found = convert(teacher, blocks=("middle",))
    inner = [row for row in found.layers if row.name.startswith("middle.")]
    assert inner
    assert all(row.reason == "block middle" for row in inner)
    assert found.net.joins == 1
    assert sum(row.student_macs for row in inner) < sum(row.macs for row in inner)
    check_forms(found.net, teacher)


def test_a_block_that_is_one_convolution_is_narrowed() -> None:
    teacher = nets.foreign("nested")
    found = convert(teacher, blocks=("middle.stages.0.b.0",))
    (block,) = [m for m in found.net.modules() if type(m).__name__ == "DeltaBlock"]
    assert [c.out_channels for c in block.g_block.modules() if isinstance(c, nn.Conv2d)] == [2, 8]  # type: ignore[union-attr]
    check_forms(found.net, teacher)


def test_a_block_is_matched_by_any_of_its_names_and_once() -> None:
    teacher = nets.Ends(nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))))
    teacher.alias = teacher.middle
    found = convert(nets.randomise(teacher), blocks=("alias",))
    assert found.net.joins == 1
    check_forms(found.net, teacher)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


@pytest.mark.parametrize("key", ["blocks", "kept"])
def test_a_block_called_twice_is_refused(key: str) -> None:
    with pytest.raises(ConversionError, match=r"expected 'middle.block' to be called once.*called 2 times"):
        convert(nets.Ends(_Twice()), **{key: ("middle.block",)})


def test_kept_blocks_hold_the_keyframe() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feeds = nn.Conv2d(8, 8, 3, padding=1)
            self.coarse = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            self.fine = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            slow = self.coarse(self.feeds(x))
            return torch.relu_(slow) + self.fine(x)

    torch.manual_seed(0)
    teacher = nets.randomise(nets.Ends(Branch()))
    found = convert(teacher, kept=("middle.coarse",))
    reasons = {row.name: row.reason for row in found.layers}
    assert reasons["middle.feeds"] == "feeds only what is kept"
    assert reasons["middle.coarse.1"] == "kept middle.coarse"
    assert reasons["middle.fine"] == "full and low rank"
    image, later = nets.frames(2)
    with torch.no_grad():
        out, state = found.net.keyframe(image)
        close(out, teacher(image))
        assert set(state) == {"middle.coarse", "middle.fine"}
        slow = teacher.middle.coarse(teacher.middle.feeds(teacher.first(image)))  # type: ignore[operator,union-attr]
        close(state["middle.coarse"], slow)
        x = teacher.first(later)  # type: ignore[operator]
        fine = next(layer for layer in found.net.layers if layer.label == "middle.fine")
        expected = torch.relu(slow) + fine.student(x) + state["middle.fine"]  # type: ignore[misc]
        close(found.net.delta(later, state)[0], teacher.last(expected))  # type: ignore[operator]


def test_kept_and_blocks_must_not_overlap() -> None:
    with pytest.raises(ConversionError, match=r"'middle.stages.0.a' overlaps with the block 'middle'"):
        convert(nets.foreign("nested"), blocks=("middle",), kept=("middle.stages.0.a",))
