"""From a clip's representation to class logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.models.clips.encoders import require
from edge_sdk.errors import RecipeError


class LinearHead(nn.Module):
    """Dropout and a linear classifier.

    Args:
        width: R, numbers in a representation.
        classes: number of classes.
        dropout: share of the numbers left out in training.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        _require(classes, dropout)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)

    def forward(self, representation: Tensor) -> Tensor:
        """Logits (N, classes) of (N, R)."""
        return self.linear(self.dropout(representation))

    def at_places(self, maps: Tensor) -> Tensor:
        """Logits (N, classes, h, w) at every place of (N, R, h, w)."""
        return F.conv2d(maps, self.linear.weight[:, :, None, None], self.linear.bias)


class MixtureHead(nn.Module):
    """A mixture of logistic experts with a dummy that always says no, class by class, as used for YouTube-8M.

    A class's probability is the sum of the experts' sigmoids, each times its gate; the gates are a softmax, without
    bias, over the experts and the dummy. Given are logits, log(p) - log(1 - p), whose sigmoid is that probability, so
    it belongs to a ``multi_label`` task.

    Args:
        width: R, numbers in a representation.
        classes: number of classes.
        dropout: share of the numbers left out in training.
        experts: for each class, beside the dummy.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.0, experts: int = 2) -> None:
        super().__init__()
        _require(classes, dropout)
        require("mixture", experts=experts)
        self.classes, self.experts = classes, experts
        self.dropout = nn.Dropout(dropout)
        self.expert = nn.Linear(width, classes * experts)
        self.gate = nn.Linear(width, classes * (experts + 1), bias=False)

    def forward(self, representation: Tensor) -> Tensor:
        """Logits (N, classes) of (N, R)."""
        x = self.dropout(representation)
        expert = self.expert(x).unflatten(1, (self.classes, self.experts))
        gate = F.log_softmax(self.gate(x).unflatten(1, (self.classes, self.experts + 1)), 2)
        real, dummy = gate[..., : self.experts], gate[..., self.experts :]
        # In logarithms, because probabilities of thousands of classes are mostly too near 0 for 1 - p.
        yes = torch.logsumexp(real - F.softplus(-expert), 2)
        no = torch.logsumexp(torch.cat((real - F.softplus(expert), dummy), 2), 2)
        return yes - no


def _require(classes: int, dropout: float) -> None:
    if classes < 2 or not 0 <= dropout < 1:
        raise RecipeError(
            f"clip network: expected classes >= 2 and 0 <= dropout < 1, got {classes} and {dropout}."
        )
