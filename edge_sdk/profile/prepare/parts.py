"""The parts of a network as one run of it shows them: which feeds which, and on what shapes each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edge_sdk.errors import ConversionError
from edge_sdk.profile.structure import Structure


@dataclass(frozen=True)
class Call:
    """Shapes of one call of a part: (N, C, h, w) each."""

    takes: tuple[int, ...]
    gives: tuple[int, ...]

    @property
    def in_hw(self) -> tuple[int, int]:
        """Height and width of the input."""
        return self.takes[2], self.takes[3]


@dataclass
class _Part:
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def fixed_layers(network: nn.Module, units: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """By name, the layers with weights that lie in none of the units and do the work: convolutions and products."""
    inside = {id(module) for unit in units.values() for module in unit.modules()}
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, kinds) and id(module) not in inside
    }


def traced(
    network: nn.Module, example: Tensor, parts: Mapping[str, nn.Module]
) -> tuple[Structure, dict[str, tuple[Call, ...]]]:
    """Run ``network`` once and follow what reaches each part and the answer.

    Args:
        network: in evaluation mode.
        example: one input (1, 3, h, w).
        parts: by name; none lies in another.

    Returns:
        the data flow, and the calls of each part; a part that is not called is left out.

    Raises:
        ConversionError: a part is not called from one tensor to one tensor.
    """
    found = {name: _Part() for name in parts}
    hooks = [
        part.register_forward_hook(_watch(name, found[name]), with_kwargs=True)
        for name, part in parts.items()
    ]
    # Parts may work in place on what they are given; before they do, a copy is noted.
    hooks += [
        part.register_forward_pre_hook(_note(found[name]), with_kwargs=True) for name, part in parts.items()
    ]
    try:
        with torch.enable_grad():
            answer = network(example)
    finally:
        for hook in hooks:
            hook.remove()
    called = {name: part for name, part in found.items() if part.calls}
    leaves = [(name, leaf) for name, part in called.items() for leaf in part.outputs]
    outputs = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    structure = Structure(
        reads={name: _sources(part.inputs, leaves) for name, part in called.items()},
        answer=_sources(outputs, leaves),
    )
    return structure, {name: tuple(part.calls) for name, part in called.items()}


def _note(part: _Part) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        part.inputs += [leaf.clone() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]

    return hook


def _watch(name: str, part: _Part) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Tensor:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if len(given) != 1 or not isinstance(out, Tensor) or given[0].ndim != 4 or out.ndim != 4:
            raise ConversionError(
                f"'delta.units': expected '{name}' to map one tensor of four axes to another, it does not.",
                hint="Name a module that does, such as the convolutions inside.",
            )
        part.calls.append(Call(tuple(given[0].shape), tuple(out.shape)))
        leaf = out.detach().requires_grad_()
        part.outputs.append(leaf)
        return leaf.clone()  # what follows may work in place

    return hook


def _sources(tensors: list[Tensor], leaves: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Names of the parts that any of ``tensors`` depends on."""
    reached = [t.sum() for t in tensors if t.requires_grad]
    if not reached or not leaves:
        return ()
    grads = torch.autograd.grad(
        torch.stack(reached).sum(), [leaf for _, leaf in leaves], allow_unused=True, retain_graph=True
    )
    return tuple(
        dict.fromkeys(name for (name, _), grad in zip(leaves, grads, strict=True) if grad is not None)
    )
