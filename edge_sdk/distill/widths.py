"""Weights of a network for the same network of another width: what a narrower or wider one begins from.

Channel j of c' takes channel floor(j c / c') of c, on either side of every layer. Channels that are joined one after
the other stay with the part that they came from, so that any network fits whose layers all grow with one width.

Narrower: every second or third channel, as pruning begins. Wider: channels repeat, and what reads them counts each as
less, so that the network answers as before where the widths divide each other (Net2WiderNet, arXiv 1511.05641); a
little noise lets the copies part.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_sdk.distill.modules import matched_names
from edge_sdk.errors import CheckpointError

# Noise of repeated weights, as a share of their spread.
_NOISE = 0.05


def fit_width(
    module: nn.Module, weights: Mapping[str, Tensor], source: str | Path, noise: float = _NOISE
) -> None:
    """Fill ``module`` with the weights of the same network at another width.

    Args:
        module: what to fill; tensors of equal shape are taken as they are.
        weights: its tensors by name, with as many axes and other numbers of channels.
        source: where they come from, for messages.
        noise: of weights that are repeated, as a share of their standard deviation; drawn from torch's generator.

    Raises:
        CheckpointError: names the first tensors that the two do not share, that have other axes or kernels, or whose
            channels are not more or fewer by one share, such as those of other classes.
    """
    own = module.state_dict()
    weights = matched_names(weights, set(own))
    strange = sorted(own.keys() ^ weights.keys())
    strange += [name for name in own if name in weights and not _alike(own[name], weights[name])]
    if not strange:
        strange = _of_other_growth(own, weights)
    if strange:
        raise CheckpointError(
            f"checkpoint {source}: expected the weights of a {type(module).__name__} that differs in width alone, "
            f"found others: {', '.join(strange[:3])}{', ...' if len(strange) > 3 else ''}.",
            hint="Begin from a checkpoint of the same factory with other widths.",
        )
    module.load_state_dict({name: _fitted(weights[name], value.shape, noise) for name, value in own.items()})


def _alike(wanted: Tensor, given: Tensor) -> bool:
    """Whether they differ in channels at most."""
    return wanted.ndim == given.ndim and wanted.shape[2:] == given.shape[2:]


def _of_other_growth(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Tensors that do not grow as the channels between layers do, such as a head of other classes."""
    sides = [
        (name, axis, Fraction(count, weights[name].shape[axis]))
        for name, value in own.items()
        for axis, count in enumerate(value.shape[:2])
        if count != weights[name].shape[axis]
    ]
    # What a layer reads tells the width; what the last one gives may be classes.
    growth = {share for _, axis, share in sides if axis == 1}
    return [name for name, _, share in sides if growth != {share}]


def _fitted(given: Tensor, shape: torch.Size, noise: float) -> Tensor:
    if given.shape == shape:
        return given.clone()
    fitted = given
    for axis, count in enumerate(shape[:2]):
        was = given.shape[axis]
        fitted = fitted.index_select(axis, torch.arange(count) * was // count)
        if axis == 1:
            fitted = fitted * (was / count)
    if shape.numel() > given.numel() and given.is_floating_point() and given.ndim > 1:
        fitted = fitted + noise * fitted.std() * torch.randn_like(fitted)
    return fitted
