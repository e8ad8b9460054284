"""Weights at another width, and the layout in which networks train."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs torch")

from torch import nn  # noqa: E402

from edge_sdk.distill.channels_last import channels_last  # noqa: E402
from edge_sdk.distill.models import ddrnet_23_slim, small_segmenter  # noqa: E402
from edge_sdk.distill.widths import fit_width  # noqa: E402
from edge_sdk.errors import CheckpointError  # noqa: E402


def network(width: int, classes: int = 3) -> nn.Module:
    """With statistics other than those that batch norms begin with."""
    torch.manual_seed(width)
    net = ddrnet_23_slim(classes=classes, width=width)
    with torch.no_grad():
        for _ in range(2):
            net.train()(torch.randn(2, 3, 64, 64))
    return net.eval()


@pytest.mark.parametrize(("was", "width"), [(4, 8), (4, 12)])
def test_a_wider_network_answers_as_before(was: int, width: int) -> None:
    given, wider = network(was), network(width)
    x = torch.randn(1, 3, 64, 96)
    before = given(x)
    assert not torch.allclose(wider(x), before, atol=0.1)
    fit_width(wider, given.state_dict(), "a.pt", noise=0.0)
    torch.testing.assert_close(wider(x), before, atol=1e-4, rtol=1e-4)


def test_noise_parts_what_repeats() -> None:
    torch.manual_seed(0)
    given, wider = nn.Conv2d(4, 4, 3), nn.Conv2d(8, 8, 3)
    fit_width(wider, given.state_dict(), "a.pt")
    apart = (wider.weight[0] - wider.weight[1]).abs().mean() / wider.weight.std()
    assert 0.01 < apart < 0.2
    assert wider.bias is not None
    assert wider.bias[0] == wider.bias[1]


def test_a_narrower_network_takes_channels_from_every_part() -> None:
    given = {"weight": torch.arange(36.0).reshape(6, 6, 1, 1), "bias": torch.arange(6.0)}
    narrower = nn.Conv2d(3, 3, 1)
    fit_width(narrower, given, "a.pt")
    assert narrower.bias is not None
    assert narrower.bias.tolist() == [0, 2, 4]
    # Half as many inputs, each of twice the weight.
    assert narrower.weight[:, :, 0, 0].tolist() == [[0, 4, 8], [24, 28, 32], [48, 52, 56]]


def test_equal_width_copies() -> None:
    given, other = network(4), ddrnet_23_slim(classes=3, width=4)
    fit_width(other, given.state_dict(), "a.pt")
    for name, value in given.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (small_segmenter(classes=3, width=8).state_dict(), "found others"),
        ({**network(4).state_dict(), "more": torch.zeros(1)}, "found others: more"),
        ({**network(4).state_dict(), "stem.0.weight": torch.zeros(4, 3, 5, 5)}, "found others: stem.0.weight"),
        (network(8, classes=5).state_dict(), "found others: head"),
        (network(4, classes=5).state_dict(), "found others: head"),
    ],
)  # fmt: skip
def test_another_network_is_refused(weights: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        fit_width(network(8), weights, "a.pt")


STRIDED = [(8, 16, 0), (12, 24, "valid"), (3, 32, 0), (16, 16, 0), (4, 4, 0), (20, 16, 1)]


@pytest.mark.parametrize(("channels", "out", "padding"), STRIDED)
def test_strided_convolutions_compute_the_same_in_the_layout_of_training(
    channels: int, out: int, padding: Any
) -> None:
    torch.manual_seed(0)
    plain, trained = (nn.Conv2d(channels, out, 1, 2, padding) for _ in range(2))
    trained.load_state_dict(plain.state_dict())
    channels_last(nn.Sequential(trained))
    # More than once: what is written past an end crashes later.
    for _ in range(10):
        x = torch.randn(6, channels, 31, 40)
        there, here = (
            x.clone().requires_grad_(),
            x.contiguous(memory_format=torch.channels_last).requires_grad_(),
        )
        expected, got = plain(there), trained(here)
        torch.testing.assert_close(got, expected)
        (expected**2).mean().backward()
        (got**2).mean().backward()
        torch.testing.assert_close(here.grad, there.grad)
        torch.testing.assert_close(trained.weight.grad, plain.weight.grad)


def test_a_narrow_network_trains_in_that_layout() -> None:
    net = channels_last(network(8)).train()
    for _ in range(6):
        x = torch.rand(6, 3, 120, 160).contiguous(memory_format=torch.channels_last)
        net(x).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
