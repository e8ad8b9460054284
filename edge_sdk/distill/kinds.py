"""Candidates by name: what the student of one unit may be, and how it is made from the teacher's module.

| name | the student of a unit |
| --- | --- |
| ``full`` | its own geometry and weights |
| ``rank/4`` | every convolution low rank: a quarter of its output channels between a column and a row convolution |
| ``channels/2`` | every convolution to half as many channels, then a 1x1 convolution back |
| ``half`` | the unit at half resolution: average pooling by 2, the unit, drawn up to its output size |
| ``half+rank/4``, ``half+channels/2`` | both |
| ``kept`` | nothing is computed: the keyframe's output is used until the next keyframe |

Recipes, cost tables and checkpoints share these names. All but the last telescope (see :mod:`edge_sdk.distill.delta`):
pooling and drawing up are linear, so that a convolution's student is linear in every kind.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.candidates import (
    LowRank,
    candidate_macs,
    conv_macs,
    full_candidate,
    layer_rank,
    low_rank_candidate,
)
from edge_sdk.distill.delta_recipe import DeltaSettings
from edge_sdk.distill.surgery import obstacle, replace
from edge_sdk.errors import RecipeError

Shape = Literal["full", "rank", "channels", "kept"]
_NAME = re.compile(r"(?:half|(?P<half>half\+)?(?P<shape>rank|channels)/(?P<share>[1-9]\d*)|full|kept)")


@dataclass(frozen=True)
class Kind:
    """One candidate.

    Attributes:
        shape: what becomes of each convolution; ``kept`` computes nothing.
        share: for ``rank`` and ``channels``, the part of the output channels that stays is one in ``share``.
        half: at half resolution.
    """

    shape: Shape = "full"
    share: int = 1
    half: bool = False

    @classmethod
    def parse(cls, name: str) -> Kind:
        """The kind with this name.

        Raises:
            RecipeError: there is none.
        """
        found = _NAME.fullmatch(name)
        share = int(found["share"] or 1) if found else 0
        if found is None or (found["shape"] and share < 2):
            raise RecipeError(
                f"'candidate': expected full, rank/N, channels/N (N from 2 on), half, half+rank/N, half+channels/N or "
                f"kept, got '{name}'.",
                hint="Such as: full, rank/4, half+rank/4, kept.",
            )
        shapes: dict[str | None, Shape] = {"rank": "rank", "channels": "channels"}
        shape: Shape = "kept" if name == "kept" else shapes.get(found["shape"], "full")
        return cls(shape, share, name.startswith("half"))

    def __str__(self) -> str:
        shape = self.shape if self.share == 1 else f"{self.shape}/{self.share}"
        if not self.half:
            return shape
        return "half" if self.shape == "full" else f"half+{shape}"

    @property
    def part(self) -> str:
        """Name of the submodule that holds such a student."""
        return "g_" + re.sub(r"\W", "_", str(self))


KEPT = Kind("kept")


class HalfResolution(nn.Module):
    """``inner`` at half resolution: average pooling by 2, ``inner``, drawn up bilinearly to the size it has at full.

    Args:
        inner: of the unit's geometry.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        # A copy that only tells sizes: hooks and roundings of the layers that compute must not see it run.
        self._sizing = [copy.deepcopy(inner).requires_grad_(False).cpu()]
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the unit's output size."""
        wanted = self.out_hw((int(x.shape[-2]), int(x.shape[-1])), int(x.shape[1]))
        # Of an odd size the last row and column are pooled alone, so that none is lost.
        out = self.inner(F.avg_pool2d(x, 2, ceil_mode=True))
        found = (int(out.shape[-2]), int(out.shape[-1]))
        doubled = (2 * found[0], 2 * found[1])
        if not all(0 <= two - want <= 1 for two, want in zip(doubled, wanted, strict=True)):
            return F.interpolate(out, size=wanted, mode="bilinear", align_corners=False)
        # At an odd size one too many is drawn and cut off, or the picture would be stretched by up to a pixel.
        drawn = F.interpolate(out, size=doubled, mode="bilinear", align_corners=False)
        return drawn if doubled == wanted else drawn[..., : wanted[0], : wanted[1]]

    def out_hw(self, in_hw: tuple[int, int], channels: int) -> tuple[int, int]:
        """Output size of the unit at full resolution; it is run once for each input size."""
        if in_hw not in self._sizes:
            sizing = self._sizing[0]
            dtype = next((p.dtype for p in sizing.parameters()), torch.get_default_dtype())
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                out = sizing(torch.zeros(1, channels, *in_hw, dtype=dtype))
            self._sizes[in_hw] = (int(out.shape[-2]), int(out.shape[-1]))
        return self._sizes[in_hw]


