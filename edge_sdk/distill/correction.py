"""A keyframe's correction of later answers: telescoped residuals of whole networks, joined at their class logits.

The keyframe step keeps by how much the teacher differed from the student, r = z_0 - s(x_0), and the student's class
shares there. A later answer is z_t = s(x_t) + m * r, with a confidence m that falls where the student's own answer is
no longer what it was: there the residual belongs to something that has moved on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sdk.distill.steps import State

# Confidence at the beginning: 0.98 where the student's answer is what it was, half where half of its certainty went to
# another class.
OFFSET, SLOPE = 4.0, 8.0


def kept(target: Tensor, own: Tensor) -> State:
    """State of a keyframe from the teacher's and the student's logits there, both (N, C, h, w).

    ``residual`` is their difference, ``student`` the student's class shares.
    """
    return {"residual": target - own, "student": own.softmax(1)}


def shift_of_shares(shares: Tensor, before: Tensor) -> Tensor:
    """Share of certainty (N, 1, h, w), 0 to 1, that went to other classes: half the L1 distance of (N, C, h, w)."""
    return 0.5 * (shares - before).abs().sum(1, keepdim=True)


def confidence(shares: Tensor, before: Tensor, offset: Tensor, slope: Tensor) -> Tensor:
    """m = sigmoid(offset - slope * distance), (N, 1, h, w), of class shares now and at the keyframe."""
    return torch.sigmoid(offset - slope * shift_of_shares(shares, before))
