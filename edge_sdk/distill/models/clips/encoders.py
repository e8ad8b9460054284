"""From a frame to its features: small networks without a look at other frames, and features that were made before."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from edge_sdk.distill.models.clips.past import Past
from edge_sdk.errors import RecipeError

Pool = Literal["flatten", "mean"]


class Encoder(nn.Module):
    """Frames to features.

    Attributes:
        width: D, numbers in a feature vector.
        places: whether the features are the mean of the maps, so that a linear classifier can be applied everywhere.
    """

    width: int
    places = False

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor | None]:
        """Features (M, D) and last maps (M, C, h, w), or None, of frames (M, 3, H, W).

        Args:
            x: normalised frames; consecutive ones of a clip follow each other where ``past`` says so.
            past: where layers ask for what they saw before.
        """
        raise TypeError(f"{type(self).__name__} defines no forward")


class FeatureInput(Encoder):
    """Features that were extracted before, (M, D), as they are.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        require("features", dim=dim)
        self.width = dim

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor | None]:
        """``x``; there are no maps."""
        return x, None


def conv_norm(c_in: int, c_out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)
    )


class Pooling(nn.Module):
    """Maps (M, C, h, w) to features (M, D).

    Args:
        channels: C.
        features: D; with ``pool="mean"`` 0 leaves the mean as it is.
        pool: ``flatten`` keeps the places (the map goes through one linear layer), ``mean`` forgets them.
        grid: with ``flatten``, the map is averaged to (or repeated in) so many cells a side first, so that the same
            weights serve every frame size.

    Attributes:
        width: D.
        places: whether the features are the plain mean.
    """

    def __init__(self, channels: int, features: int, pool: Pool, grid: int) -> None:
        super().__init__()
        require("pool", grid=grid)
        if pool not in ("flatten", "mean") or features < (pool == "flatten"):
            raise RecipeError(
                "clip network: expected pool 'flatten' with features >= 1, or 'mean' with features >= 0, "
                f"got '{pool}' with {features}."
            )
        self.grid = grid if pool == "flatten" else 0
        self.linear = nn.Linear(channels * (self.grid**2 or 1), features) if features else nn.Identity()
        self.width = features or channels
        self.places = not features

    def forward(self, maps: Tensor) -> Tensor:
        """Features of maps."""
        return self.linear(to_grid(maps, self.grid).flatten(1) if self.grid else maps.mean((2, 3)))


class SmallEncoder(Encoder):
    """A stack of 3 x 3 convolutions with stride 2, each with batch norm and ReLU, and a pooling.

    Args:
        width: channels of the first convolution; each further one has twice as many.
        depth: convolutions.
        features, pool, grid: see :class:`Pooling`.
    """

    def __init__(
        self, width: int = 12, depth: int = 3, features: int = 64, pool: Pool = "flatten", grid: int = 4
    ) -> None:
        super().__init__()
        require("small", width=width, depth=depth)
        channels = [3, *(width << stage for stage in range(depth))]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(conv_norm(c_in, c_out, 2), nn.ReLU())
                for c_in, c_out in itertools.pairwise(channels)
            )
        )
        self.pooling = Pooling(channels[-1], features, pool, grid)
        self.width, self.places = self.pooling.width, self.pooling.places

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor | None]:
        """Features and maps of frames."""
        maps = self.stages(x)
        return self.pooling(maps), maps


def to_grid(maps: Tensor, grid: int) -> Tensor:
    """Maps (M, C, h, w) averaged to ``grid`` cells a side, as adaptive average pooling does.

    Written as matrix products, because engines know no adaptive pooling.
    """
    height, width = maps.shape[-2:]
    if (height, width) == (grid, grid):
        return maps
    return torch.matmul(_cells(height, grid, maps), torch.matmul(maps, _cells(width, grid, maps).T))


def _cells(size: int, grid: int, like: Tensor) -> Tensor:
    """Matrix (grid, size) whose rows average what lies in a cell, whole pixels only."""
    rows = []
    for cell in range(grid):
        low, high = cell * size // grid, math.ceil((cell + 1) * size / grid)
        rows.append([1 / (high - low) if low <= i < high else 0.0 for i in range(size)])
    return like.new_tensor(rows)


def require(what: str, **counts: int) -> None:
    """Refuse counts below 1.

    Raises:
        RecipeError: names the first of them.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise RecipeError(
                f"clip network, '{what}': expected {name} to be a whole number >= 1, got {count}."
            )
