"""Clip networks: frame by frame gives what the whole clip gives, and each part is what its paper says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from edge_sdk.distill.clips.network import ClipNetwork, ClipPair, fold  # noqa: E402
from edge_sdk.distill.models.clips import (  # noqa: E402
    SlidingWindow,
    causal3d_network,
    clip_network,
    consensus_network,
    tsm_network,
)
from edge_sdk.distill.models.clips.aggregators import Mean, NetVLAD, NeXtVLAD, Ordered  # noqa: E402
from edge_sdk.distill.models.clips.causal3d import CausalBlock  # noqa: E402
from edge_sdk.distill.models.clips.encoders import to_grid  # noqa: E402
from edge_sdk.distill.models.clips.heads import MixtureHead  # noqa: E402
from edge_sdk.distill.models.clips.past import Past  # noqa: E402
from edge_sdk.distill.models.clips.recurrent import HierarchicalLSTM, StackedLSTM  # noqa: E402
from edge_sdk.distill.models.clips.temporal import ShiftBlock  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from tests.nets import randomise  # noqa: E402

CLASSES = 3
# Both forms do the same sums in another order.
TOLERANCE = 1e-5

NETWORKS: dict[str, Callable[[], ClipNetwork]] = {
    "hrnn": lambda: clip_network(CLASSES, "hrnn", samples=6, segments=2, width=4, hidden=5, layers=2),
    "hrnn, one frame a segment": lambda: clip_network(
        CLASSES, "hrnn", samples=4, segments=4, width=4, hidden=3
    ),
    "netvlad": lambda: clip_network(CLASSES, "netvlad", width=4, clusters=4, hidden=7),
    "hrnn, order": lambda: clip_network(
        CLASSES, "hrnn", samples=6, order=True, width=4, features=6, segments=2, hidden=5
    ),
    "netvlad, order": lambda: clip_network(
        CLASSES, "netvlad", samples=6, order=True, width=4, features=6, clusters=4, hidden=7
    ),
    "nextvlad": lambda: clip_network(
        CLASSES, "nextvlad", samples=6, order=True, width=4, features=6, clusters=4, groups=3, hidden=8, gating=2
    ),
    "mean": lambda: clip_network(CLASSES, "mean", width=4, pool="mean", features=0),
    "mean, order, mixture": lambda: clip_network(
        CLASSES, "mean", samples=5, order=True, width=4, features=6, head="mixture"
    ),
    "consensus": lambda: consensus_network(CLASSES, width=4, strides=(2, 2, 2)),
    "tsm": lambda: tsm_network(CLASSES, width=4, depth=2, strides=(2, 2, 1), share=2),
    "causal3d": lambda: causal3d_network(CLASSES, width=4, depth=2, strides=(2, 1, 2)),
    "tsm, hrnn": lambda: clip_network(
        CLASSES, "hrnn", encoder="tsm", samples=4, segments=2, width=8, strides=(2, 2), features=5, pool="flatten"
    ),
}  # fmt: skip


def made(name: str, seed: int = 0) -> ClipNetwork:
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    randomise(network, seed)
    return network


def clips(n: int, frames: int, size_hw: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    return torch.randn(n, frames, 3, *size_hw, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [False, True], ids=["whole", "sliding"])
@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=5)
@given(n=st.integers(1, 3), frames=st.integers(1, 9), height=st.integers(8, 24), width=st.integers(8, 24))
@torch.no_grad()
def test_frame_by_frame_is_the_whole_clip(
    name: str, window: bool, n: int, frames: int, height: int, width: int
) -> None:
    network: Any = made(name)
    network = SlidingWindow(network, 4) if window else network
    clip = clips(n, frames, (height, width), seed=frames)
    seen = network(clip)
    assert seen.logits.shape == (n, CLASSES)
    assert seen.maps.shape[:2] == (n, frames)
    torch.testing.assert_close(fold(network, clip), seen.logits, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_frames_count_and_so_do_clips(name: str) -> None:
    network, clip = made(name), clips(2, 6)
    logits = network(clip).logits
    for index in range(6):
        other = clip.clone()
        other[0, index] = clip[1, 0] * 2
        changed = network(other).logits
        assert (changed[0] - logits[0]).abs().max() > 1e-6, f"frame {index} is not seen"
        torch.testing.assert_close(changed[1], logits[1], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_state_keeps_its_names_shapes_and_type(name: str) -> None:
    for network in (made(name), SlidingWindow(made(name), 3)):  # type: ignore[arg-type]
        pair, clip = ClipPair(network), clips(1, 3)
        _, first = pair.keyframe(clip[:, 0])
        _, second = pair.delta(clip[:, 1], first)
        kept = {key: value.clone() for key, value in second.items()}
        _, third = pair.delta(clip[:, 2], second)
        described = [
            {key: (value.shape, value.dtype) for key, value in state.items()}
            for state in (first, second, third)
        ]
        assert described[0] == described[1] == described[2]
        assert {dtype for _, dtype in described[0].values()} == {torch.float32}
        assert all(torch.equal(second[key], kept[key]) for key in kept), "a step wrote into the state it read"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_learns(name: str) -> None:
    network = made(name).train()
    loss = F.cross_entropy(network(clips(4, 6)).logits, torch.tensor([0, 1, 2, 0]))
    loss.backward()
    # In a segment of one frame level 1 has nothing to recall; a bias before a softmax over one gate moves nothing.
    idle = {"aggregator.low.layers.0.recurrent.weight"} if name == "hrnn, one frame a segment" else set()
    still = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert still == idle


@torch.no_grad()
def test_a_sliding_window_answers_from_the_last_frames() -> None:
    for name in ("hrnn", "netvlad, order", "mean"):
        network: Any = made(name)
        window = SlidingWindow(network, 4)
        clip = clips(2, 7)
        torch.testing.assert_close(fold(window, clip), network(clip[:, 3:]).logits, rtol=1e-5, atol=1e-5)
        filled = torch.cat((clip[:, :1], clip[:, :1], clip[:, :2]), 1)
        torch.testing.assert_close(fold(window, clip[:, :2]), network(filled).logits, rtol=1e-5, atol=1e-5)


def test_a_sliding_window_takes_the_weights_of_the_network() -> None:
    for name in NETWORKS:
        network: Any = made(name)
        window = SlidingWindow(network, 3)
        assert list(window.state_dict()) == list(network.state_dict())


def test_a_sliding_window_needs_the_parts() -> None:
    with pytest.raises(RecipeError, match="got SlidingWindow"):
        SlidingWindow(SlidingWindow(made("mean"), 2), 3)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="encoder, aggregator and head, got ClipNetwork"):
        SlidingWindow(ClipNetwork(), 3)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="samples to be a whole number >= 1, got 0"):
        SlidingWindow(made("mean"), 0)  # type: ignore[arg-type]


@torch.no_grad()
def test_lstm_layers_are_those_of_torch() -> None:
    torch.manual_seed(1)
    mine, theirs = StackedLSTM(4, 3, 2), nn.LSTM(4, 3, 2, batch_first=True)
    for index, layer in enumerate(mine._stack()):
        assert layer.input.bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6
        getattr(theirs, f"weight_ih_l{index}").copy_(layer.input.weight)
        getattr(theirs, f"weight_hh_l{index}").copy_(layer.recurrent.weight)
        getattr(theirs, f"bias_ih_l{index}").copy_(layer.input.bias)
        getattr(theirs, f"bias_hh_l{index}").zero_()
    sequence = torch.randn(2, 5, 4)
    _, (h, c) = theirs(sequence)
    expected = torch.cat((c[0], h[0], c[1], h[1]), 1)
    torch.testing.assert_close(mine(sequence), expected, rtol=1e-5, atol=1e-6)
    state = mine.step(sequence[:, 0], None)
    for index in range(1, 5):
        state = mine.step(sequence[:, index], state)
    torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_level_two_reads_the_last_states_of_the_segments() -> None:
    torch.manual_seed(2)
    network = HierarchicalLSTM(4, samples=6, segments=2, hidden=3, layers=2)
    features = torch.randn(2, 6, 4)
    segments = torch.stack((network.low(features[:, :3]), network.low(features[:, 3:])), 1)
    torch.testing.assert_close(network(features), network.high(segments))
    # In the middle of a segment the answer is as if it ended there.
    cut = torch.stack((network.low(features[:, :3]), network.low(features[:, 3:5])), 1)
    answer, state = network.begin(features[:, 0])
    for index in range(1, 5):
        answer, state = network.follow(features[:, index], state)
    torch.testing.assert_close(answer, network.high(cut), rtol=1e-5, atol=1e-6)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum() + 1e-6).sqrt()


@torch.no_grad()
def test_netvlad_is_its_definition() -> None:
    torch.manual_seed(3)
    net, features = NetVLAD(4, clusters=3, hidden=5, scale=8.0), torch.randn(1, 6, 4)
    residual = torch.zeros(3, 4)
    for feature in features[0]:
        shares = net.assign(feature).softmax(0)
        for k in range(3):
            residual[k] += shares[k] * (feature - net.centres[k])
    vector = 8.0 * unit(torch.stack([unit(row) for row in residual]).flatten())
    torch.testing.assert_close(net(features)[0], net.hidden(vector).relu(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_nextvlad_is_its_definition() -> None:
    torch.manual_seed(4)
    net, features = NeXtVLAD(3, clusters=4, groups=2, expansion=2, hidden=5, scale=2.0), torch.randn(1, 6, 3)
    residual = torch.zeros(4, 3)
    for feature in features[0]:
        wide = net.expand(feature)
        for g in range(2):
            attention = torch.sigmoid(net.attend(wide)[g])
            shares = net.assign(wide)[4 * g : 4 * g + 4].softmax(0)
            for k in range(4):
                residual[k] += attention * shares[k] * (wide[3 * g : 3 * g + 3] - net.centres[k])
    vector = 2.0 * unit(torch.stack([unit(row) for row in residual]).flatten())
    torch.testing.assert_close(net(features)[0], net.hidden(vector).relu(), rtol=1e-5, atol=1e-6)
    # 128 clusters, 8 groups, twice as wide: several times smaller than NetVLAD with as many clusters.
    with torch.device("meta"):
        small, large = NeXtVLAD(1152, 128, 8, 2, 2048), NetVLAD(1152, 128, 2048)
    assert sum(p.numel() for p in large.parameters()) > 3.5 * sum(p.numel() for p in small.parameters())


def test_the_order_that_an_aggregator_is_told() -> None:
    ordered = Ordered(Mean(Ordered.wider(1)), samples=4)
    seen: list[list[float]] = []
    ordered.inner.register_forward_pre_hook(lambda _, given: seen.extend(given[0][0].tolist()))
    ordered(torch.tensor([[[2.0], [6.0], [1.0], [7.0]]]))
    assert seen == [[2.0, 0.0, 0.0], [6.0, 4.0, 0.25], [1.0, -3.0, 0.5], [7.0, 4.0, 0.75]]


def test_without_order_frames_may_come_in_any_and_with_it_not() -> None:
    clip = clips(1, 6)
    for name, told in (
        ("netvlad", False),
        ("mean", False),
        ("netvlad, order", True),
        ("nextvlad", True),
        ("hrnn", True),
    ):
        network = made(name)
        apart = (network(clip).logits - network(clip.flip(1)).logits).abs().max()
        assert bool(apart > 1e-5) == told, name


@given(scale=st.sampled_from([0.1, 1.0, 30.0, 1000.0]), experts=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=15)
@torch.no_grad()
def test_a_mixture_gives_the_logit_of_its_probability(scale: float, experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    head, x = MixtureHead(5, 4, experts=experts).double(), scale * torch.randn(3, 5, dtype=torch.float64)
    gates = head.gate(x).view(3, 4, experts + 1).softmax(2)[..., :experts]
    expected = (gates * torch.sigmoid(head.expert(x).view(3, 4, experts))).sum(2)
    torch.testing.assert_close(torch.sigmoid(head(x)), expected)
    assert head.float()(x.float()).isfinite().all()


@torch.no_grad()
def test_a_shift_takes_channels_from_the_frame_before() -> None:
    block = ShiftBlock("b", 4, 4, 1, shifted=1)
    x = torch.arange(24.0).view(6, 4, 1, 1)  # two clips of three frames
    moved = block.seen(x, Past(frames=3))
    assert moved[:, 0].flatten().tolist() == [0.0, 0.0, 4.0, 0.0, 12.0, 16.0]
    torch.testing.assert_close(moved[:, 1:], x[:, 1:])


@torch.no_grad()
def test_three_frames_side_by_side_are_a_causal_3d_convolution() -> None:
    torch.manual_seed(5)
    block, x = CausalBlock("b", 2, 4, 2), torch.randn(6, 2, 8, 8)
    convolution: Any = block.first[0][0]  # type: ignore[index]
    assert type(convolution) is nn.Conv2d
    kernel = convolution.weight.view(4, 3, 2, 3, 3).transpose(1, 2)
    clip = F.pad(x.view(2, 3, 2, 8, 8).transpose(1, 2), (0, 0, 0, 0, 2, 0))
    expected = F.conv3d(clip, kernel, stride=(1, 2, 2), padding=(0, 1, 1)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(convolution(block.seen(x, Past(frames=3))), expected, rtol=1e-4, atol=1e-5)


@given(height=st.integers(1, 9), width=st.integers(1, 9), grid=st.integers(1, 5))
@settings(max_examples=20)
def test_cells_are_averaged_as_by_adaptive_pooling(height: int, width: int, grid: int) -> None:
    maps = clips(2, 1, (height, width))[:, 0]
    torch.testing.assert_close(to_grid(maps, grid), F.adaptive_avg_pool2d(maps, grid), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_classifier_at_every_place() -> None:
    for name in ("consensus", "tsm", "causal3d", "mean"):
        network = made(name)
        seen = network(clips(2, 3))
        assert seen.maps is not None
        places = network.classify(seen.maps.flatten(0, 1))
        assert places.shape == (6, CLASSES, *seen.maps.shape[-2:])
        mean = places.mean((2, 3)).view(2, 3, CLASSES).mean(1)
        torch.testing.assert_close(mean, seen.logits, rtol=1e-4, atol=1e-5)
    for name in ("hrnn", "netvlad", "mean, order, mixture", "tsm, hrnn"):
        with pytest.raises(TypeError, match="does not classify places"):
            made(name).classify(torch.zeros(1, 16, 2, 2))


def published(samples: int, segments: int) -> ClipNetwork:
    """The released hierarchical network for YouTube-8M."""
    with torch.device("meta"):
        return clip_network(
            4716, "hrnn", encoder="features", dim=1152, samples=samples, segments=segments, hidden=1024, layers=2,
            head="mixture",
        )  # fmt: skip


def macs(module: nn.Module, *shape: int) -> float:
    """Billions of multiply-accumulates of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(*shape, device="meta"))
    return counter.get_total_flops() / 2e9


