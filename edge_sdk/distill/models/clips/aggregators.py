"""From the features of a clip's frames to its representation, by sums: mean, NetVLAD and NeXtVLAD.

The sums over the frames so far are the state, so a frame is added in constant time and all frames count alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.models.clips.encoders import require
from edge_sdk.distill.steps import State
from edge_sdk.errors import RecipeError

# Inside the root of a norm: an empty cluster stays near zero in place of turning its rounding errors into a direction,
# and float16 still holds it.
_EPS = 1e-6


class Aggregator(nn.Module):
    """Features to representation, all at once or one by one; the two forms give the same.

    Attributes:
        width: R, numbers in a representation.
    """

    width: int

    def forward(self, features: Tensor) -> Tensor:
        """Representation (N, R) of features (N, T, D), in order."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def begin(self, feature: Tensor) -> tuple[Tensor, State]:
        """Representation and state after the first frame's feature (N, D)."""
        raise TypeError(f"{type(self).__name__} defines no begin")

    def follow(self, feature: Tensor, state: State) -> tuple[Tensor, State]:
        """Representation and state with one more frame's feature (N, D)."""
        raise TypeError(f"{type(self).__name__} defines no follow")


class _Sums(Aggregator):
    """An aggregator that reads nothing of the features but one sum over the frames."""

    name = "sums"

    def sums(self, features: Tensor) -> Tensor:
        """Sum over the frames, (N, ...), of (N, T, D)."""
        raise TypeError(f"{type(self).__name__} defines no sums")

    def read(self, sums: Tensor) -> Tensor:
        """Representation (N, R)."""
        raise TypeError(f"{type(self).__name__} defines no read")

    def forward(self, features: Tensor) -> Tensor:
        """Representation of a clip."""
        return self.read(self.sums(features))

    def begin(self, feature: Tensor) -> tuple[Tensor, State]:
        """The first frame."""
        sums = self.sums(feature[:, None])
        return self.read(sums), {self.name: sums}

    def follow(self, feature: Tensor, state: State) -> tuple[Tensor, State]:
        """One more frame."""
        sums = state[self.name] + self.sums(feature[:, None])
        return self.read(sums), {self.name: sums}


def with_one(x: Tensor) -> Tensor:
    """``x`` (..., D) and a 1, (..., D + 1): its sum counts too, without a state tensor of its own."""
    return torch.cat((x, torch.ones_like(x[..., :1])), -1)


class Mean(_Sums):
    """Mean of the features: the consensus of temporal segment networks.

    Args:
        dim: D, which is R too.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.width = dim

    def sums(self, features: Tensor) -> Tensor:
        """(N, D + 1): sum and count."""
        return with_one(features).sum(1)

    def read(self, sums: Tensor) -> Tensor:
        """The mean."""
        return sums[:, :-1] / sums[:, -1:]


class _Clusters(_Sums):
    """Sums of soft-assigned features, (N, K, d + 1), read as residuals to K centres.

    Each cluster's residual has length 1 (intra-normalisation), then the whole vector, which is drawn out to the length
    ``scale`` before a hidden layer: with length 1 its inputs would be too small to learn from at an ordinary rate.
    """

    def __init__(self, clusters: int, dim: int, hidden: int, scale: float) -> None:
        super().__init__()
        require("netvlad and nextvlad", clusters=clusters, hidden=hidden)
        if not scale > 0:
            raise RecipeError(f"clip network: expected scale > 0, got {scale}.")
        self.scale = scale
        self.centres = nn.Parameter(0.1 * torch.randn(clusters, dim))
        self.hidden = nn.Linear(clusters * dim, hidden)
        self.width = hidden

    def read(self, sums: Tensor) -> Tensor:
        """The hidden layer's output."""
        residual = sums[..., :-1] - sums[..., -1:] * self.centres
        vector = _unit(_unit(residual).flatten(1))
        return F.relu(self.hidden(self.scale * vector))


