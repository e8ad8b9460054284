"""Student candidates against the published rules, and the gate between them."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from hypothesis import assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.candidates import (  # noqa: E402
    Gate,
    candidate_macs,
    conv_macs,
    full_candidate,
    layer_rank,
    low_rank_candidate,
    rank_of,
    spatial_svd,
)
from edge_sdk.distill.convert import to_delta  # noqa: E402
from edge_sdk.distill.delta import Candidate, DeltaConv2d, DeltaNet, Pass, Tape  # noqa: E402
from edge_sdk.distill.delta_recipe import DeltaSettings  # noqa: E402

# PAPERS section 1. Rule "out": Cout//gamma if Cout > gamma else Cout.
# Rule "min": min(Cin, Cout)//gamma if that min >= gamma else the min.
RANKS = [
    ("out", 4, 64, 64, 16),
    ("out", 4, 64, 30, 7),
    ("out", 4, 64, 5, 1),
    ("out", 4, 64, 4, 4),
    ("out", 4, 64, 3, 3),
    ("out", 4, 3, 64, 16),
    ("min", 16, 64, 64, 4),
    ("min", 16, 16, 64, 1),
    ("min", 16, 64, 16, 1),
    ("min", 16, 64, 15, 15),
    ("min", 16, 3, 64, 3),
    ("min", 4, 9, 64, 2),
]


@pytest.mark.parametrize(("rule", "gamma", "c_in", "c_out", "rank"), RANKS)
def test_rank_rules(rule: str, gamma: int, c_in: int, c_out: int, rank: int) -> None:
    assert rank_of(c_in, c_out, gamma, rule) == rank  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("groups", "multiple", "rank"), [(1, 1, 8), (1, 16, 16), (2, 1, 8), (16, 1, 16), (32, 1, 32), (4, 12, 12)]
)
def test_a_layer_rank_serves_groups_and_channel_blocks(groups: int, multiple: int, rank: int) -> None:
    conv = nn.Conv2d(32, 32, 3, groups=groups)
    assert layer_rank(conv, 4, "out", multiple) == rank


def test_published_costs() -> None:
    # PAPERS: C to C at gamma 4: 3x3 six times, 1x1 twice cheaper; at gamma 16 3x3 is 24 times cheaper.
    for kernel, gamma, ratio in ((3, 4, 6), (1, 4, 2), (3, 16, 24)):
        conv = nn.Conv2d(64, 64, kernel, padding=kernel // 2)
        low = low_rank_candidate(conv, rank_of(64, 64, gamma, "out"))
        assert conv_macs(conv, (8, 12))[0] == ratio * candidate_macs(low, (8, 12))


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Any geometry that torch takes, with random weights."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    c_in, c_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 5))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    padding: object = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    if draw(st.integers(0, 3)) == 0:
        padding = draw(st.sampled_from(["same", "valid"]))
        stride = (1, 1) if padding == "same" else stride
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    torch.manual_seed(draw(st.integers(0, 99)))
    return nn.Conv2d(
        c_in, c_out, kernel, stride, padding, dilation, groups,  # type: ignore[arg-type]
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,  # type: ignore[arg-type]
    )  # fmt: skip


def full_rank(conv: nn.Conv2d) -> int:
    _, c_in, kh, kw = conv.weight.shape
    return conv.groups * min(c_in * kh, conv.out_channels // conv.groups * kw)


def error_norm(conv: nn.Conv2d, column: Tensor, row: Tensor) -> float:
    """Frobenius distance of the kernel and the product of its factors, group by group."""
    total = 0.0
    share = row.shape[1]
    for group, weight in enumerate(conv.weight.chunk(conv.groups)):
        first = column[group * share : (group + 1) * share, :, :, 0]
        second = row.chunk(conv.groups)[group][:, :, 0]
        total += float((torch.einsum("rik,orl->oikl", first, second) - weight).detach().square().sum())
    return math.sqrt(total)


SIZE = (13, 17)


@settings(max_examples=40)
@given(convolutions())
def test_full_rank_is_the_layer_itself(conv: nn.Conv2d) -> None:
    x = torch.randn(2, conv.in_channels, *SIZE, dtype=torch.float64)
    low = low_rank_candidate(conv, full_rank(conv), bias=True)
    expected = conv(x)
    torch.testing.assert_close(low(x), expected, rtol=0, atol=1e-10)
    assert (low.in_channels, low.out_channels, low.stride) == (
        conv.in_channels,
        conv.out_channels,
        conv.stride,
    )
    full = full_candidate(conv)
    assert full.bias is None
    bias = conv.bias.view(1, -1, 1, 1) if conv.bias is not None else 0
    torch.testing.assert_close(full(x) + bias, expected, rtol=0, atol=1e-10)
    macs, out_hw = conv_macs(conv, SIZE)
    assert out_hw == tuple(expected.shape[-2:])
    assert macs == conv.weight.numel() * out_hw[0] * out_hw[1]
    assert candidate_macs(full, SIZE) == macs


@settings(max_examples=25)
@given(convolutions(), st.integers(1, 6))
def test_a_lower_rank_loses_the_tail_of_the_singular_values(conv: nn.Conv2d, share: int) -> None:
    weight = conv.weight.detach()
    _, c_in, kh, kw = weight.shape
    column, row = spatial_svd(weight, share * conv.groups, conv.groups)
    assert column.shape == (share * conv.groups, c_in, kh, 1)
    assert row.shape == (conv.out_channels, share, 1, kw)
    tail = 0.0
    for block in weight.chunk(conv.groups):
        matrix = block.permute(1, 2, 0, 3).reshape(c_in * kh, -1)
        tail += float(torch.linalg.svdvals(matrix)[share:].square().sum())
    assert error_norm(conv, column, row) == pytest.approx(math.sqrt(tail), abs=1e-10)


def test_both_factors_carry_the_root() -> None:
    torch.manual_seed(0)
    column, row = spatial_svd(torch.randn(8, 8, 3, 3), 4)
    torch.testing.assert_close(column.square().sum((1, 2, 3)), row.square().sum((0, 2, 3)))


# The two forms


def widen(conv: nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    """Layers that bring three channels to the convolution's and its channels to four."""
    first = nn.Conv2d(3, conv.in_channels, 3, padding=1, dtype=torch.float64)
    return first, nn.Conv2d(conv.out_channels, 4, 1, dtype=torch.float64)