def test_its_size_is_the_published_one() -> None:
    teacher: Any = published(300, 20)
    student: Any = published(30, 5)
    expected = {teacher: 5.78, student: 0.67}
    total: dict[Any, float] = {}
    for network, segments, samples in ((teacher, 20, 300), (student, 5, 30)):
        # Published counts multiply states of zeros too, at each segment's first frame and at the first segment.
        skipped = (segments + 1) * 2 * 1024 * 4 * 1024 / 1e9
        recurrent = macs(network.aggregator, 1, samples, 1152) + skipped
        assert recurrent == pytest.approx(expected[network], abs=0.006)
        total[network] = recurrent + macs(network.head, 1, 4096)
    assert 1 - total[student] / total[teacher] == pytest.approx(0.87, abs=0.005)
    for network in (teacher, student):
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(143, abs=0.5)
        assert sum(p.numel() for p in network.head.parameters()) / 1e6 == pytest.approx(97, abs=0.5)
        assert network.aggregator.width == 4096


def test_features_come_as_vectors() -> None:
    network = clip_network(CLASSES, "mean", encoder="features", dim=5)
    seen = network(torch.randn(2, 4, 5))
    assert seen.maps is None
    assert seen.representation.shape == (2, 5)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("hrnn", {}, "expected samples"),
    ("hrnn", {"samples": 6}, "HierarchicalLSTM needs the option 'segments'"),
    ("hrnn", {"samples": 6, "segments": 4}, r"segments to divide samples \(6\), got 4"),
    ("hrnn", {"samples": 6, "segments": 0}, "segments to be a whole number >= 1, got 0"),
    ("hrnn", {"samples": 6, "segments": 2, "clusters": 4}, "unknown option 'clusters'.*hidden, layers"),
    ("netvlad", {"order": True}, "expected samples"),
    ("netvlad", {"segments": 2}, "unknown option 'segments'"),
    ("netvlad", {"clusters": 0}, "clusters to be a whole number"),
    ("netvlad", {"hidden": 2.5}, "hidden to be a whole number >= 1, got 2.5"),
    ("netvlad", {"scale": 0.0}, "expected scale > 0, got 0.0"),
    ("nextvlad", {"gating": 200}, "expected gating in 0-128, got 200"),
    ("nextvlad", {"groups": 0}, "groups to be a whole number"),
    ("mean", {"classes": 1}, "expected classes >= 2"),
    ("mean", {"dropout": 1.0}, "0 <= dropout < 1"),
    ("mean", {"width": 0}, "width to be a whole number >= 1, got 0"),
    ("mean", {"pool": "max"}, "pool 'flatten' with features >= 1"),
    ("mean", {"features": 0}, "got 'flatten' with 0"),
    ("mean", {"encoder": "big"}, "expected encoder to be one of small, residual, tsm, causal3d, features"),
    ("mean", {"encoder": "features"}, "FeatureInput needs the option 'dim'"),
    ("mean", {"encoder": "features", "dim": 4, "width": 3}, "unknown option 'width'.*They know: dim"),
    ("mean", {"encoder": "tsm", "strides": (2,)}, r"at least one stage, got \[2\]"),
    ("mean", {"encoder": "residual", "strides": (2, 3)}, r"strides of 1 or 2.* got \[2, 3\]"),
    ("mean", {"head": "none"}, "expected head to be one of linear, mixture"),
    ("mean", {"experts": 2}, "unknown option 'experts'"),
    ("sum", {}, "expected family to be one of hrnn, netvlad, nextvlad, mean, got 'sum'"),
]


@pytest.mark.parametrize(("family", "options", "message"), REFUSED)
def test_what_does_not_fit_is_refused(family: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        clip_network(**{"classes": CLASSES, "family": family, **options})
