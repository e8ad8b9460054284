"""JITNet, the student of online model distillation (Mullapudi et al., ICCV 2019): small enough to learn on a stream."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.errors import RecipeError

Norm = Literal["frame", "running"]
# Channels at width 1, from the authors' network definition.
_STEM, _ENCODER, _DECODER, _HEAD = (16, 64), (128, 128, 256), (256, 128, 64), 64
_EPS, _MOMENTUM = 1e-5, 0.003


class FrameNorm(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, at inference too: with one frame, of that frame.

    So the student meets a new scene with statistics of its own (published: the graph is always built as if training).

    With one frame it takes more than one place a channel: for JITNet, frames of more than 32 pixels.

    Args:
        channels: of its input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (N, C, H, W) with mean 0 and variance 1 a channel, then scaled and shifted."""
        # The same for one frame, and a node of its own in ONNX; in torch it is slower, because it leaves channels_last.
        if x.shape[0] == 1 and torch.compiler.is_exporting():
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=_EPS)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=_EPS)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return FrameNorm(channels) if kind == "frame" else nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM)


def _conv(
    c_in: int, c_out: int, kernel: tuple[int, int], stride: int = 1, *, bias: bool = False
) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=bias)


class _Unit(nn.Sequential):
    """A 3x3 convolution, normalised, with ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm) -> None:
        super().__init__(_conv(c_in, c_out, (3, 3), stride), _norm(norm, c_out), nn.ReLU())


class _Block(nn.Module):
    """Pre-activation residual block: 3x3 (with the stride), 1x3 and 3x1 beside a shortcut.

    Only the first of the three is normalised. The shortcut is a 1x1 convolution where the channels change, and the
    input itself, subsampled, where they do not.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.before = nn.Sequential(_norm(norm, c_in), nn.ReLU())
        self.shortcut = _conv(c_in, c_out, (1, 1), stride) if c_in != c_out else None
        self.residual = nn.Sequential(
            _Unit(c_in, c_out, stride, norm), _conv(c_out, c_out, (1, 3), bias=True),
            _conv(c_out, c_out, (3, 1), bias=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        active = self.before(x)
        short = x[:, :, :: self.stride, :: self.stride] if self.shortcut is None else self.shortcut(active)
        return short + self.residual(active)


class JITNet(nn.Module):
    """Normalised RGB (N, 3, H, W) to class logits (N, classes, ceil(H / 2), ceil(W / 2)).

    The published network resizes to full size before its last 1x1 convolution; a convolution over single pixels and a
    linear resize commute, so the logits are given at half size and whoever decodes them resizes: a quarter of the work.

    Args:
        classes: number of output classes, background among them.
        width: multiplies every channel count; published are 1.0 and 0.5 (the one that was timed).
        norm: ``frame`` normalises by the frame at hand, as published; ``running`` by statistics gathered in training,
            which an engine folds into the convolutions.
        shrink: the image is averaged over squares of so many pixels first; the logits are as much smaller. The paper
            resizes every frame to 720 x 1280; a small frame with large objects is learned faster at half its size.
    """

    def __init__(self, classes: int, width: float = 0.5, norm: Norm = "frame", shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink

        def of(channels: int) -> int:
            return max(1, round(channels * width))

        stem1, stem2 = (of(c) for c in _STEM)
        enc1, enc2, enc3 = (of(c) for c in _ENCODER)
        dec3, dec2, dec1 = (of(c) for c in _DECODER)
        head = of(_HEAD)
        least = 8 if classes <= 8 else 16 if classes <= 16 else 32
        last = max(of(_STEM[0]), least)
        self.stem1, self.stem2 = _Unit(3, stem1, 2, norm), _Unit(stem1, stem2, 2, norm)
        self.enc1 = _Block(stem2, enc1, 2, norm)
        self.enc2 = _Block(enc1, enc2, 2, norm)
        self.enc3 = _Block(enc2, enc3, 2, norm)
        self.dec3 = _Block(enc3, dec3, 1, norm)
        self.dec2 = _Block(enc2 + dec3, dec2, 1, norm)
        self.dec1 = _Block(enc1 + dec2, dec1, 1, norm)
        self.head = nn.Sequential(_Unit(dec1, head, 1, norm), _Unit(head, last, 1, norm))
        self.logits = nn.Conv2d(last, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Class logits of ``image``."""
        if self.shrink > 1:
            image = F.avg_pool2d(image, self.shrink, ceil_mode=True, count_include_pad=False)
        half = self.stem1(image)
        quarter = self.stem2(half)
        enc1 = self.enc1(quarter)
        enc2 = self.enc2(enc1)
        dec3 = _resized(self.dec3(self.enc3(enc2)), enc2)
        dec2 = _resized(self.dec2(torch.cat((enc2, dec3), 1)), enc1)
        dec1 = _resized(self.dec1(torch.cat((enc1, dec2), 1)), quarter)
        return self.logits(self.head(_resized(dec1, half)))


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


def jitnet(classes: int, width: float = 0.5, norm: Norm = "frame", shrink: int = 1) -> JITNet:
    """JITNet; see :class:`JITNet`.

    Raises:
        RecipeError: an argument is out of range.
    """
    if classes < 2 or not 0 < width <= 4 or norm not in ("frame", "running") or shrink < 1:
        raise RecipeError(
            "jitnet: expected classes >= 2, 0 < width <= 4, norm 'frame' or 'running' and shrink >= 1, "
            f"got {classes}, {width}, '{norm}' and {shrink}."
        )
    return JITNet(classes, width, norm, shrink)
