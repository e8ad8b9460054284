"""Student candidates of one convolution, and the choice between candidates (Delta Distillation, arXiv 2203.09594).

Candidates have no bias: they act on differences, in which a bias cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.delta_recipe import RankRule

GUMBEL_TEMPERATURE = 2 / 3
GATE_START = -1.0


def rank_of(c_in: int, c_out: int, gamma: int, rule: RankRule) -> int:
    """Rank of the low-rank candidate.

    ``out`` (segmentation): ``c_out // gamma`` where ``c_out > gamma``, else ``c_out``.
    ``min`` (detection): ``m // gamma`` where ``m = min(c_in, c_out) >= gamma``, else ``m``.
    """
    if rule == "out":
        return c_out // gamma if c_out > gamma else c_out
    smaller = min(c_in, c_out)
    return smaller // gamma if smaller >= gamma else smaller


def layer_rank(conv: nn.Conv2d, gamma: int, rule: RankRule, multiple: int = 1) -> int:
    """The rank for ``conv``: by the rule, raised to a multiple of ``multiple`` (an engine's channel block, which costs
    the same time as fewer channels), and a multiple of its groups so that each group keeps its share."""
    rank = rank_of(conv.in_channels, conv.out_channels, gamma, rule)
    rank = -(-rank // multiple) * multiple
    return max(rank // conv.groups, 1) * conv.groups


def full_candidate(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the teacher layer's geometry that starts from its weights."""
    candidate = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        conv.groups, bias=False, padding_mode=conv.padding_mode,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        candidate.weight.copy_(conv.weight)
    return candidate


class LowRank(nn.Sequential):
    """A column convolution, then a row convolution, with the sizes of the one convolution that they stand for.

    Networks read such sizes (``self.conv.out_channels``), so a low-rank layer in place of a convolution has them too.
    """

    def __init__(self, column: nn.Conv2d, row: nn.Conv2d, conv: nn.Conv2d) -> None:
        super().__init__(column, row)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode


def low_rank_candidate(conv: nn.Conv2d, rank: int, *, bias: bool = False) -> LowRank:
    """A column convolution to ``rank`` channels, then a row convolution, started from the spatial SVD of the kernel.

    Args:
        conv: the teacher layer.
        rank: channels between the two, a multiple of the layer's groups.
        bias: carry the teacher's bias along, for students that act on frames instead of differences.
    """
    kh, kw = conv.kernel_size
    pad: tuple[str, str] | tuple[tuple[int, int], tuple[int, int]]
    if isinstance(conv.padding, str):
        pad = (conv.padding, conv.padding)
    else:
        pad = ((conv.padding[0], 0), (0, conv.padding[1]))
    where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    column = nn.Conv2d(
        conv.in_channels, rank, (kh, 1), (conv.stride[0], 1), pad[0], (conv.dilation[0], 1),
        conv.groups, bias=False, padding_mode=conv.padding_mode, **where,
    )  # fmt: skip
    row = nn.Conv2d(
        rank, conv.out_channels, (1, kw), (1, conv.stride[1]), pad[1], (1, conv.dilation[1]),
        conv.groups, bias=bias and conv.bias is not None, padding_mode=conv.padding_mode, **where,
    )  # fmt: skip
    first, second = spatial_svd(conv.weight.detach(), rank, conv.groups)
    with torch.no_grad():
        column.weight.copy_(first)
        row.weight.copy_(second)
        if row.bias is not None and conv.bias is not None:
            row.bias.copy_(conv.bias)
    return LowRank(column, row, conv)


