"""The contract on the workstation: a method is a pair of step functions over one state.

    keyframe: frame            -> outputs, state
    delta:    frame, state     -> outputs [, rewritten state] [, trust]

A method is one :class:`StepPair`; export, build and runtime know no more of it than this.
"""

from __future__ import annotations

from torch import Tensor, nn

from edge_sdk.manifest import TRUST as TRUST

State = dict[str, Tensor]


class StepPair(nn.Module):
    """Two steps over network inputs (N, 3, h, w); outputs are what the task decodes, such as class logits.

    Attributes:
        method: name written into the manifest.
        has_delta: whether there is a delta step.
    """

    method = "per_frame"
    has_delta = False

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's output for ``x``, and every state tensor by name."""
        raise TypeError(f"{type(self).__name__} defines no keyframe step")

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's output for ``x`` given ``state``, and the state tensors that it rewrites.

        A student that can tell how much of the keyframe still holds returns it beside them, under the reserved name
        :data:`TRUST`: float32, shape (), 0 (nothing of it) to 1 (all), such as the mean of a confidence map. It is no
        state: export makes it an output of the delta graph, which a drift schedule asks for keyframes by; training and
        evaluation leave it out. A pair returns it always or never.
        """
        raise TypeError(f"{type(self).__name__} defines no delta step")


class PerFrame(StepPair):
    """A network run in full on every frame: the baseline of every table."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The network's output; there is no state."""
        return self.network(x), {}
