"""What a named module inside a network gives while the network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.errors import RecipeError


@contextmanager
def noted(network: nn.Module, name: str | None, setting: str = "loss.feature_at") -> Iterator[list[Tensor]]:
    """What the module of that name gives while this is open; nothing where the name is None.

    Raises:
        RecipeError: there is no such module; ``setting`` is what named it.
    """
    found: list[Tensor] = []
    if name is None:
        yield found
        return

    def note(_module: nn.Module, _given: Any, out: Any) -> None:
        found.append(out.clone())  # layers that follow may work in place

    handle = module_at(network, name, setting).register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def module_at(network: nn.Module, name: str, setting: str) -> nn.Module:
    """The module of that name.

    Raises:
        RecipeError: there is none; ``setting`` is what named it.
    """
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = [name for name, _ in network.named_modules() if name]
        raise RecipeError(
            f"'{setting}': {type(network).__name__} has no module '{name}'.",
            hint=f"Name one such as {', '.join(names[-3:])}.",
        ) from error


def map_shape(network: nn.Module, name: str, setting: str, size_hw: tuple[int, int]) -> tuple[int, ...]:
    """Shape of what that module gives for an input (1, 3, h, w), without a name the network itself; () for nothing."""
    with torch.no_grad(), noted(network, name or None, setting) as found:
        out = network(torch.zeros(1, 3, *size_hw))
    maps = found if name else [out]
    return tuple(maps[0].shape) if maps and isinstance(maps[0], Tensor) else ()


def size_of(maps: Tensor) -> tuple[int, int]:
    """Height and width of (N, C, h, w)."""
    height, width = maps.shape[-2:]
    return int(height), int(width)


def drawn_to(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Maps drawn up, or down, to a height and width."""
    if size_of(maps) == size_hw:
        return maps
    return F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of feature maps, the student's drawn up to the teacher's size (arXiv 2209.12797)."""
    return F.mse_loss(drawn_to(student, size_of(teacher)), teacher)


def check_features(teacher: nn.Module, student: nn.Module, name: str, size_hw: tuple[int, int]) -> None:
    """Refuse a module whose features cannot be compared.

    Raises:
        RecipeError: a network has no such module, or it gives no maps, or maps of unlike channels.
    """
    shapes = [map_shape(network, name, "loss.feature_at", size_hw) for network in (teacher, student)]
    if any(len(shape) != 4 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise RecipeError(
            f"'loss.feature_at': expected maps (N, C, h, w) of as many channels in both networks at '{name}', got "
            f"{shapes[0]} in the teacher and {shapes[1]} in the student.",
            hint="Name a module where both are equally wide, or set loss.features to 0.",
        )