def spatial_svd(weight: Tensor, rank: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Best product of a column and a row kernel of ``rank`` channels, group by group.

    The kernel (Cout, Cin / groups, kh, kw) is read as a matrix (Cin * kh) x (Cout * kw); the square root of each kept
    singular value goes to either side. A rank above that of the matrix is filled with zeros.

    Returns:
        column kernel (rank, Cin / groups, kh, 1) and row kernel (Cout, rank / groups, 1, kw).
    """
    c_out, c_in, kh, kw = weight.shape
    share = rank // groups
    columns, rows = [], []
    for block in weight.reshape(groups, c_out // groups, c_in, kh, kw):
        matrix = block.permute(1, 2, 0, 3).reshape(c_in * kh, -1)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        kept = min(share, len(s))
        root = s[:kept].sqrt()
        column = weight.new_zeros(share, c_in, kh, 1)
        row = weight.new_zeros(c_out // groups, share, 1, kw)
        column[:kept] = (u[:, :kept] * root).T.reshape(kept, c_in, kh, 1)
        row[:, :kept] = (root[:, None] * v[:kept]).reshape(kept, -1, 1, kw).permute(1, 0, 2, 3)
        columns.append(column)
        rows.append(row)
    return torch.cat(columns), torch.cat(rows)


def conv_macs(conv: nn.Conv2d, in_hw: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Multiply-accumulates of ``conv`` on one input of ``in_hw``, and its output size."""
    out_hw = []
    for axis in (0, 1):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if isinstance(conv.padding, str):
            padding = reach if conv.padding == "same" else 0
        else:
            padding = 2 * int(conv.padding[axis])
        out_hw.append((in_hw[axis] + padding - reach - 1) // conv.stride[axis] + 1)
    per_pixel = conv.weight.numel()
    return per_pixel * math.prod(out_hw), (out_hw[0], out_hw[1])


def candidate_macs(candidate: nn.Module, in_hw: tuple[int, int]) -> int:
    """Multiply-accumulates of a candidate, a convolution or a chain of them."""
    total = 0
    for conv in candidate.modules():
        if isinstance(conv, nn.Conv2d):
            macs, in_hw = conv_macs(conv, in_hw)
            total += macs
    return total


class Chooser(nn.Module):
    """A choice among the candidates of one unit, learnt by gradient.

    Training draws one candidate from the relaxed categorical distribution (Gumbel noise, temperature 2/3): a hard 0 or
    1 for each goes on and the soft value's gradient back. Evaluation takes the likeliest, read anew every time.

    Attributes:
        fixed: index of the candidate once it is decided; ``None`` while it is learnt.
    """

    fixed: int | None = None

    def shares(self) -> Tensor:
        """Probability of each candidate, (candidates,), summing to 1."""
        raise TypeError(f"{type(self).__name__} defines no shares")

    def weights(self) -> Tensor:
        """One draw: 1 for the candidate taken and 0 for the others, (candidates,)."""
        raise TypeError(f"{type(self).__name__} defines no weights")

    @property
    def best(self) -> int:
        """Index of the candidate that was decided or, until then, of the likeliest."""
        return self.fixed if self.fixed is not None else int(self.shares().argmax())


class Gate(Chooser):
    """The published gate: one scalar choice between two candidates, 1 takes the full one, which comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(GATE_START))

    @property
    def full(self) -> bool:
        """The choice as it stands."""
        return self.best == 0

    @property
    def best(self) -> int:
        """0 for the full candidate, 1 for the other."""
        return self.fixed if self.fixed is not None else int(self.logit <= 0)

    def shares(self) -> Tensor:
        """Probability of the full candidate and of the other."""
        full = torch.sigmoid(self.logit)
        return torch.stack((full, 1 - full))

    def weights(self) -> Tensor:
        """One draw for both."""
        full = self()
        return torch.stack((full, 1 - full))

    def forward(self) -> Tensor:
        """The gate's value, a scalar 0 or 1."""
        if not self.training:
            return (self.logit > 0).float()
        noise = _gumbel(2, self.logit)
        soft = torch.sigmoid((self.logit + noise[0] - noise[1]) / GUMBEL_TEMPERATURE)
        # The difference first: it is exactly zero, so the value is exactly 0 or 1.
        return (soft >= 0.5).float() + (soft - soft.detach())


class Choice(Chooser):
    """A choice among any number of candidates; of two, it draws as the published gate does.

    Args:
        starts: score of each candidate before training; only differences count.
    """

    def __init__(self, starts: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(starts))

    def shares(self) -> Tensor:
        """Probability of each candidate."""
        return torch.softmax(self.logits, 0)

    def weights(self) -> Tensor:
        """One draw in training, the likeliest in evaluation."""
        return self()

    def forward(self) -> Tensor:
        """A 1 for one candidate and 0 for the others, (candidates,)."""
        if not self.training:
            return _one_hot(self.logits)
        soft = torch.softmax((self.logits + _gumbel(len(self.logits), self.logits)) / GUMBEL_TEMPERATURE, 0)
        return _one_hot(soft) + (soft - soft.detach())


def _one_hot(scores: Tensor) -> Tensor:
    return nn.functional.one_hot(scores.detach().argmax(), len(scores)).float()


def _gumbel(count: int, like: Tensor) -> Tensor:
    return -torch.log(-torch.log(torch.rand(count, device=like.device).clamp(1e-9, 1 - 1e-7)))
