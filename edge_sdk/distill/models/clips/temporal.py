"""Temporal shift (TSM, arXiv 1811.08383), one way: some channels of each block come from the frame before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_sdk.distill.models.clips.encoders import Pool, require
from edge_sdk.distill.models.clips.past import Past
from edge_sdk.distill.models.clips.residual import ResidualBlock, ResidualEncoder


class ShiftBlock(ResidualBlock):
    """The first ``shifted`` of its channels are those of the frame before, zeros at first; the shortcut's are not.

    They are its state, so time costs a copy and no multiplication. Published for whole clips are two ways, 1/8 of the
    channels from the frame after as well; a stream has no frame after.

    Args:
        name, c_in, c_out, stride: see :class:`ResidualBlock`.
        shifted: how many channels.
    """

    def __init__(self, name: str, c_in: int, c_out: int, stride: int, shifted: int) -> None:
        super().__init__(name, c_in, c_out, stride)
        self.shifted = shifted

    def seen(self, x: Tensor, past: Past) -> Tensor:
        """``x`` with the channels shifted."""
        return torch.cat((past.before(self.name, x[:, : self.shifted], 1), x[:, self.shifted :]), 1)


class ShiftEncoder(ResidualEncoder):
    """A residual network with a temporal shift in every block.

    Args:
        width, depth, strides: see :class:`ResidualEncoder`.
        share: one in so many channels is shifted (8 as published), at least one of each block.
        features, pool, grid: see :class:`Pooling`.
    """

    def __init__(
        self, width: int = 16, depth: int = 1, strides: Sequence[int] = (2, 1, 2, 2), share: int = 8, features: int = 0,
        pool: Pool = "mean", grid: int = 4,
    ) -> None:  # fmt: skip
        require("tsm", share=share)
        self._share = share
        super().__init__(width, depth, strides, features, pool, grid)

    def _block(self, name: str, c_in: int, c_out: int, stride: int) -> ResidualBlock:
        return ShiftBlock(name, c_in, c_out, stride, max(1, c_in // self._share))
