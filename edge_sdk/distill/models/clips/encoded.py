"""Clip networks in three parts, encoder, aggregator and head, and their sliding windows."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sdk.distill.clips.network import ClipNetwork, Seen
from edge_sdk.distill.models.clips.aggregators import Aggregator, Mean
from edge_sdk.distill.models.clips.encoders import Encoder, require
from edge_sdk.distill.models.clips.heads import LinearHead, MixtureHead
from edge_sdk.distill.models.clips.past import Past
from edge_sdk.distill.steps import State
from edge_sdk.errors import RecipeError


class EncodedClip(ClipNetwork):
    """Frames to features, features to a representation, and that to logits.

    Args:
        encoder: may look back, through :class:`Past`.
        aggregator: of its features.
        head: of the aggregator's representation.
    """

    def __init__(self, encoder: Encoder, aggregator: Aggregator, head: LinearHead | MixtureHead) -> None:
        super().__init__()
        self.encoder, self.aggregator, self.head = encoder, aggregator, head

    def features(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, T, D) and maps (N, T, C, h, w), or None, of a clip (N, T, 3, h, w) or (N, T, D)."""
        n, frames = clip.shape[:2]
        features, maps = self.encoder(clip.flatten(0, 1), Past(frames))
        shape = (n, frames)
        return features.unflatten(0, shape), None if maps is None else maps.unflatten(0, shape)

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once."""
        features, maps = self.features(clip)
        representation = self.aggregator(features)
        return Seen(self.head(representation), representation, maps)

    def begin(self, x: Tensor) -> tuple[Tensor, State]:
        """The first frame of a clip."""
        past = Past()
        features, _ = self.encoder(x, past)
        representation, state = self.aggregator.begin(features)
        return self.head(representation), {**past.written, **state}

    def follow(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Another frame."""
        past = Past(state=state)
        features, _ = self.encoder(x, past)
        representation, written = self.aggregator.follow(features, state)
        return self.head(representation), {**past.written, **written}

    def classify(self, map_: Tensor) -> Tensor:
        """The classifier at every place of maps (N, C, h, w)."""
        if isinstance(self.head, LinearHead) and isinstance(self.aggregator, Mean) and self.encoder.places:
            return self.head.at_places(map_)
        return super().classify(map_)


class SlidingWindow(EncodedClip):
    """A clip network whose answer covers the last ``samples`` seen frames, anew at every one of them.

    The features of those frames are the state, so a frame is encoded once and the aggregator runs over all of them each
    time. Until there are as many, the first frame stands in for those before it. Encoder, aggregator and head are the
    network's own, under the same names, so either loads the other's weights; over a clip of ``samples`` frames both
    give the same.

    Args:
        network: trained on clips of so many seen frames.
        samples: seen frames that an answer covers.

    Raises:
        RecipeError: the network has other parts, or is a sliding window itself.
    """

    def __init__(self, network: EncodedClip, samples: int) -> None:
        require("sliding window", samples=samples)
        if not isinstance(network, EncodedClip) or isinstance(network, SlidingWindow):
            raise RecipeError(
                f"sliding window: expected a network of encoder, aggregator and head, got {type(network).__name__}."
            )
        super().__init__(network.encoder, network.aggregator, network.head)
        self.samples = samples
        self.train(network.training)

    def forward(self, clip: Tensor) -> Seen:
        """All frames at once; the answer is that after the last one."""
        features, maps = self.features(clip)
        missing = max(0, self.samples - features.shape[1])
        window = torch.cat((features[:, :1].expand(-1, missing, -1), features[:, -self.samples :]), 1)
        representation = self.aggregator(window)
        return Seen(self.head(representation), representation, maps)

    def begin(self, x: Tensor) -> tuple[Tensor, State]:
        """The first frame."""
        past = Past()
        features, _ = self.encoder(x, past)
        return self._answer(past, torch.stack([features] * self.samples, 1))

    def follow(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Another frame; the oldest goes."""
        past = Past(state=state)
        features, _ = self.encoder(x, past)
        return self._answer(past, torch.cat((state["window"][:, 1:], features[:, None]), 1))

    def _answer(self, past: Past, window: Tensor) -> tuple[Tensor, State]:
        logits = self.head(self.aggregator(window))
        return logits, {**past.written, "window": window}
