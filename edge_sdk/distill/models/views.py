"""A network that answers by the mean of several looks at its input: sizes, and its mirror image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.modules import make_module
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.distill.taps import drawn_to, size_of


class Views(nn.Module):
    """Mean class logits of a network over its input at several sizes (multi-scale and flip testing).

    It is slower and more accurate than the network alone, with the same weights: a teacher for keyframes.

    Args:
        network: (N, 3, H, W) to class logits (N, C, h, w).
        scales: shares of each side; the sides are rounded to multiples of 8. The logits are of the largest one's size.
        mirror: also look at the mirror image.
    """

    def __init__(self, network: nn.Module, scales: Sequence[float], *, mirror: bool) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"'scales': expected one or more above 0, got {list(scales)}")
        self.network, self.scales, self.mirror = network, tuple(sorted(scales, reverse=True)), mirror

    def forward(self, x: Tensor) -> Tensor:
        """Class logits of ``x``."""
        height, width = size_of(x)
        answers: list[Tensor] = []
        for scale in self.scales:
            seen = x
            if scale != 1:
                seen = drawn_to(
                    x, (max(8, round(height * scale / 8) * 8), max(8, round(width * scale / 8) * 8))
                )
            answers.append(self.network(seen))
            if self.mirror:
                answers.append(self.network(seen.flip(-1)).flip(-1))
        size_hw = size_of(answers[0])
        return torch.stack([drawn_to(answer, size_hw) for answer in answers]).mean(0)


def several_views(network: Any, scales: Sequence[float] = (1.0,), mirror: bool = True) -> Views:
    """:class:`Views` of a network that is given as in a recipe: its factory and arguments."""
    return Views(make_module(ModuleSettings.model_validate(network)), scales, mirror=mirror)
