"""The gates of Skip-Convolution (Habibian et al., CVPR 2021, arXiv 2104.11487): which output pixels are computed.

A gate reads the change of a layer's input and gives one decision an output pixel, for all channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.candidates import GUMBEL_TEMPERATURE
from edge_sdk.distill.skip.recipes import SkipSettings

# Of a learned gate, as published: every pixel is open while nothing is known.
GUMBEL_BIAS = 0.6


def blocks(values: Tensor, side: int) -> Tensor:
    """The largest of ``values`` (N, 1, h, w) in each square of ``side``, at each of its pixels; squares at the lower
    and right border may be cut."""
    if side == 1:
        return values
    height, width = values.shape[-2:]
    # What is added at the border must never win.
    padded = F.pad(values, (0, -width % side, 0, -height % side), value=-1e30)
    small = F.max_pool2d(padded, side)
    count, _, rows, columns = small.shape
    # Repeating by concatenation: engines run it as a copy, where an expansion or a resize is slow or missing.
    out = torch.cat([small[..., None]] * side, -1).reshape(count, 1, rows, columns * side)
    out = torch.cat([out] * side, -1).reshape(count, 1, rows * side, columns * side)
    return out[..., :height, :width]


class NormGate(nn.Module):
    """Opens where the mean absolute change in a pixel's window is above a threshold; nothing is learnt.

    The published code divides by the height of the map, where the number of channels was surely meant, and rounds
    down to steps of 1e-5; here it is the mean over channels and window, not rounded, and an exact tie stays closed.

    Args:
        conv: the layer.
        settings: kind, threshold and blocks.
    """

    def __init__(self, conv: nn.Conv2d, settings: SkipSettings) -> None:
        super().__init__()
        self.settings = settings
        self.taps = conv.weight[0].numel()
        self.window: nn.Conv2d | None = None
        if (
            conv.kernel_size != (1, 1)
            or conv.stride != (1, 1)
            or conv.padding not in ((0, 0), "same", "valid")
        ):
            self.window = nn.Conv2d(
                1, 1, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False,  # type: ignore[arg-type]
                padding_mode=conv.padding_mode,
            )  # fmt: skip
            mean = torch.full_like(self.window.weight, 1 / self.window.weight.numel(), requires_grad=False)
            # Neither trained nor saved: it is a mean.
            del self.window.weight
            self.window.register_buffer("weight", mean, persistent=False)

    def scale_of(self, x: Tensor, z: Tensor) -> Tensor | None:
        """What the threshold is a share of: (N, 1, 1, 1) of a layer's input and output; None where it is absolute."""
        if self.settings.scale == "absolute":
            return None
        if self.settings.gate == "input_norm":
            return x.abs().mean((1, 2, 3), keepdim=True)
        # By the number of inputs of one output, so that share and norm are of one kind.
        return z.abs().mean((1, 2, 3), keepdim=True) / self.taps

    def forward(self, change: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        """Which pixels are open.

        Args:
            change: of the layer's input, (N, C_in, h, w).
            weight: the layer's.
            scale: of :meth:`scale_of`, at the keyframe.

        Returns:
            (N, 1, h', w') bool, of the layer's output.
        """
        norm = change.abs().mean(1, keepdim=True)
        if self.window is not None:
            norm = self.window(norm)
        if self.settings.gate == "output_norm":
            norm = norm * weight.abs().mean()
        limit = self.settings.eps if scale is None else self.settings.eps * scale
        return blocks(norm, self.settings.block) > limit

    def macs(self, per_layer: int, c_out: int) -> int:
        """Multiply-accumulates of the gate itself: counted as none, as published, for there are no weights."""
        return 0


class GumbelGate(nn.Module):
    """One convolution of the layer's geometry over the absolute change, trained by a relaxed draw.

    Training adds the difference of two Gumbel samples, decides at 0 and passes the soft value's gradient back
    (temperature 2/3). The published code adds one sample, which is 0.58 on average, so that gates are more often open
    in training than in use; the difference of two has mean 0. In use a gate is open where its logit is at least 0.

    Args:
        conv: the layer.
        settings: blocks.
    """

    def __init__(self, conv: nn.Conv2d, settings: SkipSettings) -> None:
        super().__init__()
        self.block = settings.block
        self.score = nn.Conv2d(
            conv.in_channels, 1, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            padding_mode=conv.padding_mode,
        )  # fmt: skip
        nn.init.xavier_uniform_(self.score.weight)
        if self.score.bias is not None:
            nn.init.constant_(self.score.bias, GUMBEL_BIAS)

    def scale_of(self, x: Tensor, z: Tensor) -> Tensor | None:
        """None: what is much for this layer is learnt."""
        return None

    def forward(self, change: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        """Which pixels are open: (N, 1, h', w') bool; in training 0 or 1 in float, with a gradient."""
        logits = blocks(self.score(change.abs()), self.block)
        if not self.training:
            return logits >= 0
        drawn = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        # The difference of two Gumbel samples is logistic.
        soft = torch.sigmoid((logits + torch.logit(drawn)) / GUMBEL_TEMPERATURE)
        # The difference first: it is exactly zero, so the value is exactly 0 or 1.
        return (soft >= 0.5).to(soft.dtype) + (soft - soft.detach())

    def macs(self, per_layer: int, c_out: int) -> int:
        """Multiply-accumulates of the gate itself, given those of the ungrouped layer with ``c_out`` outputs."""
        return per_layer // c_out


def gate_of(conv: nn.Conv2d, settings: SkipSettings) -> NormGate | GumbelGate:
    """A fresh gate for ``conv``."""
    return GumbelGate(conv, settings) if settings.gate == "gumbel" else NormGate(conv, settings)
