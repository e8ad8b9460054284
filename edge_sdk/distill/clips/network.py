"""The contract of clip networks, and the pair of steps that every one of them is on the device.

    keyframe: frame            -> class logits, state       begins a clip
    delta:    frame, state     -> class logits, state'      adds a frame
    skip:                      -> the last logits           a frame that is not seen

A network has two forms, which give the same logits: ``forward`` over all frames of a clip, for training, and
``begin`` and ``follow`` frame by frame. So nothing in it may look ahead: its layers are causal in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_sdk.distill.steps import State, StepPair


@dataclass(frozen=True)
class Seen:
    """What a clip network makes of a clip.

    Attributes:
        logits: (N, classes), of the whole clip.
        representation: (N, R), the vector that the classifier reads.
        maps: (N, T, C, h, w), the last feature maps of each frame; None where frames come as feature vectors.
    """

    logits: Tensor
    representation: Tensor
    maps: Tensor | None


class ClipNetwork(nn.Module):
    """A network over clips. A subclass defines the three methods, and a test holds the two forms equal."""

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once.

        Args:
            clip: (N, T, 3, h, w) normalised frames, or (N, T, D) feature vectors.
        """
        raise TypeError(f"{type(self).__name__} defines no forward")

    def begin(self, x: Tensor) -> tuple[Tensor, State]:
        """The first frame (N, 3, h, w), or feature vector (N, D), of a clip.

        Returns:
            logits (N, classes) as if the clip ended here, and the clip's state.
        """
        raise TypeError(f"{type(self).__name__} defines no begin")

    def follow(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Another frame; returns logits as if the clip ended here, and every state tensor anew."""
        raise TypeError(f"{type(self).__name__} defines no follow")

    def classify(self, map_: Tensor) -> Tensor:
        """The classifier at every place of feature maps (N, C, h, w), giving logits (N, classes, h, w).

        Only networks whose representation is the mean of their maps have this; it is what cross-resolution
        distillation compares where teacher and student differ in width.
        """
        raise TypeError(f"{type(self).__name__} does not classify places")


class ClipPair(StepPair):
    """A clip network on the device: the clip's accumulator is the state.

    Args:
        network: in evaluation mode when exported.
        method: name written into the manifest.
    """

    has_delta = True

    def __init__(self, network: ClipNetwork, method: str = "clip") -> None:
        super().__init__()
        self.network, self.method = network, method

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """Begin a clip with frame ``x``."""
        return self.network.begin(x)

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Add frame ``x`` to the clip; the whole state is rewritten."""
        return self.network.follow(x, state)


def fold(network: ClipNetwork, clip: Tensor) -> Tensor:
    """Logits of ``clip`` (N, T, ...) by the steps, frame by frame."""
    logits, state = network.begin(clip[:, 0])
    for index in range(1, clip.shape[1]):
        logits, state = network.follow(clip[:, index], state)
    return logits


def describe(seen: Seen) -> dict[str, torch.Size]:
    """Shapes of what was seen, for messages."""
    found = {"logits": seen.logits.shape, "representation": seen.representation.shape}
    return found if seen.maps is None else {**found, "maps": seen.maps.shape}
