"""A keyframe's correction of later answers: telescoped residuals of whole networks, joined at their class logits.

The keyframe step keeps by how much the teacher differed from the student, r = z_0 - s(x_0), and the student's class
shares there. A later answer is z_t = s(x_t) + m * r, with a confidence m that falls where the student's own answer is
no longer what it was: there the residual belongs to something that has moved on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_sdk.distill.steps import State

# Confidence at the beginning: 0.98 where the student's answer is what it was, half where half of its certainty went to
# another class.
OFFSET, SLOPE = 4.0, 8.0
# Of an answer that is carried on from frame to frame: 0.73, which averages the last few frames where they agree.
BLEND_OFFSET, BLEND_SLOPE = 1.0, 4.0


def kept(target: Tensor, own: Tensor) -> State:
    """State of a keyframe from the teacher's and the student's logits there, both (N, C, h, w).

    ``residual`` is their difference, ``student`` the student's class shares.
    """
    return {"residual": target - own, "student": shares_of(own)}


def shares_of(logits: Tensor) -> Tensor:
    """Softmax of (N, C, ...) over its classes, in plain steps.

    Engines for CPUs have a fast softmax over the last axis alone, and for any other take several times longer.
    """
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def shift_of_shares(shares: Tensor, before: Tensor) -> Tensor:
    """Share of certainty (N, 1, h, w), 0 to 1, that went to other classes: half the L1 distance of (N, C, h, w)."""
    return 0.5 * (shares - before).abs().sum(1, keepdim=True)


def confidence(shares: Tensor, before: Tensor, offset: Tensor, slope: Tensor) -> Tensor:
    """m = sigmoid(offset - slope * distance), (N, 1, h, w), of class shares now and at the keyframe."""
    return torch.sigmoid(offset - slope * shift_of_shares(shares, before))


class Confidence(nn.Module):
    """m: how far a keyframe's residual still holds, class by class and place by place.

    It begins as the sigmoid of a line in the shares' shift alone, and learns to see more.

    Args:
        classes: number of classes.
        width: channels of the small convolution; 0 leaves the line alone, one confidence for all classes.
        begin: offset and slope of the line.
    """

    def __init__(self, classes: int, width: int, begin: tuple[float, float] = (OFFSET, SLOPE)) -> None:
        super().__init__()
        self.offset, self.slope = (nn.Parameter(torch.tensor([value])) for value in begin)
        self.more: nn.Sequential | None = None
        if width:
            last = nn.Conv2d(width, classes, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has a bias
            first = nn.Conv2d(2 * classes + 1, width, 3, padding=1)
            self.more = nn.Sequential(first, nn.ReLU(inplace=True), last)

    def forward(self, shares: Tensor, before: Tensor) -> Tensor:
        """Of class shares (N, C, h, w) now and at the keyframe: (N, C or 1, h, w), 0 to 1."""
        shift = shift_of_shares(shares, before)
        line = self.offset - self.slope * shift
        if self.more is None:
            return torch.sigmoid(line)
        return torch.sigmoid(line + self.more(torch.cat([shares, before, shift], 1)))
