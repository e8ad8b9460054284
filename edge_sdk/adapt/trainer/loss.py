"""The loss of one update: pixel cross entropy, weighted inside the teacher's boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sdk.adapt.settings import OnlineLoss

# Of the authors' focal variant.
_GAMMA, _LEAST, _MOST, _TIMES = 2, 0.1, 0.9, 10.0


def online_loss(logits: Tensor, label: Tensor, weights: Tensor, ignore: int, settings: OnlineLoss) -> Tensor:
    """Mean over the labelled pixels of weight times cross entropy; weights are not normalised, as published.

    Args:
        logits: (N, C, H, W) float32.
        label: (N, H, W) int64 class ids, and ``ignore``.
        weights: (N, H, W) float32.
        ignore: label of the pixels that do not count.
        settings: which loss.

    Returns:
        A scalar; 0 where no pixel is labelled.
    """
    loss = F.cross_entropy(logits, label, ignore_index=ignore, reduction="none")
    if settings.kind == "focal":
        # What is nearly right already counts less; p is that of the true class.
        wrong = (1 - torch.exp(-loss.detach())).clamp(_LEAST, _MOST)
        weights = weights * _TIMES * (1 + wrong**_GAMMA)
    return (loss * weights).sum() / (label != ignore).sum().clamp(min=1)
