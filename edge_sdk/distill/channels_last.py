"""The layout in which networks train on CPUs, and what has to be done for it."""

from __future__ import annotations

import types
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
# Channels in one block of oneDNN.
_BLOCK = 16


def channels_last(network: Network) -> Network:
    """``network`` itself with its weights in ``torch.channels_last``, in which convolutions train a fifth faster.

    oneDNN writes past its memory in the backward pass of a 1x1 convolution with a stride, of fewer than 16 channels to
    16 or more, in this layout (3.12, in torch 2.13; at least on CPUs with AVX-512): the process crashes. On the CPU
    such layers take every second pixel first, and convolve without a stride: the same numbers.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _crashes(module):
            module._conv_forward = types.MethodType(_pixels_first, module)  # type: ignore[method-assign]  # of this one
    return network


def _crashes(conv: nn.Conv2d) -> bool:
    steps = conv.kernel_size == (1, 1) and max(conv.stride) > 1
    # The only name that torch takes beside a stride is "valid".
    bare = isinstance(conv.padding, str) or not any(conv.padding)
    own = type(conv)._conv_forward is nn.Conv2d._conv_forward
    return steps and bare and own and conv.in_channels // conv.groups < _BLOCK


def _pixels_first(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type != "cpu":
        return nn.Conv2d._conv_forward(conv, x, weight, bias)
    return F.conv2d(x[..., :: conv.stride[0], :: conv.stride[1]], weight, bias, groups=conv.groups)
