"""Tiny networks: one unit in surroundings like those it has in a whole one, so that an engine fuses as it does there.

    frame -> 1x1 convolution [joined] -> ReLU -> x
    x -> unit -> + bypass(x) -> ReLU -> 1x1 convolution to two classes -> the usual decoding

The bypass keeps x needed where the unit is kept: x itself where the unit keeps its shape, as in a residual block, else
a 1x1 convolution. What differs between two tiny networks of one call is the unit's student alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.delta_recipe import DeltaSettings
from edge_sdk.profile.prepare.parts import Call

UNIT = "unit"
_FIRST = "first"
_CLASSES = 2


class Tiny(nn.Module):
    """A unit in its surroundings; maps (1, 3, h, w), of the unit's input size, to class logits.

    Args:
        unit: of the teacher; a copy is taken.
        call: its shapes.
    """

    def __init__(self, unit: nn.Module, call: Call) -> None:
        super().__init__()
        c_in, c_out = call.takes[1], call.gives[1]
        self.first = nn.Conv2d(3, c_in, 1)
        self.unit = copy.deepcopy(unit)
        self.size = call.gives[2:]
        strides = [
            max(1, -(-took // gave)) for took, gave in zip(call.takes[2:], call.gives[2:], strict=True)
        ]
        same = call.takes == call.gives
        self.bypass = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, (strides[0], strides[1]))
        self.last = nn.Conv2d(c_out, _CLASSES, 1)

    def forward(self, frame: Tensor) -> Tensor:
        """Class logits at the unit's output size."""
        x = F.relu(self.first(frame))
        beside = self.bypass(x)
        if tuple(beside.shape[2:]) != tuple(self.size):
            beside = F.interpolate(beside, size=tuple(self.size), mode="bilinear", align_corners=False)
        return self.last(F.relu(self.unit(x) + beside))


def tiny_settings(candidate: str, settings: DeltaSettings, *, joined: bool) -> DeltaSettings:
    """How a tiny network becomes a pair.

    Args:
        candidate: the unit's.
        settings: of the whole network.
        joined: whether the unit's input comes from another unit, whose sum with its state an engine cannot fuse into
            what follows.
    """
    units: dict[str, tuple[str, ...]] = {UNIT: (candidate,)}
    if joined:
        units[_FIRST] = ("full",)
    return DeltaSettings(
        include=(), units=units, rank_rule=settings.rank_rule, rank_multiple=settings.rank_multiple
    )


def signature(student: nn.Module | None, call: Call, joined: bool) -> str:
    """What tells two tiny pairs apart, as a hex digest: equal ones take equally long.

    Args:
        student: the unit's, or a fixed layer; None where the unit is kept.
        call, joined: its surroundings.
    """
    modules = [] if student is None else [(name, *_facts(module)) for name, module in student.named_modules()]
    text = json.dumps([modules, call.takes, call.gives, joined], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _facts(module: nn.Module) -> tuple[Any, ...]:
    """Class, plain attributes and shapes of weights of a module."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key != "training"
        and isinstance(value, bool | int | float | str | tuple)
    }
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    shapes = {name: tuple(tensor.shape) for name, tensor in own}
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}", module.extra_repr(), plain, shapes
