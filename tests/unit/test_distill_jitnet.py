"""JITNet: its sizes are the published ones, and its norm is batch normalisation of the frame at hand."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

import torch.nn.functional as F  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.candidates import conv_macs  # noqa: E402
from edge_sdk.distill.models import jitnet  # noqa: E402
from edge_sdk.distill.models.jitnet import FrameNorm  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402

TIMED_HW = (720, 1280)


def macs(network: nn.Module, size_hw: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions, from the shapes that they meet."""
    total = 0

    def count(conv: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        height, width = inputs[0].shape[-2:]
        total += conv_macs(conv, (height, width))[0]

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.device("meta"), torch.no_grad():
        network.to("meta")(torch.empty(1, 3, *size_hw))
    return total


# Width, classes, millions of parameters and billions of multiply-accumulates at 720 x 1280.
PUBLISHED = [(0.5, 23, 0.75, 7.58, 0.005), (1.0, 4, 2.97, 21.0, 0.5)]


@pytest.mark.parametrize(("width", "classes", "millions", "billions", "rounding"), PUBLISHED)
def test_its_size_is_the_published_one(
    width: float, classes: int, millions: float, billions: float, rounding: float
) -> None:
    network = jitnet(classes, width)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    at_half = macs(network, TIMED_HW) / 1e9
    # The published network makes its logits at full size, which is three times more of the last convolution.
    last = network.logits.in_channels * classes * TIMED_HW[0] * TIMED_HW[1] / 1e9
    assert at_half + last * 3 / 4 == pytest.approx(billions, abs=rounding)


def test_the_stages_have_the_published_channels() -> None:
    for width, stem, encoder, decoder in (
        (1.0, (16, 64), (128, 128, 256), (256, 128, 64)),
        (0.5, (8, 32), (64, 64, 128), (128, 64, 32)),
    ):
        found: Any = jitnet(4, width)
        assert (found.stem1[0].out_channels, found.stem2[0].out_channels) == stem
        blocks = (found.enc1, found.enc2, found.enc3, found.dec3, found.dec2, found.dec1)
        assert tuple(block.residual[2].out_channels for block in blocks) == encoder + decoder
    last = {classes: jitnet(classes, 0.5).logits.in_channels for classes in (2, 8, 9, 16, 17)}
    assert last == {2: 8, 8: 8, 9: 16, 16: 16, 17: 32}


@settings(max_examples=15, deadline=None)
@given(height=st.integers(33, 70), width=st.integers(1, 70), norm=st.sampled_from(("frame", "running")))
def test_any_size_gives_logits_at_half_size(height: int, width: int, norm: str) -> None:
    """From 33 pixels a side on: statistics of one frame need more than one place at 1/32."""
    network = jitnet(3, 0.125, norm).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = network(torch.randn(1, 3, height, width))
    assert logits.shape == (1, 3, -(-height // 2), -(-width // 2))
    assert bool(logits.isfinite().all())


def test_logits_at_half_size_are_those_of_the_published_order() -> None:
    """Resizing and a convolution over single pixels commute."""
    network = jitnet(3, 0.125)
    features = torch.randn(1, network.logits.in_channels, 12, 17)

    def full(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(24, 34), mode="bilinear", align_corners=True)

    with torch.no_grad():
        torch.testing.assert_close(full(network.logits(features)), network.logits(full(features)))


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_frame_norm_is_batch_norm_in_training_in_either_mode(frames: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(frames)
    x = 40 + 9 * torch.randn(frames, 5, 13, 11, generator=generator)
    ours, theirs = FrameNorm(5), nn.BatchNorm2d(5, eps=1e-5)
    with torch.no_grad():
        for module in (ours, theirs):
            module.weight.copy_(torch.linspace(-1, 2, 5))
            module.bias.copy_(torch.linspace(3, -3, 5))
    getattr(ours, mode)()
    mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(mine), theirs.train()(reference), rtol=1e-4, atol=1e-4)
    for out in (ours(mine), theirs(reference)):
        out.square().sum().backward()
    torch.testing.assert_close(mine.grad, reference.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-3)


def test_only_the_running_norm_gathers_statistics() -> None:
    for norm, kept in (("frame", 0), ("running", 16)):
        network = jitnet(3, 0.125, norm)  # type: ignore[arg-type]
        assert len([name for name, _ in network.named_buffers() if name.endswith("running_var")]) == kept


@pytest.mark.parametrize(
    "arguments", [(1, 0.5, "frame"), (3, 0.0, "frame"), (3, 5.0, "frame"), (3, 1.0, "group")]
)
def test_arguments_out_of_range(arguments: tuple[int, float, str]) -> None:
    with pytest.raises(RecipeError, match="jitnet: expected classes >= 2"):
        jitnet(*arguments)  # type: ignore[arg-type]


def test_a_shrunk_student_answers_as_one_that_is_given_the_smaller_image() -> None:
    torch.manual_seed(0)
    small, shrunk = jitnet(3, 0.25).eval(), jitnet(3, 0.25, shrink=2).eval()
    shrunk.load_state_dict(small.state_dict())
    image = torch.randn(1, 3, 96, 131)
    # The last column has no neighbour: its mean is of what there is.
    halved = torch.nn.functional.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
    assert halved.shape == (1, 3, 48, 66)
    assert halved[0, 0, 0, -1] == pytest.approx(float(image[0, 0, :2, -1].mean()), abs=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(shrunk(image), small(halved))
