"""Gated convolutions: exact where nothing may be lost, and what is lost is what the settings say."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.skip import SkipConversion, SkipSettings, to_skip  # noqa: E402
from edge_sdk.distill.skip.gates import NormGate, blocks  # noqa: E402
from edge_sdk.errors import ConversionError, RecipeError  # noqa: E402
from edge_sdk.settings import parse_settings  # noqa: E402
from tests import nets  # noqa: E402

EXAMPLE = torch.zeros(1, 3, *nets.SIZE_HW)


def convert(network: nn.Module, **given: object) -> SkipConversion:
    return to_skip(network, EXAMPLE, SkipSettings(**given))  # type: ignore[arg-type]


def one(conv: nn.Conv2d, size: int = 8, **given: object) -> SkipConversion:
    """A network of one convolution with weights as they are."""
    return to_skip(conv.eval(), torch.zeros(1, conv.in_channels, size, size), SkipSettings(**given))  # type: ignore[arg-type]


def clip(count: int, seed: int = 0, size_hw: tuple[int, int] = nets.SIZE_HW) -> list[Tensor]:
    """Frames in which a patch changes, elsewhere nothing."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(1, 3, *size_hw, generator=generator)]
    for index in range(1, count):
        frame = frames[-1].clone()
        frame[..., 3 * index : 3 * index + 4, 4:9] = torch.randn(1, 3, 4, 5, generator=generator)
        frames.append(frame)
    return frames


def run(conversion: SkipConversion, frames: list[Tensor]) -> list[tuple[Tensor, float]]:
    """Answers and open shares of the frames after the first."""
    with torch.no_grad():
        _, state = conversion.net.keyframe(frames[0].clone())
        found = []
        for frame in frames[1:]:
            kept = {name: value.clone() for name, value in state.items()}
            out, changes, opened = conversion.net.measured(frame.clone(), state)
            assert all(torch.equal(state[name], value) for name, value in kept.items()), (
                "state was written in place"
            )
            state = {**state, **changes}
            found.append((out.clone(), float(conversion.work.open_share(opened)[0])))
    return found


@pytest.mark.parametrize("gate", ["input_norm", "output_norm"])
@pytest.mark.parametrize("reference", ["previous", "last_open"])
@pytest.mark.parametrize(("name", "block"), [("nested", 1), ("strides", 4)])
def test_threshold_0_is_the_teacher_bit_for_bit(name: str, block: int, gate: str, reference: str) -> None:
    conversion = convert(SMALL[name](), gate=gate, eps=0.0, reference=reference, block=block)
    frames = clip(4)
    for frame, (found, share) in zip(frames[1:], run(conversion, frames), strict=True):
        with torch.no_grad():
            expected = conversion.net.keyframe(frame.clone())[0]
        assert torch.equal(found, expected)
        assert 0 < share < 1, "all or nothing was computed, so that nothing was shown"


def test_threshold_0_in_published_form_is_the_teacher_up_to_rounding() -> None:
    conversion = convert(SMALL["nested"](), eps=0.0, update="residual")
    frames = clip(4)
    for frame, (found, _) in zip(frames[1:], run(conversion, frames), strict=True):
        with torch.no_grad():
            expected = conversion.net.teacher(frame.clone())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_nothing_opens_on_a_frame_that_did_not_change() -> None:
    conversion = convert(SMALL["nested"](), eps=0.0)
    frame = clip(1)[0]
    (found, share), *_ = run(conversion, [frame, frame])
    assert share == 0.0
    assert torch.equal(found, conversion.net.keyframe(frame)[0])


def test_the_teacher_is_left_as_it_is_and_the_keyframe_step_is_the_teacher() -> None:
    teacher = SMALL["nested"]()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    conversion = convert(teacher)
    frame = clip(1)[0]
    with torch.no_grad():
        expected = teacher(frame.clone())
        found = conversion.net.keyframe(frame.clone())[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["shared", "shared_head", "tied_weights", "keywords"])
def test_layers_called_twice_or_tied_are_exact_too(name: str) -> None:
    network = nets.foreign(name)
    conversion = convert(network, eps=0.0)
    frames = clip(3)
    for frame, (found, _) in zip(frames[1:], run(conversion, frames), strict=True):
        with torch.no_grad():
            assert torch.equal(found, conversion.net.keyframe(frame.clone())[0])


# One 1x1 layer of weight 1 shows each rule in numbers.


def pixel() -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        nn.init.constant_(conv.bias, 10.0)  # type: ignore[arg-type]
    return conv


