"""A small residual network over frames, whose blocks may look at the frames before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.models.clips.encoders import Encoder, Pool, Pooling, conv_norm, require
from edge_sdk.distill.models.clips.past import Past
from edge_sdk.errors import RecipeError


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (1 x 1 where size or channels change); sees one frame alone.

    Args:
        name: under which it keeps state, unique in its network.
        c_in, c_out: channels.
        stride: of the first convolution.

    Attributes:
        frames: how many frames stand side by side in the first convolution's input.
    """

    frames = 1

    def __init__(self, name: str, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.name = name
        self.first = nn.Sequential(conv_norm(self.frames * c_in, c_out, stride), nn.ReLU())
        self.second = conv_norm(c_out, c_out)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else conv_norm(c_in, c_out, stride, kernel=1)

    def seen(self, x: Tensor, past: Past) -> Tensor:
        """What the first convolution reads, (M, frames * C, h, w), of a frame's maps (M, C, h, w)."""
        return x

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Maps (M, c_out, h / stride, w / stride)."""
        return F.relu(self.shortcut(x) + self.second(self.first(self.seen(x, past))))


class ResidualEncoder(Encoder):
    """A convolution and stages of residual blocks, then a pooling.

    Args:
        width: channels of the first convolution and the first stage; each further stage has twice as many.
        depth: blocks of a stage.
        strides: of the first convolution, then of each stage.
        features, pool, grid: see :class:`Pooling`; by default the features are the mean of the maps.
    """

    block: type[ResidualBlock] = ResidualBlock

    def __init__(
        self, width: int = 16, depth: int = 1, strides: Sequence[int] = (2, 1, 2, 2), features: int = 0,
        pool: Pool = "mean", grid: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        require("residual", width=width, depth=depth)
        if len(strides) < 2 or not set(strides) <= {1, 2}:
            raise RecipeError(
                "clip network, 'residual': expected strides of 1 or 2 for the first convolution and at least one "
                f"stage, got {list(strides)}."
            )
        self.stem = nn.Sequential(conv_norm(3, width, strides[0]), nn.ReLU())
        channels = [width, *(width << stage for stage in range(len(strides) - 1))]
        self.blocks = nn.ModuleList(
            self._block(
                f"stage{stage}_block{index}",
                c_in if index == 0 else c_out,
                c_out,
                stride if index == 0 else 1,
            )
            for stage, ((c_in, c_out), stride) in enumerate(zip(pairwise(channels), strides[1:], strict=True))
            for index in range(depth)
        )
        self.pooling = Pooling(channels[-1], features, pool, grid)
        self.width, self.places = self.pooling.width, self.pooling.places

    def _block(self, name: str, c_in: int, c_out: int, stride: int) -> ResidualBlock:
        return self.block(name, c_in, c_out, stride)

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Tensor | None]:
        """Features and maps of frames."""
        maps = self.stem(x)
        for block in self.blocks:
            maps = block(maps, past)
        return self.pooling(maps), maps
