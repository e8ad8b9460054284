"""Coarse block motion inside a step: where what is seen now was at the keyframe.

The keyframe keeps what a small projection sees in each cell of a coarse grid, once for every shift within a radius.
A later frame multiplies what it sees by all of them: a softmax over the shifts of that likeness, and the mean shift
under it is the cell's motion (a block matching that learns, as the correlation of FlowNet, arXiv 1504.06852, at the
coarsest level alone). Where everything is alike no shift wins, and the mean is no motion.

State is fetched from there as rows of a table: its maps are drawn up to half cells once, at the keyframe, so that a
later frame needs one look-up a cell. Sampling maps between cells (GridSample) would take an engine on a CPU longer
than the narrow student itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.correction import shares_of

# Steps a cell in which state is fetched.
STEPS = 2
# Likeness of the same thing seen twice, before it learns; and how much less a shift by one cell is believed.
_SHARPNESS, _RELUCTANCE = 10.0, 0.3


class Motion(nn.Module):
    """What is seen, where it was, and what was kept there.

    Args:
        features: channels of the maps that motion is seen in.
        pool: cells of those maps along a side of one coarse cell.
        radius: largest shift along each axis, in coarse cells.
        channels: of what is kept of a coarse cell.
    """

    shifts: Tensor

    def __init__(self, features: int, pool: int, radius: int, channels: int) -> None:
        super().__init__()
        self.pool, self.radius = pool, radius
        norm = nn.BatchNorm2d(channels, affine=False)
        self.project = nn.Sequential(nn.Conv2d(features, channels, 1, bias=False), norm)
        nn.init.orthogonal_(self.project[0].weight.flatten(1))  # type: ignore[operator]  # a Conv2d's
        side = torch.arange(-radius, radius + 1.0)
        shifts = torch.stack([axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij")])
        self.register_buffer("shifts", shifts, persistent=False)
        self.sharpness = nn.Parameter(torch.tensor([_SHARPNESS]))
        self.prior = nn.Parameter(-_RELUCTANCE * shifts.square().sum(0))

    def seen(self, features: Tensor) -> Tensor:
        """What is seen in each coarse cell, (N, D, h, w) of length one, of maps (N, C, H, W)."""
        if self.pool > 1:
            features = F.avg_pool2d(features, self.pool)
        x = self.project(features)
        return x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-4)

    def kept(self, seen: Tensor) -> Tensor:
        """What a keyframe saw, once for every shift: (N, K, D, h, w) of (N, D, h, w); beyond the border, what is at it.

        Its factor makes likenesses of it.
        """
        height, width = seen.shape[-2:]
        around = F.pad(self.sharpness.view(1, 1, 1, 1) * seen, [self.radius] * 4, mode="replicate")
        count = 2 * self.radius + 1
        return torch.stack(
            [around[..., y : y + height, x : x + width] for y in range(count) for x in range(count)], 1
        )

    def where(
        self, seen: Tensor, before: Tensor, cell: tuple[float, float], size_hw: tuple[int, int]
    ) -> Tensor:
        """How far from here, down and right, the keyframe saw what is seen now.

        Args:
            seen: of now, (N, D, h, w).
            before: of the keyframe, from :meth:`kept`.
            cell: height and width of a coarse cell, in cells of the state's maps.
            size_hw: of the state's maps.

        Returns:
            (N, 2, H, W) in cells of the state's maps.
        """
        likeness = (seen.unsqueeze(1) * before).sum(2) + self.prior.view(1, -1, 1, 1)
        shifts = self.shifts * torch.tensor(cell, device=seen.device).view(2, 1)
        coarse = (shares_of(likeness).unsqueeze(1) * shifts.view(1, 2, -1, 1, 1)).sum(2)
        if coarse.shape[-2:] == size_hw:
            return coarse
        return F.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)

    def cell(self, features_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[float, float]:
        """Height and width of a coarse cell in cells of maps of ``size_hw``."""
        height, width = (self.pool * maps / own for own, maps in zip(features_hw, size_hw, strict=True))
        return height, width


def table_of(maps: Tensor) -> Tensor:
    """Maps (N, C, H, W) as a table (N, 2 H - 1, 2 W - 1, 1, C), a row for every half cell from the first to the last.

    It has five axes so that nobody takes it for maps whose channels an engine would like elsewhere.
    """
    height, width = (STEPS * (side - 1) + 1 for side in maps.shape[-2:])
    drawn = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)
    return drawn.permute(0, 2, 3, 1).unsqueeze(3)


def size_of_table(table: Tensor) -> tuple[int, int]:
    """Height and width of the maps that a table was made of."""
    height, width = ((side - 1) // STEPS + 1 for side in table.shape[1:3])
    return height, width


def rows_at(where: Tensor) -> Tensor:
    """Rows (N, H * W) int32 of :func:`table_of`, nearest to where motion (N, 2, H, W) leads, at most to the borders."""
    height, width = where.shape[-2:]
    # Places are whole numbers and motion is small, so that float16 counts neither of them wrong.
    moved = (where * STEPS).round().to(torch.int32)
    y = (moved[:, 0] + _places(height, where)[:, None]).clamp(0, STEPS * (height - 1))
    x = (moved[:, 1] + _places(width, where)).clamp(0, STEPS * (width - 1))
    return (y * (STEPS * (width - 1) + 1) + x).flatten(1)


def _places(count: int, like: Tensor) -> Tensor:
    return STEPS * torch.arange(count, dtype=torch.int32, device=like.device)


def fetched(table: Tensor, rows: Tensor) -> Tensor:
    """Maps (N, C, H, W) of those rows (N, H * W) of a table."""
    count, channels, size_hw = len(table), table.shape[-1], size_of_table(table)
    flat = table.reshape(-1, channels)
    if count > 1:
        firsts = len(flat) // count * torch.arange(count, dtype=rows.dtype, device=rows.device)
        rows = rows + firsts[:, None]
    maps = flat.index_select(0, rows.flatten()).reshape(count, -1, channels)
    return maps.transpose(1, 2).reshape(count, channels, *size_hw)


def carried(maps: Tensor, where: Tensor) -> Tensor:
    """What :func:`fetched` gives of the table of ``maps`` (N, C, H, W), with a slope for where motion leads.

    The rounding to half cells passes the slope on as if it were none (straight through, arXiv 1308.3432).
    """
    height, width = maps.shape[-2:]
    where = where + ((where.detach() * STEPS).round() / STEPS - where.detach())
    y = torch.arange(height, device=maps.device)[:, None] + where[:, 0]
    x = torch.arange(width, device=maps.device) + where[:, 1]
    ends = (max(width - 1, 1), max(height - 1, 1))
    grid = torch.stack([2 * x / ends[0] - 1, 2 * y / ends[1] - 1], -1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
