"""A small causal 3D network: the first convolution of each block reads three frames, the newest and two before."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sdk.distill.models.clips.past import Past
from edge_sdk.distill.models.clips.residual import ResidualBlock, ResidualEncoder


class CausalBlock(ResidualBlock):
    """Its first convolution is 3 x 3 x 3, padded with zeros before the clip and not at all after it.

    It is written as a 2D convolution over three frames' channels side by side, oldest first: the same numbers, and the
    only kind of convolution that every engine and every quantiser knows. The two frames before are its state.
    """

    frames = 3

    def seen(self, x: Tensor, past: Past) -> Tensor:
        """The maps of three frames, (M, 3 C, h, w)."""
        return torch.cat((past.before(self.name, x, self.frames - 1), x), 1)


class CausalEncoder(ResidualEncoder):
    """A residual network of :class:`CausalBlock`; the arguments are those of :class:`ResidualEncoder`."""

    block = CausalBlock
