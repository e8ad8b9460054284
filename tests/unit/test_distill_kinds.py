"""Candidates by name: what each computes, on every geometry that torch takes, and what it starts from."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from edge_sdk.distill.candidates import candidate_macs, conv_macs  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402
from edge_sdk.distill.kinds import Kind, narrow_candidate, student_of  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402

# name, shape, share, half
NAMES = [
    ("full", "full", 1, False),
    ("rank/4", "rank", 4, False),
    ("channels/2", "channels", 2, False),
    ("half", "full", 1, True),
    ("half+rank/16", "rank", 16, True),
    ("half+channels/2", "channels", 2, True),
    ("kept", "kept", 1, False),
]
COMPUTED = [name for name, *_ in NAMES if name != "kept"]
PLAIN = DeltaSettings()


@pytest.mark.parametrize(("name", "shape", "share", "half"), NAMES)
def test_names_are_read_and_written(name: str, shape: str, share: int, half: bool) -> None:
    kind = Kind.parse(name)
    assert (kind.shape, kind.share, kind.half) == (shape, share, half)
    assert str(kind) == name
    assert kind.part.isidentifier()


def test_parts_are_told_apart() -> None:
    assert len({Kind.parse(name).part for name, *_ in NAMES}) == len(NAMES)


@pytest.mark.parametrize(
    "name",
    ["", "Full", "rank", "rank/", "rank/1", "rank/0", "rank/04", "rank/-4", "channels/x", "half+kept", "half+full",
     "half+half", "half+", "half/2", "rank/4+half", "full/2", " full", "kept\n", "rank/4.5"],
)  # fmt: skip
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"'candidate': expected full, rank/N, .* or kept, got '") as caught:
        Kind.parse(name)
    assert f"got '{name}'" in str(caught.value)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Any geometry that a picture of 13 x 17 takes at half resolution too, with random weights."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    c_in, c_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 5))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return nn.Conv2d(
        c_in, c_out, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,  # type: ignore[arg-type]
    )  # fmt: skip


SIZES = [(13, 17), (14, 18), (13, 18), (16, 9)]


@settings(max_examples=60)
@given(convolutions(), st.sampled_from(COMPUTED), st.sampled_from(SIZES))
def test_a_convolutions_student_is_linear_and_of_its_size(
    conv: nn.Conv2d, name: str, size_hw: tuple[int, int]
) -> None:
    student = student_of(conv, Kind.parse(name), PLAIN)
    assert student is not None
    x, y = torch.randn(2, 2, conv.in_channels, *size_hw, dtype=torch.float64)
    with torch.no_grad():
        assert student(x).shape == conv(x).shape
        # Linear and without a bias, so that the published form equals the telescoped one.
        torch.testing.assert_close(student(x) - student(y), student(x - y), rtol=0, atol=1e-9)
    assert all(parameter.dtype == torch.float64 for parameter in student.parameters())


@settings(max_examples=30)
@given(convolutions())
def test_as_many_channels_are_the_layer_itself(conv: nn.Conv2d) -> None:
    x = torch.randn(2, conv.in_channels, 13, 17, dtype=torch.float64)
    same = narrow_candidate(conv, conv.out_channels, bias=True)
    torch.testing.assert_close(same(x), conv(x), rtol=0, atol=1e-9)
    assert (same.in_channels, same.out_channels, same.stride) == (
        conv.in_channels, conv.out_channels, conv.stride,
    )  # fmt: skip


def test_fewer_channels_lose_the_tail_of_the_singular_values() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False, dtype=torch.float64)
    first, back = narrow_candidate(conv, 4)
    product = torch.einsum("orxy,ricd->oicd", back.weight, first.weight)
    tail = torch.linalg.svdvals(conv.weight.flatten(1))[4:].square().sum()
    torch.testing.assert_close((product - conv.weight).square().sum(), tail)


# kind, rank_multiple, channels of the convolutions of 32 -> 32, 3x3
WIDTHS = [
    ("full", 1, [32]),
    ("rank/4", 1, [8, 32]),
    ("rank/4", 16, [16, 32]),
    ("channels/2", 1, [16, 32]),
    ("channels/4", 1, [8, 32]),
    ("channels/4", 16, [16, 32]),
    ("half", 1, [32]),
    ("half+rank/8", 1, [4, 32]),
]


@pytest.mark.parametrize(("name", "multiple", "widths"), WIDTHS)
@pytest.mark.parametrize("stride", [1, 2])
def test_widths_and_sizes(name: str, multiple: int, widths: list[int], stride: int) -> None:
    conv = nn.Conv2d(32, 32, 3, stride, 1)
    student = student_of(conv, Kind.parse(name), DeltaSettings(rank_multiple=multiple))
    assert student is not None
    convs = [m for m in student.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == widths
    assert all(m.bias is None for m in convs)
    for size_hw in ((45, 60), (23, 30), (8, 9)):
        x = torch.randn(1, 32, *size_hw)
        assert student(x).shape == conv(x).shape


def test_a_convolution_that_would_not_become_cheaper_stays() -> None:
    conv = nn.Conv2d(8, 8, 1)
    # 1x1 to 4 channels and back costs as much as 8 to 8.
    for name in ("rank/2", "channels/2"):
        student = student_of(conv, Kind.parse(name), PLAIN)
        assert isinstance(student, nn.Conv2d)
        assert student.bias is None
        assert torch.equal(student.weight, conv.weight)
        assert student.weight is not conv.weight
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    assert isinstance(student_of(depthwise, Kind.parse("channels/4"), PLAIN), nn.Conv2d)


def test_kept_has_no_student() -> None:
    assert student_of(nn.Conv2d(3, 8, 3), Kind.parse("kept"), PLAIN) is None
    assert student_of(nn.Sequential(nn.ReLU()), Kind.parse("kept"), PLAIN) is None


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 32, 3, padding=1),
    )


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("size_hw", [(45, 60), (22, 31), (9, 9)])
def test_a_block_keeps_biases_and_its_size(name: str, size_hw: tuple[int, int]) -> None:
    teacher = block()
    before = copy.deepcopy(teacher.state_dict())
    student = student_of(teacher, Kind.parse(name), PLAIN)
    assert student is not None
    x = torch.randn(2, 16, *size_hw)
    assert student(x.clone()).shape == teacher(x.clone()).shape
    assert sum(m.bias is not None for m in student.modules() if isinstance(m, nn.Conv2d)) == 3
    macs = sum(candidate_macs(m, (64, 64)) for m in student.modules() if isinstance(m, nn.Conv2d))
    whole = sum(conv_macs(m, (64, 64))[0] for m in teacher.modules() if isinstance(m, nn.Conv2d))
    assert (macs < whole) == ("/" in name)
    assert {id(p) for p in student.parameters()}.isdisjoint(id(p) for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_full_student_starts_as_the_unit() -> None:
    teacher = block()
    student = student_of(teacher, Kind.parse("full"), PLAIN)
    assert student is not None
    x = torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(student(x.clone()), teacher(x.clone()))


@pytest.mark.parametrize("size_hw", [(8, 12), (9, 13), (1, 1), (1, 6)])
def test_half_resolution_keeps_smooth_pictures_where_they_are(size_hw: tuple[int, int]) -> None:
    """A ramp comes out as a ramp: nothing is shifted or stretched, at odd sizes too."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    student = student_of(conv, Kind.parse("half"), PLAIN)
    assert student is not None
    rows, columns = (torch.arange(float(side)) for side in size_hw)
    x = (rows[:, None] + 2 * columns)[None, None]
    out = student(x)
    assert out.shape == x.shape
    # Away from the edges, where drawing up repeats the outermost value.
    torch.testing.assert_close(out[..., 1:-2, 1:-2], x[..., 1:-2, 1:-2])


def test_half_resolution_has_no_further_weights() -> None:
    student = student_of(nn.Conv2d(8, 8, 3, padding=1), Kind.parse("half"), PLAIN)
    assert student is not None
    student(torch.zeros(1, 8, 9, 9))
    assert list(student.state_dict()) == ["inner.weight"]
