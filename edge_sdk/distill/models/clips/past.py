"""What a layer has seen before: in training the earlier frames of the batch, on the device the state."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sdk.distill.steps import State


class Past:
    """One pass of a network that looks back in time; before the first frame there is nothing but zeros.

    Args:
        frames: consecutive frames of each clip in the batch, (N * frames, ...); 1 where frames come one by one.
        state: what the last pass wrote, or None where the clip begins.

    Attributes:
        written: the state for the next pass, by name; stays empty where all frames come at once.
    """

    def __init__(self, frames: int | None = None, state: State | None = None) -> None:
        self._frames, self._state = frames, state
        self.written: State = {}

    def before(self, name: str, x: Tensor, count: int) -> Tensor:
        """The ``count`` tensors before each of ``x``, oldest first, one after another in the channels.

        Args:
            name: of the layer that asks, unique in its network.
            x: (M, C, h, w).
            count: at least 1.

        Returns:
            (M, count * C, h, w).
        """
        if self._frames is not None:
            return _earlier(x, self._frames, count)
        channels = x.shape[1]
        if self._state is not None:
            before = self._state[name]
        else:
            before = torch.cat([torch.zeros_like(x)] * count, 1) if count > 1 else torch.zeros_like(x)
        self.written[name] = torch.cat((before[:, channels:], x), 1) if count > 1 else x
        return before


def _earlier(x: Tensor, frames: int, count: int) -> Tensor:
    clips = x.unflatten(0, (-1, frames))
    padded = torch.cat((torch.zeros_like(clips[:, :1]).expand(-1, count, -1, -1, -1), clips), 1)
    return torch.cat([padded[:, i : i + frames] for i in range(count)], 2).flatten(0, 1)