def student_of(module: nn.Module, kind: Kind, settings: DeltaSettings) -> nn.Module | None:
    """A student of ``kind`` that starts from the weights of ``module``.

    A convolution that nothing hinders is taken to be a linear unit: its student has no bias, because a bias cancels in
    every difference. A block's students keep the biases of their convolutions. A convolution that would not become
    cheaper stays as it is.

    Args:
        module: the teacher's unit, (N, C, h, w) to (N, C', h', w').
        kind: what to make of it.
        settings: ``rank_rule`` and ``rank_multiple``.

    Returns:
        the student, ``None`` for ``kept``.
    """
    if kind.shape == "kept":
        return None
    made: nn.Module
    if isinstance(module, nn.Conv2d) and obstacle(module) is None:
        made = reduced(module, kind, settings, bias=False) or full_candidate(module)
    else:
        made = narrowed(module, kind, settings)
    return HalfResolution(made) if kind.half else made


def narrowed(block: nn.Module, kind: Kind, settings: DeltaSettings) -> nn.Module:
    """A copy of a block whose convolutions are reduced where that is cheaper."""
    student = copy.deepcopy(block)
    convs = [m for m in student.modules() if isinstance(m, nn.Conv2d) and obstacle(m) is None]
    made = {id(conv): reduced(conv, kind, settings, bias=True) for conv in convs}
    cheaper = {key: module for key, module in made.items() if module is not None}
    replace(student, cheaper)
    return cheaper.get(id(student), student)


def reduced(conv: nn.Conv2d, kind: Kind, settings: DeltaSettings, *, bias: bool) -> LowRank | None:
    """The low-rank or narrow form of a convolution; ``None`` where ``kind`` asks for neither or it costs as much."""
    if _cheaper(conv, kind, settings) is None:
        return None
    return _form(conv, kind, settings, bias=bias)


def macs_of(conv: nn.Conv2d, in_hw: tuple[int, int], kind: Kind, settings: DeltaSettings) -> int:
    """Multiply-accumulates that a student of ``kind`` spends on one convolution whose input was ``in_hw``."""
    if kind.shape == "kept":
        return 0
    if kind.half:
        in_hw = (-(-in_hw[0] // 2), -(-in_hw[1] // 2))
    made = _cheaper(conv, kind, settings) if obstacle(conv) is None else None
    return candidate_macs(made, in_hw) if made is not None else conv_macs(conv, in_hw)[0]


def _cheaper(conv: nn.Conv2d, kind: Kind, settings: DeltaSettings) -> LowRank | None:
    """What :func:`reduced` makes, without numbers: enough to count by, and nothing has to be decomposed for it."""
    made = _form(full_candidate(conv).to("meta"), kind, settings, bias=False)
    in_hw = (64, 64)  # an example: both sides grow with the area
    return made if made is not None and candidate_macs(made, in_hw) < conv_macs(conv, in_hw)[0] else None


def _form(conv: nn.Conv2d, kind: Kind, settings: DeltaSettings, *, bias: bool) -> LowRank | None:
    if kind.shape == "rank":
        rank = layer_rank(conv, kind.share, settings.rank_rule, settings.rank_multiple)
        return low_rank_candidate(conv, rank, bias=bias)
    if kind.shape == "channels":
        return narrow_candidate(conv, layer_rank(conv, kind.share, "out", settings.rank_multiple), bias=bias)
    return None


def narrow_candidate(conv: nn.Conv2d, channels: int, *, bias: bool = False) -> LowRank:
    """A convolution of ``conv``'s geometry to ``channels``, then a 1x1 convolution back, the best product of the two.

    Args:
        conv: the teacher layer.
        channels: between the two, a multiple of the layer's groups.
        bias: carry the teacher's bias along.
    """
    where: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    first = nn.Conv2d(
        conv.in_channels, channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
        conv.groups, bias=False, padding_mode=conv.padding_mode, **where,
    )  # fmt: skip
    back = nn.Conv2d(
        channels, conv.out_channels, 1, groups=conv.groups, bias=bias and conv.bias is not None, **where
    )
    share, rows, columns = channels // conv.groups, [], []
    for block in conv.weight.detach().chunk(conv.groups):
        u, s, v = torch.linalg.svd(block.flatten(1), full_matrices=False)
        kept = min(share, len(s))
        root = s[:kept].sqrt()
        row, column = block.new_zeros(share, *block.shape[1:]), block.new_zeros(len(block), share, 1, 1)
        row[:kept] = (root[:, None] * v[:kept]).reshape(kept, *block.shape[1:])
        column[:, :kept] = (u[:, :kept] * root)[..., None, None]
        rows.append(row)
        columns.append(column)
    with torch.no_grad():
        first.weight.copy_(torch.cat(rows))
        back.weight.copy_(torch.cat(columns))
        if back.bias is not None and conv.bias is not None:
            back.bias.copy_(conv.bias)
    return LowRank(first, back, conv)
