"""What a network does when it runs: which convolutions are called, how often, on what, and what follows them.

The network is run once and watched; its code is not parsed, so any ``nn.Module`` will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edge_sdk.distill.surgery import matches, obstacle
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


class _Readers(TorchFunctionMode):
    """Counts the functions that turn a watched tensor into another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[int, int] = {}
        self._kept: list[Tensor] = []  # watched tensors stay alive, so that an id means one tensor

    def watch(self, tensors: Iterable[Tensor | None]) -> None:
        """Begin to count the readers of ``tensors``."""
        for tensor in tensors:
            if tensor is not None:
                self._kept.append(tensor)
                self.counts.setdefault(id(tensor), 0)

    def of(self, tensor: Tensor) -> int:
        """How many functions read ``tensor``."""
        return self.counts[id(tensor)]

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
            for key in used & self.counts.keys():
                self.counts[key] += 1
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
    """Run ``network``, which is in evaluation mode, on ``example`` (1, 3, h, w).

    Returns:
        its convolutions in the order of their first call.
    """
    return _Survey(network).run(example)


class _Survey:
    """One watched run."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.uses: dict[int, ConvUse] = {}
        for name, module in network.named_modules(remove_duplicate=False):
            if isinstance(module, nn.Conv2d):
                self.uses.setdefault(id(module), ConvUse(name, module)).names.append(name)
        self.norms = {id(m): m for m in network.modules() if type(m) is nn.BatchNorm2d and _is_plain(m)}
        self.order: list[ConvUse] = []
        self.outputs: dict[int, tuple[ConvUse, Tensor]] = {}  # of convolutions, by the tensor's id
        self.norm_inputs: dict[int, list[tuple[ConvUse, Tensor] | None]] = {}
        self.readers = _Readers()

    def run(self, example: Tensor) -> list[ConvUse]:
        for use in self.uses.values():
            # A parametrised weight is computed anew at every access; such a convolution is never folded.
            self.readers.watch(use.conv._parameters.values())
        for norm in self.norms.values():
            self.readers.watch((norm.weight, norm.bias, norm.running_mean, norm.running_var))
        hooks = [u.conv.register_forward_hook(self._after_conv, with_kwargs=True) for u in self.uses.values()]
        hooks += [
            n.register_forward_pre_hook(self._before_norm, with_kwargs=True) for n in self.norms.values()
        ]
        try:
            with torch.no_grad(), self.readers:
                out = self.network(example)
        finally:
            for hook in hooks:
                hook.remove()
        returned = {id(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        for key, inputs in self.norm_inputs.items():
            if len(inputs) == 1 and inputs[0] is not None and id(inputs[0][1]) not in returned:
                self._pair(inputs[0][0], inputs[0][1], self.norms[key])
        return self.order

    def _after_conv(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        use = self.uses[id(module)]
        if not use.inputs:
            self.order.append(use)
        x = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        use.inputs.append((int(x.shape[-2]), int(x.shape[-1])))
        if isinstance(out, Tensor):
            self.readers.watch([out])
            self.outputs[id(out)] = (use, out)

    def _before_norm(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        self.norm_inputs.setdefault(id(module), []).append(self.outputs.get(id(x)))

    def _pair(self, use: ConvUse, out: Tensor, norm: nn.BatchNorm2d) -> None:
        """Note ``norm`` as foldable where the two, and their parameters, are used for nothing else."""
        if len(use.inputs) != 1 or norm.running_mean is None or norm.running_var is None:
            return
        read_once = (out, *use.conv.parameters(), *norm.parameters(), norm.running_mean, norm.running_var)
        if all(self.readers.counts.get(id(tensor)) == 1 for tensor in read_once):
            use.norm = norm


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class says and nothing more."""
    hooked = module._forward_pre_hooks or module._forward_hooks or module._backward_hooks
    return not hooked and "forward" not in vars(module)


class Choice(Protocol):
    """Settings that say which convolutions are converted."""

    @property
    def skip_first(self) -> int:
        """Convolutions left as they are at the beginning."""
        ...

    @property
    def skip_last(self) -> int:
        """Convolutions left as they are at the end."""
        ...

    @property
    def include(self) -> tuple[str, ...]:
        """Patterns over names."""
        ...

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns over names; they win."""
        ...


def fits(use: ConvUse, patterns: tuple[str, ...]) -> bool:
    """Whether any pattern fits any of a convolution's names."""
    return any(matches(name, patterns) for name in use.names)


def check_patterns(stage: str, settings: Choice, keys: tuple[str, ...], uses: list[ConvUse]) -> None:
    """Refuse a pattern under one of ``keys`` that fits no convolution; a network without any is somebody else's to say.

    Raises:
        ConversionError: naming the key and the pattern.
    """
    names = [name for use in uses for name in use.names]
    for key in keys:
        for pattern in getattr(settings, key):
            if uses and not any(matches(name, (pattern,)) for name in names):
                raise ConversionError(
                    f"'{stage}.{key}': the pattern '{pattern}' matches no convolution.",
                    hint=f"The network's convolutions are: {', '.join(names)}.",
                )


def left_alone(index: int, count: int, use: ConvUse, settings: Choice) -> str | None:
    """Why the convolution that runs as number ``index`` of ``count`` is not converted, or ``None``."""
    if index < settings.skip_first:
        return "first"
    if index >= count - settings.skip_last:
        return "last"
    if not fits(use, settings.include):
        return "not included"
    if fits(use, settings.exclude):
        return "excluded"
    return obstacle(use.conv)
