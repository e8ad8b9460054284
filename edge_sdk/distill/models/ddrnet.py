"""DDRNet: dual-resolution segmentation networks (Hong et al. 2021, arXiv 2101.06085).

A detail branch stays at 1/8 of the frame while a context branch goes down to 1/64; the two exchange features twice and
a pyramid pooling module (DAPPM) closes the context branch. The three published sizes are functions here, each with a
``width`` so that narrower networks for per-frame comparison come from the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DDRNetConfig:
    """Sizes of a DDRNet.

    Args:
        classes: number of output classes.
        width: channels of the stem; every other channel count is a multiple of it.
        blocks: residual blocks in stages 1 to 4 of the context branch.
        detail_blocks: residual blocks in each detail-branch stage.
        split_stage3: run stage 3 as two halves with an exchange after each (DDRNet-39).
        pool_width: channels inside the pyramid pooling module.
        head_width: channels inside the segmentation head.
    """

    classes: int
    width: int
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    detail_blocks: int = 2
    split_stage3: bool = False
    pool_width: int = 128
    head_width: int = 64


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)
    )


def _norm_relu_conv(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(c_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
    )


class _Residual(nn.Module):
    """Residual block: two 3x3 convolutions, or 1x1-3x3-1x1 with twice the channels out."""

    def __init__(
        self, c_in: int, c_mid: int, stride: int = 1, *, bottleneck: bool = False, relu: bool = True
    ) -> None:
        super().__init__()
        c_out = 2 * c_mid if bottleneck else c_mid
        act = nn.ReLU(inplace=True)
        if bottleneck:
            self.body = nn.Sequential(
                _conv_norm(c_in, c_mid, 1), act, _conv_norm(c_mid, c_mid, 3, stride), act,
                _conv_norm(c_mid, c_out, 1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(_conv_norm(c_in, c_mid, 3, stride), act, _conv_norm(c_mid, c_out, 3))
        same = stride == 1 and c_in == c_out
        self.skip = nn.Identity() if same else _conv_norm(c_in, c_out, 1, stride)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x) + self.skip(x)
        return F.relu(out) if self.relu else out


def _stage(c_in: int, c_out: int, blocks: int, stride: int = 1) -> nn.Sequential:
    # The last block leaves its activation to the exchange that follows it.
    return nn.Sequential(
        *(
            _Residual(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1, relu=i < blocks - 1)
            for i in range(blocks)
        )
    )


class _PyramidPool(nn.Module):
    """Deep aggregation pyramid pooling (DAPPM): pooled context at five scales, fused from fine to coarse."""

    def __init__(self, c_in: int, c_mid: int, c_out: int) -> None:
        super().__init__()
        pools: list[nn.Module] = [nn.AvgPool2d(k, k // 2, k // 2) for k in (5, 9, 17)]
        # A mean over both axes instead of adaptive pooling: the same numbers, and plain in every exporter.
        self.pools = nn.ModuleList(pools)
        self.scales = nn.ModuleList(_norm_relu_conv(c_in, c_mid, 1) for _ in range(5))
        self.fuse = nn.ModuleList(_norm_relu_conv(c_mid, c_mid, 3) for _ in range(4))
        self.compress = _norm_relu_conv(5 * c_mid, c_out, 1)
        self.skip = _norm_relu_conv(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [pool(x) for pool in self.pools] + [x.mean((2, 3), keepdim=True)]
        levels = [self.scales[0](x)]
        for i, low in enumerate(pooled):
            up = F.interpolate(self.scales[i + 1](low), size=size, mode="bilinear", align_corners=False)
            levels.append(self.fuse[i](up + levels[-1]))
        return self.compress(torch.cat(levels, 1)) + self.skip(x)


class _Exchange(nn.Module):
    """Bilateral fusion: context (1x1, up-sampled) into detail, detail (strided 3x3) into context."""

    def __init__(self, c_detail: int, c_context: int) -> None:
        super().__init__()
        self.to_detail = _conv_norm(c_context, c_detail, 1)
        downs: list[nn.Module] = []
        channels = c_detail
        while channels < c_context:
            downs += [_conv_norm(channels, 2 * channels, 3, 2), nn.ReLU(inplace=True)]
            channels *= 2
        self.to_context = nn.Sequential(*downs[:-1])

    def forward(self, detail: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        active_context = F.relu(context)
        up = F.interpolate(
            self.to_detail(active_context), size=detail.shape[-2:], mode="bilinear", align_corners=False
        )
        return F.relu(detail + up), F.relu(context + self.to_context(F.relu(detail)))


class DDRNet(nn.Module):
    """Dual-resolution network for semantic segmentation.

    ``forward`` maps normalised RGB (N, 3, H, W) float32 to class logits (N, classes, ceil(H / 8), ceil(W / 8)).
    """

    def __init__(self, config: DDRNetConfig) -> None:
        super().__init__()
        w, n = config.width, config.blocks
        act = nn.ReLU(inplace=True)
        self.stem = nn.Sequential(_conv_norm(3, w, 3, 2), act, _conv_norm(w, w, 3, 2), act)
        self.stage1 = nn.Sequential(_stage(w, w, n[0]), act)
        self.stage2 = nn.Sequential(_stage(w, 2 * w, n[1], 2), act)
        halves = (n[2] // 2, n[2] - n[2] // 2) if config.split_stage3 else (n[2],)
        plan = [(2 * w, 4 * w, halves[0], 2)]
        plan += [(4 * w, 4 * w, blocks, 1) for blocks in halves[1:]]
        plan += [(4 * w, 8 * w, n[3], 2)]
        self.context = nn.ModuleList(_stage(*step) for step in plan)
        self.detail = nn.ModuleList(_stage(2 * w, 2 * w, config.detail_blocks) for _ in plan)
        self.exchange = nn.ModuleList(_Exchange(2 * w, step[1]) for step in plan)
        self.context_last = _Residual(8 * w, 8 * w, 2, bottleneck=True, relu=False)
        self.detail_last = _Residual(2 * w, 2 * w, bottleneck=True, relu=False)
        self.pool = _PyramidPool(16 * w, config.pool_width, 4 * w)
        self.head = nn.Sequential(
            _norm_relu_conv(4 * w, config.head_width, 3),
            nn.BatchNorm2d(config.head_width),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.head_width, config.classes, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Class logits (N, classes, ceil(H / 8), ceil(W / 8)) of normalised RGB (N, 3, H, W)."""
        context = self.stage2(self.stage1(self.stem(image)))
        detail = context
        for context_stage, detail_stage, exchange in zip(
            self.context, self.detail, self.exchange, strict=True
        ):
            context, detail = context_stage(context), detail_stage(detail)
            detail, context = exchange(detail, context)
        pooled = self.pool(self.context_last(context))
        detail = self.detail_last(detail)
        up = F.interpolate(pooled, size=detail.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(detail + up)


def ddrnet_23_slim(classes: int = 19, width: int = 32) -> DDRNet:
    """DDRNet-23-slim; at the published width of 32 it has 5.7 M parameters."""
    return DDRNet(DDRNetConfig(classes, width, pool_width=4 * width, head_width=2 * width))


def ddrnet_23(classes: int = 19, width: int = 64) -> DDRNet:
    """DDRNet-23; at the published width of 64 it has 20.1 M parameters."""
    return DDRNet(DDRNetConfig(classes, width, pool_width=2 * width, head_width=2 * width))


def ddrnet_39(classes: int = 19, width: int = 64) -> DDRNet:
    """DDRNet-39; at the published width of 64 it has 32.3 M parameters."""
    config = DDRNetConfig(
        classes, width, (3, 4, 6, 3), detail_blocks=3, split_stage3=True,
        pool_width=2 * width, head_width=4 * width,
    )  # fmt: skip
    return DDRNet(config)


def ddrnet(classes: int, width: int, blocks: Sequence[int] = (2, 2, 2, 2), detail_blocks: int = 2) -> DDRNet:
    """A slim DDRNet of another depth.

    Args:
        classes: number of output classes.
        width: channels of the stem.
        blocks: residual blocks in stages 1 to 4.
        detail_blocks: residual blocks in each detail-branch stage.
    """
    if len(blocks) != 4 or min(blocks) < 1:
        raise ValueError(f"blocks: expected four counts of at least 1, got {tuple(blocks)}")
    first, second, third, fourth = blocks
    config = DDRNetConfig(
        classes,
        width,
        (first, second, third, fourth),
        detail_blocks,
        pool_width=4 * width,
        head_width=2 * width,
    )
    return DDRNet(config)
