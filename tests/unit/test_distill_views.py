"""A teacher that looks several times."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_sdk.distill.models import several_views  # noqa: E402
from edge_sdk.distill.models.views import Views  # noqa: E402
from edge_sdk.distill.modules import load_module, make_module, save_checkpoint  # noqa: E402
from edge_sdk.distill.recipes import ModuleSettings  # noqa: E402
from edge_sdk.errors import RecipeError  # noqa: E402
from tests import nets  # noqa: E402

NETWORK = {"factory": "tests.nets:tiny", "arguments": {"classes": 4}}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nets.randomise(nets.tiny(classes=4), 3).eval()


def frame() -> Tensor:
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))


def test_the_answer_is_the_mean_of_the_views_at_the_size_of_the_largest() -> None:
    net, x = network(), frame()
    with torch.no_grad():
        found = Views(net, (1.0, 1.5), mirror=False)(x)
        large = net(F.interpolate(x, size=(32, 64), mode="bilinear"))  # 36 x 60, in multiples of 8
        small = F.interpolate(net(x), size=large.shape[-2:], mode="bilinear")
    assert found.shape == large.shape == (2, 4, 16, 32)
    assert torch.allclose(found, (large + small) / 2, atol=1e-5)


def test_mirrored_frames_get_mirrored_answers() -> None:
    net, x = network(), frame()
    with torch.no_grad():
        views = Views(net, (1.0,), mirror=True)
        assert torch.allclose(views(x.flip(-1)), views(x).flip(-1), atol=1e-5)
        assert not torch.allclose(net(x.flip(-1)), net(x).flip(-1), atol=1e-2)


def test_one_view_is_the_network() -> None:
    net, x = network(), frame()
    with torch.no_grad():
        assert torch.equal(Views(net, (1.0,), mirror=False)(x), net(x))


@pytest.mark.parametrize("inside", [True, False], ids=["its own weights", "the network's"])
def test_a_recipe_makes_it(inside: bool, tmp_path: Path) -> None:
    weights = tmp_path / "some.pt"
    net = Views(network(), (1.0,), mirror=True) if inside else network()
    save_checkpoint(weights, net.state_dict())
    arguments = {"network": NETWORK, "scales": [1.0, 1.25]}
    given = ModuleSettings(
        factory="edge_sdk.distill.models:several_views", arguments=arguments, checkpoint=weights
    )
    with torch.no_grad():
        expected = Views(network(), (1.0, 1.25), mirror=True)(frame())
        assert torch.equal(load_module(given)(frame()), expected)


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0]])
def test_scales_that_are_none_are_refused(scales: list[float]) -> None:
    with pytest.raises(ValueError, match="'scales': expected one or more above 0"):
        several_views(NETWORK, scales)
    given = ModuleSettings(
        factory="edge_sdk.distill.models:several_views", arguments={"network": NETWORK, "scales": scales}
    )
    with pytest.raises(RecipeError, match="scales"):
        make_module(given)