def _unit(x: Tensor) -> Tensor:
    """``x`` with length 1 over the last axis."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + _EPS)


class NetVLAD(_Clusters):
    """NetVLAD (arXiv 1511.07247) over a clip's frames.

    Args:
        dim: D.
        clusters: K, centres.
        hidden: R, numbers after the hidden layer.
        scale: length of the vector that the hidden layer reads.
    """

    def __init__(self, dim: int, clusters: int = 16, hidden: int = 128, scale: float = 8.0) -> None:
        super().__init__(clusters, dim, hidden, scale)
        self.assign = nn.Linear(dim, clusters)

    def sums(self, features: Tensor) -> Tensor:
        """(N, K, D + 1): of each cluster the assigned features, and the assignment."""
        assigned = self.assign(features).softmax(2)
        return torch.matmul(assigned.transpose(1, 2), with_one(features))


class NeXtVLAD(_Clusters):
    """NeXtVLAD (arXiv 1811.05014): features are widened and cut into groups, each assigned by itself.

    A group's assignment is weighted by its attention. The clusters' vectors are as short as a group, so the layer after
    them is several times smaller than NetVLAD's.

    Args:
        dim: D.
        clusters: K, centres.
        groups: G; divides ``expansion * dim``.
        expansion: how much wider the features are made.
        hidden: R, numbers after the hidden layer.
        scale: length of the vector that the hidden layer reads.
        gating: the hidden layer's numbers are weighted by themselves through a layer so many times narrower
            (squeeze and excitation; 8 as published); 0 for none.
    """

    def __init__(
        self, dim: int, clusters: int = 16, groups: int = 4, expansion: int = 2, hidden: int = 128,
        scale: float = 8.0, gating: int = 0,
    ) -> None:  # fmt: skip
        require("nextvlad", clusters=clusters, groups=groups, expansion=expansion, hidden=hidden)
        if gating < 0 or gating > hidden:
            raise RecipeError(f"clip network, 'nextvlad': expected gating in 0-{hidden}, got {gating}.")
        wide = expansion * dim
        # With the time as a feature the width is odd; the widening layer may round it up.
        wide += -wide % groups
        super().__init__(clusters, wide // groups, hidden, scale)
        self.groups, self.clusters = groups, clusters
        self.expand = nn.Linear(dim, wide)
        self.attend = nn.Linear(wide, groups)
        self.assign = nn.Linear(wide, groups * clusters)
        narrow = hidden // gating if gating else 0
        self.gate = (
            nn.Sequential(nn.Linear(hidden, narrow), nn.ReLU(), nn.Linear(narrow, hidden), nn.Sigmoid())
            if gating
            else None
        )

    def sums(self, features: Tensor) -> Tensor:
        """(N, K, d + 1): of each cluster the assigned groups, d = width of a group, and the assignment."""
        wide = self.expand(features)
        attention = torch.sigmoid(self.attend(wide)).unsqueeze(3)
        assigned = self.assign(wide).unflatten(2, (self.groups, self.clusters)).softmax(3) * attention
        grouped = with_one(wide.unflatten(2, (self.groups, -1)))
        return torch.matmul(assigned.flatten(1, 2).transpose(1, 2), grouped.flatten(1, 2))

    def read(self, sums: Tensor) -> Tensor:
        """The hidden layer's output, gated."""
        hidden = super().read(sums)
        return hidden if self.gate is None else hidden * self.gate(hidden)


class Ordered(Aggregator):
    """Tells an aggregator that forgets the order what it would miss: beside a frame's feature stand its difference to
    the mean of all features before (zero for the first) and how far the clip has come, index / samples.

    A difference to the frame just before would be small where many frames are seen and large where few are, so a
    student with few could not follow its teacher.

    Args:
        inner: an aggregator of features (N, T, 2 D + 1).
        samples: frames of a clip that are seen.
    """

    def __init__(self, inner: Aggregator, samples: int) -> None:
        super().__init__()
        require("order", samples=samples)
        self.inner, self.samples = inner, samples
        self.width = inner.width

    @staticmethod
    def wider(dim: int) -> int:
        """Numbers in a feature with its order, for those of ``dim`` numbers."""
        return 2 * dim + 1

    def forward(self, features: Tensor) -> Tensor:
        """Representation of a clip."""
        frames = features.shape[1]
        # A product, because not every engine knows running sums.
        earlier = torch.ones(frames, frames, dtype=features.dtype, device=features.device).tril(-1)
        return self.inner(self._placed(features, torch.matmul(earlier, with_one(features))))

    def _placed(self, features: Tensor, before: Tensor) -> Tensor:
        """Features (..., D) with what sum and count (..., D + 1) of those before say, (..., 2 D + 1)."""
        count = before[..., -1:]
        mean = before[..., :-1] / count.clamp(min=1)
        change = torch.where(count > 0.5, features - mean, torch.zeros_like(features))
        return torch.cat((features, change, count / self.samples), -1)

    def begin(self, feature: Tensor) -> tuple[Tensor, State]:
        """The first frame."""
        placed = torch.cat((feature, torch.zeros_like(feature), torch.zeros_like(feature[:, :1])), 1)
        representation, state = self.inner.begin(placed)
        return representation, {**state, "before": with_one(feature)}

    def follow(self, feature: Tensor, state: State) -> tuple[Tensor, State]:
        """One more frame."""
        before = state["before"]
        representation, inner = self.inner.follow(self._placed(feature, before), state)
        return representation, {**inner, "before": before + with_one(feature)}
