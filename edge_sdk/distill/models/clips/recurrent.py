"""The hierarchical recurrent network (arXiv 1902.10640): an LSTM over a segment's frames, one over the segments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sdk.distill.models.clips.aggregators import Aggregator
from edge_sdk.distill.models.clips.encoders import require
from edge_sdk.distill.steps import State
from edge_sdk.errors import RecipeError


class _Layer(nn.Module):
    """One LSTM layer in plain matrix products, which every engine runs; its gates are input, forget, new and output."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden, bias=False)
        with torch.no_grad():
            self.input.bias.zero_()
            self.input.bias[hidden : 2 * hidden] = 1.0  # remembers until it learns to forget

    def cell(self, projected: Tensor, c: Tensor | None, h: Tensor | None) -> tuple[Tensor, Tensor]:
        """Next cell and output (N, H) from projected input (N, 4 H); None for a state of zeros."""
        gates = projected if h is None else projected + self.recurrent(h)
        enter, keep, new, leave = gates.chunk(4, 1)
        added = torch.sigmoid(enter) * torch.tanh(new)
        c = added if c is None else added + torch.sigmoid(keep) * c
        return c, torch.sigmoid(leave) * torch.tanh(c)


class StackedLSTM(nn.Module):
    """LSTM layers on top of each other; a state is (N, 2 * layers * hidden): cell and output of each layer in turn.

    Args:
        dim: D, numbers in an input.
        hidden: cells of a layer.
        layers: number of layers.
    """

    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(_Layer(dim if i == 0 else hidden, hidden) for i in range(layers))
        self.width = 2 * layers * hidden

    def _stack(self) -> list[_Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, sequence: Tensor) -> Tensor:
        """State after (N, T, D), from a state of zeros."""
        states: list[Tensor] = []
        for layer in self._stack():
            first, *others = layer.input(sequence).unbind(1)
            c, h = layer.cell(first, None, None)
            outputs = [h]
            for projected in others:
                c, h = layer.cell(projected, c, h)
                outputs.append(h)
            sequence = torch.stack(outputs, 1)
            states += [c, h]
        return torch.cat(states, 1)

    def step(self, x: Tensor, state: Tensor | None) -> Tensor:
        """State after one more input (N, D); None for a state of zeros."""
        parts = [None] * (2 * len(self.layers)) if state is None else state.split(self.hidden, 1)
        states: list[Tensor] = []
        for index, layer in enumerate(self._stack()):
            c, x = layer.cell(layer.input(x), parts[2 * index], parts[2 * index + 1])
            states += [c, x]
        return torch.cat(states, 1)


class HierarchicalLSTM(Aggregator):
    """Level 1 reads the frames of each segment from a state of zeros; level 2 reads level 1's last states.

    The representation is level 2's whole state, cells and outputs of all its layers. On the device the answer after any
    frame is as if its segment ended there, so level 2 runs on every seen frame: ``samples`` times, in training as many
    times as there are segments.

    Args:
        dim: D.
        samples: frames of a clip that are seen.
        segments: parts of equal length; divides ``samples``.
        hidden: cells of a layer, at both levels (1024 as published).
        layers: layers of each level (2 as published).
    """

    def __init__(self, dim: int, samples: int, segments: int, hidden: int = 64, layers: int = 1) -> None:
        super().__init__()
        require("hrnn", samples=samples, segments=segments, hidden=hidden, layers=layers)
        if samples % segments:
            raise RecipeError(
                f"clip network, 'hrnn': expected segments to divide samples ({samples}), got {segments}.",
                hint="All segments have the same number of frames.",
            )
        self.length = samples // segments
        self.low = StackedLSTM(dim, hidden, layers)
        self.high = StackedLSTM(self.low.width, hidden, layers)
        self.width = self.high.width

    def forward(self, features: Tensor) -> Tensor:
        """Representation of a clip; its last segment may be cut short."""
        n, frames, dim = features.shape
        whole = frames // self.length
        parts: list[Tensor] = []
        if whole:
            head = features[:, : whole * self.length].reshape(n * whole, self.length, dim)
            parts.append(self.low(head).unflatten(0, (n, whole)))
        if frames % self.length:
            parts.append(self.low(features[:, whole * self.length :])[:, None])
        return self.high(torch.cat(parts, 1))

    def begin(self, feature: Tensor) -> tuple[Tensor, State]:
        """The first frame."""
        low = self.low.step(feature, None)
        ahead = self.high.step(low, None)
        return ahead, {
            "memory": torch.cat((low, torch.zeros_like(ahead), ahead, torch.ones_like(low[:, :1])), 1)
        }

    def follow(self, feature: Tensor, state: State) -> tuple[Tensor, State]:
        """One more frame.

        ``memory`` holds level 1's state, level 2's before this segment, level 2's as if the segment ended now, and how
        many frames of the segment have been read.
        """
        low, high, ahead, seen = state["memory"].split((self.low.width, self.width, self.width, 1), 1)
        ended = seen > self.length - 0.5
        high = torch.where(ended, ahead, high)
        low = self.low.step(feature, torch.where(ended, torch.zeros_like(low), low))
        seen = torch.where(ended, torch.ones_like(seen), seen + 1)
        ahead = self.high.step(low, high)
        return ahead, {"memory": torch.cat((low, high, ahead, seen), 1)}
