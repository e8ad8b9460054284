"""Cutting into a user's network: a copy of it, batch norms folded away, layers put in place of others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def copy_of(teacher: nn.Module) -> nn.Module:
    """A deep copy, also where a module holds computed tensors, which torch does not copy (weight norm before 2.0)."""
    memo: dict[int, object] = {
        id(value): value.detach().clone()
        for module in teacher.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copied = copy.deepcopy(teacher, memo)
    # A layer is replaced inside its parent, so even a lone one gets one.
    return nn.Sequential(copied) if isinstance(copied, nn.Conv2d) else copied


def fold(network: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold the batch norm after a convolution into it; the norm becomes an identity under all of its names."""
    if norm.running_mean is None or norm.running_var is None:
        return  # it normalises each batch by itself, which no weight can do
    # New parameters: weights tied to another layer must not follow this layer's norm.
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight = nn.Parameter(weight.detach().clone())
    conv.bias = nn.Parameter(bias.detach().clone())
    replace(network, {id(norm): nn.Identity()})


def replace(network: nn.Module, replaced: Mapping[int, nn.Module]) -> None:
    """Put new modules in place of old ones under every name that held them."""
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and id(child) in replaced:
                module._modules[name] = replaced[id(child)]


def obstacle(conv: nn.Conv2d) -> str | None:
    """What makes a convolution more than its weight and bias, so that it cannot be rebuilt from them."""
    if getattr(conv, "parametrizations", None):
        return "its weight is parametrised"
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} computes something of its own"
    if conv._forward_pre_hooks or conv._forward_hooks or conv._backward_hooks:
        return "has hooks (such as weight norm)"
    if "forward" in vars(conv):
        return "its forward is replaced"
    return None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether any pattern (``*`` matches anything) fits the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