@pytest.mark.parametrize(
    ("given", "inputs", "outputs"),
    [
        # Slow changes are lost, because each is measured from the frame before.
        ({}, [0, 0.4, 0.8, 1.2], [10, 10, 10, 10]),
        # They add up where the reference stays: 0.8 is above the threshold of 0.5.
        ({"reference": "last_open"}, [0, 0.4, 0.8, 1.2], [10, 10, 10.8, 10.8]),
        # An open pixel makes good what was skipped before it ...
        ({}, [0, 0.4, 1.4], [10, 10, 11.4]),
        # ... and in published form it does not.
        ({"update": "residual"}, [0, 0.4, 1.4], [10, 10, 11.0]),
        # A tie stays closed, and the bias is not added again.
        ({}, [0, 0.5, 2.5], [10, 10, 12.5]),
        ({"update": "residual"}, [0, 2, 4], [10, 12, 14]),
    ],
)
def test_what_is_lost(given: dict[str, object], inputs: list[float], outputs: list[float]) -> None:
    conversion = one(pixel(), size=1, eps=0.5, **given)
    frames = [torch.full((1, 1, 1, 1), float(value)) for value in inputs]
    with torch.no_grad():
        first = conversion.net.keyframe(frames[0])[0]
    found = [float(first), *(float(out) for out, _ in run(conversion, frames))]
    assert found == pytest.approx(outputs)


def test_a_relative_threshold_follows_the_layer_at_the_keyframe() -> None:
    for size, opens in ((1.0, True), (10.0, False)):
        conversion = one(pixel(), size=4, eps=0.5, scale="layer")
        frames = [torch.full((1, 1, 4, 4), size), torch.full((1, 1, 4, 4), size + 1.0)]
        (_, share), *_ = run(conversion, frames)
        assert share == float(opens)


@given(
    side=st.integers(3, 9), kernel=st.integers(1, 3), stride=st.integers(1, 2), padding=st.integers(0, 1),
    dilation=st.integers(1, 2), channels=st.integers(1, 3), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_norm_is_the_mean_over_channels_and_window(
    side: int, kernel: int, stride: int, padding: int, dilation: int, channels: int, seed: int
) -> None:
    if side + 2 * padding < dilation * (kernel - 1) + 1:
        return
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, 2, kernel, stride, padding, dilation)
    change = torch.randn(1, channels, side, side)
    windows = F.unfold(change.abs(), kernel, dilation, padding, stride).mean(1).flatten()
    for eps in windows[:3].tolist():
        away = (windows - eps).abs() > 1e-5
        gate = NormGate(conv, SkipSettings(eps=eps))
        found = gate(change, conv.weight, None).flatten()
        assert torch.equal(found[away], (windows > eps)[away])


@given(
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    side=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_block_opens_with_its_largest_pixel(height: int, width: int, side: int, seed: int) -> None:
    values = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) - 5
    found = blocks(values, side)
    assert found.shape == values.shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            here = (slice(None), slice(None), slice(y, y + side), slice(x, x + side))
            assert torch.equal(found[here], values[here].amax((2, 3), keepdim=True).expand_as(found[here]))


class _Strides(nn.Module):
    """Windows of many shapes: strided, dilated, without padding, grouped, depthwise, a row, mirrored padding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, 2, groups=2),
            nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.Conv2d(8, 8, (1, 3), padding=(0, 1), padding_mode="reflect"),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


SMALL = {
    "nested": lambda: nets.foreign("nested"),
    "strides": lambda: nets.randomise(nets.Ends(_Strides())),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"include": ("nothing*",)}, "matches no convolution"),
        ({"exclude": ("*",)}, "no convolution of Ends can get a gate"),
        ({"skip_first": 99}, "no convolution of Ends can get a gate"),
    ],
)
def test_what_cannot_be_converted_is_named(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(SMALL["nested"](), **given)


def test_a_layer_that_is_left_alone_says_why_and_runs_in_full() -> None:
    conversion = convert(
        nets.randomise(nets.Ends(nn.Sequential(nets.ScaledConv2d(8, 8, 3, padding=1)))),
        eps=0.0,
        exclude=("last",),
    )
    reasons = {layer.name: layer.reason for layer in conversion.work.layers if not layer.gated}
    assert reasons == {"middle.0": "ScaledConv2d computes something of its own", "last": "excluded"}
    frames = clip(2)
    (found, _), *_ = run(conversion, frames)
    with torch.no_grad():
        assert torch.equal(found, conversion.net.teacher(frames[1]))


def test_a_network_whose_answer_is_chance_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.count = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.conv(x) * self.count

    with pytest.raises(ConversionError, match="differs from the teacher"):
        convert(Noisy().eval())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": float("inf")}, "eps"),
        ({"block": 3}, "block"),
        ({"gate": "norm"}, "gate"),
        ({"reference": "last_open", "update": "residual"}, "needs update 'refresh'"),
        ({"gate": "gumbel", "eps": 0.3}, "are of the norm gates"),
        ({"gate": "gumbel", "scale": "layer"}, "are of the norm gates"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings(given, SkipSettings, "skip")
