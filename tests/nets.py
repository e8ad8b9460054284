"""Small networks that nobody here wrote for the SDK: what users bring, with one peculiarity each.

Each is (N, 3, H, W) -> (N, CLASSES, h, w), has random batch-norm statistics, and starts and ends with a convolution of
its own so that the default recipe leaves ``first`` and ``last`` alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

CLASSES = 4
SIZE_HW = (32, 48)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode with random weights and random, non-trivial batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
    return network.eval()


def frames(count: int, size_hw: tuple[int, int] = SIZE_HW, seed: int = 0) -> list[Tensor]:
    """``count`` unrelated inputs (1, 3, H, W), standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *size_hw, generator=generator) for _ in range(count)]


class Ends(nn.Module):
    """A first and a last convolution around a middle of eight channels."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.middle = middle
        self.last = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.middle(self.first(image)))


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList([nn.ModuleDict({"a": block, "b": nn.Sequential(nn.Conv2d(8, 8, 1))})])

    def forward(self, x: Tensor) -> Tensor:
        stage = self.stages[0]
        return x + stage["b"](stage["a"](x))  # type: ignore[index]


class _Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(input=self.conv(input=x))


class _Shared(nn.Module):
    """One convolution under two names, run once under each: two state entries."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(F.relu(self.one(x)))


class _SharedHead(nn.Module):
    """One head for two sizes, as detectors have it, with a batch norm of its own for each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        small = self.norms[1](self.head(F.avg_pool2d(x, 2)))
        return self.norms[0](self.head(x)) + F.interpolate(small, size=x.shape[-2:], mode="nearest")


class _TiedWeights(nn.Module):
    """Two modules, one parameter; a batch norm follows the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.norm(self.a(x))))


class ScaledConv2d(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Functional(nn.Module):
    """A convolution whose module is never called, and one that is called and read."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = nn.Conv2d(8, 8, 3, padding=1)
        self.both = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.bare.weight, self.bare.bias, padding=1))
        return self.norm(self.both(x)) + F.conv2d(x, self.both.weight, padding=1)


class _FunctionalNorm(nn.Module):
    """A batch norm called as a module for one tensor and by hand for another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        by_hand = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps)
        return self.norm(self.conv(x)) + by_hand


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


class _OverRows(nn.Module):
    """A Conv1d over each row, as axial networks have it, beside a Conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Conv1d(8, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = self.rows(x.permute(0, 2, 1, 3).reshape(n * h, c, w)).reshape(n, h, c, w).permute(0, 2, 1, 3)
        return self.conv(x) + rows


class _ReadsSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        assert self.conv.stride == (1, 1)
        return out.view(-1, self.conv.out_channels, *x.shape[-2:])


class _InPlace(nn.Module):
    """Works in place on inputs and outputs of its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(x)
        x += self.a(x)
        out *= 0.5
        return out.add_(x)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class _Tapped(nn.Module):
    """Reads a convolution's output before its batch norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        return self.norm(raw) * torch.sigmoid(raw)


class _SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x)) + F.relu(self.norm(self.b(x)))


class _DeadBranch(nn.Module):
    """An auxiliary head whose output is dropped in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.aux = nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        self.aux(x)
        return x


class ReturnsRaw(nn.Module):
    """Returns a convolution's own output beside what its batch norm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, CLASSES, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        raw = self.conv(self.first(image))
        return {"out": self.last(self.norm(raw)), "raw": raw}


def _hidden() -> nn.Module:
    """A convolution reached through a plain list, so that replacing the registered one changes nothing."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.seen = nn.Conv2d(8, 8, 3, padding=1)
            self.plain = [self.conv]

        def forward(self, x: Tensor) -> Tensor:
            return self.seen(F.relu(self.plain[0](x)))

    return Hidden()


def _conv_norm(**settings: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, **settings), nn.BatchNorm2d(8), nn.ReLU())  # type: ignore[arg-type]


def _replaced_forward() -> nn.Module:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    conv.forward = lambda x: F.conv2d(x, conv.weight * 0.5, conv.bias, padding=1)  # type: ignore[method-assign,assignment]
    return nn.Sequential(conv, nn.Conv2d(8, 8, 1))


# Middles by name, and the layers of each that are converted, with the reason for those that are not.
MIDDLES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "nested": (_Nested, {"stages.0.a.0": "full and low rank", "stages.0.b.0": "full and low rank"}),
    "keywords": (_Keywords, {"conv": "full and low rank"}),
    "grouped": (lambda: _conv_norm(groups=2), {"0": "full and low rank"}),
    "depthwise": (
        lambda: nn.Sequential(_conv_norm(groups=8), nn.Conv2d(8, 8, 1)),
        {"0.0": "depthwise: nothing is much cheaper", "1": "full and low rank"},
    ),
    "shared": (_Shared, {"one": "full and low rank"}),
    "shared_head": (_SharedHead, {"head": "full and low rank"}),
    "tied_weights": (_TiedWeights, {"a": "full and low rank", "b": "full and low rank"}),
    "subclass": (
        lambda: nn.Sequential(
            ScaledConv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        ),
        {"0": "ScaledConv2d computes something of its own", "2": "full and low rank"},
    ),
    "hooked_weight_norm": (
        lambda: nn.Sequential(
            nn.utils.weight_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        ),
        {"0": "has hooks (such as weight norm)", "2": "full and low rank"},
    ),
    "weight_norm": (
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        ),
        {"0": "its weight is parametrised", "2": "full and low rank"},
    ),
    "functional": (_Functional, {"both": "full and low rank"}),
    "functional_norm": (_FunctionalNorm, {"conv": "full and low rank"}),
    "transposed": (_Transposed, {"down": "full and low rank"}),
    "conv1d": (_OverRows, {"conv": "full and low rank"}),
    "reads_sizes": (_ReadsSizes, {"conv": "full and low rank"}),
    "in_place": (_InPlace, {"b": "full and low rank", "a.0": "full and low rank"}),
    "residual": (_Residual, {"body.1": "full and low rank", "body.4": "full and low rank"}),
    "tapped": (_Tapped, {"conv": "full and low rank"}),
    "shared_norm": (_SharedNorm, {"a": "full and low rank", "b": "full and low rank"}),
    "dead_branch": (_DeadBranch, {"conv": "full and low rank", "aux": "feeds only what is kept"}),
    "hidden": (_hidden, {"conv": "feeds only what is kept", "seen": "full and low rank"}),
    "train_statistics": (
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        {"0": "full and low rank"},
    ),
    "replaced_forward": (_replaced_forward, {"0": "its forward is replaced", "1": "full and low rank"}),
}


def foreign(name: str, seed: int = 0) -> nn.Module:
    """The network with the named middle."""
    torch.manual_seed(seed)
    return randomise(Ends(MIDDLES[name][0]()), seed)


def tiny(classes: int = CLASSES, width: int = 8) -> nn.Module:
    """A factory for recipes: a few layers, logits at half size."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(width, classes, 1),
    )


def picker() -> nn.Module:
    """Its logits are its input's three channels, so that a mask says which one is largest."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3)[:, :, None, None])  # type: ignore[operator]
        network[0].bias.zero_()  # type: ignore[operator]
    return network


class _Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image) + torch.linalg.svdvals(image[0, 0]).sum()


def spectral() -> nn.Module:
    """Needs an operator that ONNX has not."""
    return _Spectral()
