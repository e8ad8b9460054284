"""Multiply-accumulates by open pixels (arXiv 2104.11487).

A keyframe costs every convolution in full. A frame between costs each gated layer the share of its output pixels that
was open, the gate itself (a Gumbel gate is a convolution to one channel; norm gates count as nothing, as published),
and every layer without a gate in full. It is a count of work that a sparse kernel would have to do, not a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Share = TypeVar("Share", float, Tensor)


@dataclass(frozen=True)
class SkipLayer:
    """One convolution.

    Attributes:
        name: layer name.
        gated: whether it has a gate; otherwise it runs in full on every frame.
        reason: why it has none, or the gate's kind.
        macs: multiply-accumulates of each call in one frame.
        gate_macs: of the gate at each call.
    """

    name: str
    gated: bool
    reason: str
    macs: tuple[int, ...]
    gate_macs: tuple[int, ...] = ()

    def entries(self) -> dict[str, int]:
        """Multiply-accumulates by the entry of each call, named as in the state."""
        return {self.name if i == 0 else f"{self.name}.call{i + 1}": macs for i, macs in enumerate(self.macs)}


class Work:
    """Counts the work of frames from the open shares of their layers.

    Args:
        layers: every convolution of the network.
    """

    def __init__(self, layers: tuple[SkipLayer, ...]) -> None:
        self.layers = layers
        self._gated = {key: n for layer in layers if layer.gated for key, n in layer.entries().items()}
        self._gates = sum(sum(layer.gate_macs) for layer in layers)
        self._ungated = sum(sum(layer.macs) for layer in layers if not layer.gated)

    @property
    def keyframe(self) -> int:
        """Multiply-accumulates of a keyframe: all convolutions in full."""
        return self._ungated + sum(self._gated.values())

    def open_share(self, opened: Mapping[str, Share]) -> Share:
        """Open share of the gated layers, 0 to 1, each weighted by its multiply-accumulates.

        Args:
            opened: share of open pixels by entry, numbers or tensors of one shape.
        """
        total = sum(self._gated.values())
        # From the first entry on, so that tensors stay tensors.
        parts = [opened[key] * (macs / total) for key, macs in self._gated.items()]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        return whole

    def between(self, opened: Mapping[str, float]) -> float:
        """Multiply-accumulates of one frame that is no keyframe."""
        return self._ungated + self._gates + self.open_share(opened) * sum(self._gated.values())

    def amortised(self, frames: list[Mapping[str, float] | None]) -> float:
        """Multiply-accumulates a frame, mean over a stream; ``None`` stands for a keyframe."""
        spent = [self.keyframe if opened is None else self.between(opened) for opened in frames]
        return sum(spent) / len(spent)
