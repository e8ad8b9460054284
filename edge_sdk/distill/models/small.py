"""A small segmentation network for demos and tests: one branch, a context block, logits at 1/4 of the frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(c_in: int, c_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class SmallSegmenter(nn.Module):
    """Normalised RGB (N, 3, H, W) to class logits (N, classes, ceil(H / 4), ceil(W / 4)).

    Args:
        classes: number of output classes.
        width: channels at 1/4 of the frame; twice as many at 1/8.
    """

    def __init__(self, classes: int, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, width // 2, 2), _block(width // 2, width, 2))
        self.detail = nn.Sequential(_block(width, width), _block(width, width))
        self.context = nn.Sequential(
            _block(width, 2 * width, 2), _block(2 * width, 2 * width), _block(2 * width, 2 * width, dilation=2),
            _block(2 * width, 2 * width, dilation=4),
        )  # fmt: skip
        self.merge = _block(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Class logits of ``image``."""
        stem = self.stem(image)
        detail = self.detail(stem)
        context = self.context(stem)
        context = F.interpolate(context, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.merge(torch.cat((detail, context), 1)))


def small_segmenter(classes: int, width: int = 48) -> SmallSegmenter:
    """A small one-branch network."""
    return SmallSegmenter(classes, width)