@settings(max_examples=40)
@given(
    convolutions(),
    st.integers(2, 5),
    st.sampled_from(["out", "min"]),
    st.sampled_from(["both", "full", "low_rank"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_telescoped_equals_published(
    conv: nn.Conv2d, gamma: int, rule: str, candidates: str, norm: bool, flip: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    first, last = widen(conv)
    after: list[nn.Module] = [nn.BatchNorm2d(conv.out_channels, dtype=torch.float64)] if norm else []
    for layer in after:
        nn.init.uniform_(layer.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    teacher = nn.Sequential(first, conv, *after, nn.ReLU(inplace=True), last).eval()
    settings_ = DeltaSettings(gamma=gamma, rank_rule=rule, candidates=candidates, full=())  # type: ignore[arg-type]
    low = candidate_macs(low_rank_candidate(conv, layer_rank(conv, gamma, rule)), SIZE)  # type: ignore[arg-type]
    depthwise = 1 < conv.groups == conv.in_channels
    assume(not depthwise and (candidates == "full" or low < conv_macs(conv, SIZE)[0]))
    net = to_delta(teacher, torch.zeros(1, 3, *SIZE, dtype=torch.float64), settings_).net
    (layer,) = net.layers
    if isinstance(layer.g_gate, Gate):
        nn.init.constant_(layer.g_gate.logit, 1.0 if flip else -1.0)
    shake(net, seed)
    check_forms(net, teacher)
    net.keep_choices()
    assert len(layer.students()) == 1
    check_forms(net, teacher)


@settings(max_examples=15)
@given(convolutions(), st.integers(2, 4), st.integers(0, 99))
def test_telescoped_equals_published_for_nonlinear_blocks(conv: nn.Conv2d, gamma: int, seed: int) -> None:
    torch.manual_seed(seed)
    first, last = widen(conv)
    block = nn.Sequential(
        nn.SiLU(), conv, nn.ReLU(inplace=True), nn.Conv2d(conv.out_channels, conv.out_channels, 1).double()
    )
    teacher = nn.Sequential(first, block, last).eval()
    example = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    net = to_delta(teacher, example, DeltaSettings(gamma=gamma, blocks=("1",))).net
    assert net.joins == 1
    shake(net, seed)
    check_forms(net, teacher)


def shake(net: DeltaNet, seed: int) -> None:
    """Random students, as training makes them, so that nothing holds only for the SVD's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.student_parameters():
            if parameter.ndim:
                parameter.add_(
                    torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.1
                )


@torch.no_grad()
def check_forms(net: DeltaNet, teacher: nn.Module) -> None:
    x0, *later = torch.randn(4, 1, 3, *SIZE, dtype=torch.float64)
    published: dict[str, Tensor] = {}
    torch.testing.assert_close(net.run(Pass.KEYFRAME, x0, published, "published")[0], teacher(x0))
    out, telescoped = net.keyframe(x0)
    torch.testing.assert_close(out, teacher(x0))
    torch.testing.assert_close(net.delta(x0, telescoped)[0], teacher(x0))
    assert len(telescoped) * 2 == len(published)
    for x in later:
        old, _ = net.run(Pass.DELTA, x, published, "published")
        torch.testing.assert_close(net.delta(x, telescoped)[0], old)


def test_reference_changes_are_the_teachers() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
    net = to_delta(teacher, torch.zeros(1, 3, *SIZE), DeltaSettings()).net
    x0, x = torch.randn(2, 1, 3, *SIZE)
    with torch.no_grad():
        state: dict[str, Tensor] = {}
        net.run(Pass.KEYFRAME, x0, state, "published")
        out, changes = net.run(Pass.REFERENCE, x, state, "published")
        torch.testing.assert_close(out, teacher(x))
        torch.testing.assert_close(changes["1"], teacher[:2](x) - teacher[:2](x0))
        _, guesses = net.run(Pass.DELTA, x, state, "published")
        first = teacher[0]
        torch.testing.assert_close(guesses["1"], net.layers[0].student(first(x) - first(x0)))  # type: ignore[misc]
        assert list(guesses) == list(changes) == ["1"]
        # Outside a pass the network is the teacher and keeps nothing.
        torch.testing.assert_close(net.network(x), teacher(x))
        torch.testing.assert_close(
            net.delta(x, net.keyframe(x0)[1])[0], net.run(Pass.DELTA, x, state, "published")[0]
        )


# Gate


def test_a_gate_starts_at_the_published_chance() -> None:
    gate = Gate().train()
    torch.manual_seed(0)
    values = torch.stack([gate() for _ in range(4000)]).detach()
    assert set(values.tolist()) == {0.0, 1.0}
    # sigmoid(-1) = 0.269; four standard deviations of 4000 draws are 0.028.
    assert float(values.mean()) == pytest.approx(1 / (1 + math.e), abs=0.028)


def test_a_gate_passes_the_soft_values_gradient() -> None:
    torch.manual_seed(0)
    gate = Gate().train()
    grads: list[float] = []
    for _ in range(50):
        gate.logit.grad = None
        gate().backward()
        assert gate.logit.grad is not None
        grads.append(float(gate.logit.grad))
    # Derivative of sigmoid(l / tau) is at most 1 / (4 tau) = 0.375.
    assert all(0 < g <= 0.375 + 1e-6 for g in grads)
    assert len(set(grads)) > 40


def test_a_gate_in_evaluation_reads_its_logit_anew() -> None:
    gate = Gate().eval()
    seen = []
    for logit in (-1.0, 0.5, -0.1, 0.0, 3.0):
        nn.init.constant_(gate.logit, logit)
        seen.append((float(gate()), gate.full))
    assert seen == [(0.0, False), (1.0, True), (0.0, False), (0.0, False), (1.0, True)]


def published(conv: nn.Conv2d, rank: int) -> list[Candidate]:
    """The two candidates of a convolution under their names in checkpoints."""
    low = low_rank_candidate(conv, rank)
    return [Candidate("full", "g_full", full_candidate(conv)), Candidate("rank/4", "g_low", low)]


def test_evaluation_follows_gates_that_flip_after_the_first_eval() -> None:
    """The published code picks once, the first time it is evaluated."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3)
    layer = DeltaConv2d(conv, "a", Tape(), published(conv, 2))
    gate, full = layer.g_gate, layer.student_as("full")
    assert isinstance(gate, Gate)
    assert full is not None
    layer.eval()
    assert layer.student is layer.student_as("rank/4")
    layer.train()
    nn.init.constant_(gate.logit, 2.0)
    layer.eval()
    assert layer.student is full
    x, y = torch.randn(2, 1, 8, 9, 9)
    torch.testing.assert_close(layer.change_of(x, y), full(x - y))
    layer.keep(layer.chosen)
    assert layer.candidates == ("full",)
    assert layer.g_gate is None
    assert layer.student is full
    assert [part for part in layer.state_dict() if part.startswith("g_")] == ["g_full.weight"]


def test_training_mixes_by_the_gate() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = DeltaConv2d(conv, "a", Tape(), published(conv, 1)).train()
    x, y = torch.randn(2, 1, 4, 6, 6)
    full, low = (layer.student_as(name)(x - y) for name in layer.candidates)  # type: ignore[misc]
    seen = set()
    for _ in range(30):
        out = layer.change_of(x, y)
        picked = [name for name, value in (("full", full), ("low", low)) if torch.allclose(out, value)]
        assert len(picked) == 1
        seen |= set(picked)
    assert seen == {"full", "low"}
    layer.change_of(x, y).square().sum().backward()
    assert all(p.grad is not None for part in layer.students() for p in part.parameters())
    assert conv.weight.grad is None
