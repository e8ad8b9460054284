"""What a network does when it runs: which convolutions are called, how often, on what, and what follows them.

The network is run once and watched; its code is not parsed, so any ``nn.Module`` will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edge_sdk.errors import ConversionError


@dataclass
class ConvUse:
    """One convolution module as one run of the network used it.

    Attributes:
        name: its first name in ``named_modules``; a module registered twice has one use.
        names: all of its names.
        inputs: (h, w) of each call's input.
        norm: batch norm whose only input is this convolution's only output, which nothing else reads.
    """

    name: str
    conv: nn.Conv2d
    names: list[str] = field(default_factory=list)
    inputs: list[tuple[int, int]] = field(default_factory=list)
    norm: nn.BatchNorm2d | None = None


class _Consumers(TorchFunctionMode):
    """Counts the functions that turn a watched tensor into another tensor."""

    def __init__(self, watched: dict[int, int]) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        used = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **kwargs)
        # Reading a shape or a flag gives no tensor and uses nothing.
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            for key in used & self.watched.keys():
                self.watched[key] += 1
        return out


def check_blocks(network: nn.Module, example: Tensor, blocks: dict[str, nn.Module]) -> None:
    """Run ``network`` and refuse blocks that are not called exactly once, from one tensor to one tensor.

    Raises:
        ConversionError: naming the block and how it is called.
    """
    calls: dict[str, list[str]] = {name: [] for name in blocks}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(out, Tensor)
            calls[name].append("" if plain else "not from one tensor to one tensor")

        return hook

    hooks = [block.register_forward_hook(watch(name), with_kwargs=True) for name, block in blocks.items()]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, seen in calls.items():
        if seen != [""]:
            how = f"called {len(seen)} times" if len(seen) != 1 else seen[0]
            raise ConversionError(
                f"'delta.blocks': expected '{name}' to be called once, from one tensor to one tensor; it is {how}.",
                hint="Leave it out of delta.blocks; its convolutions are then converted one by one.",
            )


def survey(network: nn.Module, example: Tensor) -> list[ConvUse]:
    """Run ``network`` on ``example`` (1, 3, h, w) and return its convolutions in the order of their first call."""
    uses: dict[int, ConvUse] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d):
            uses.setdefault(id(module), ConvUse(name, module)).names.append(name)
    order: list[int] = []
    kept: list[Tensor] = []  # watched tensors stay alive, so that an id means one tensor
    watched: dict[int, int] = {}
    maker: dict[int, ConvUse] = {}
    norm_calls: dict[int, list[ConvUse | None]] = {}

    def after_conv(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        use = uses[id(module)]
        if id(module) not in order:
            order.append(id(module))
        use.inputs.append((int(args[0].shape[-2]), int(args[0].shape[-1])))
        kept.append(out)
        watched[id(out)] = 0
        maker[id(out)] = use

    def before_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
        norm_calls.setdefault(id(module), []).append(maker.get(id(args[0])))

    norms = {id(m): m for m in network.modules() if type(m) is nn.BatchNorm2d}
    hooks = [use.conv.register_forward_hook(after_conv) for use in uses.values()]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in norms.values()]
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), _Consumers(watched):
            out = network(example)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    returned = {id(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
    uses_of = {id(tensor): watched[id(tensor)] for tensor in kept}
    for key, calls in norm_calls.items():
        use = calls[0]
        if (
            len(calls) == 1
            and use is not None
            and len(use.inputs) == 1
            and norms[key].running_mean is not None
        ):
            produced = next(i for i, made in maker.items() if made is use)
            if uses_of[produced] == 1 and produced not in returned:
                use.norm = norms[key]
    return [uses[key] for key in order]
