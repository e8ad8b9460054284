"""A convolution that computes only the pixels its gate opens (arXiv 2104.11487, section 3), and what a pass shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.skip.gates import gate_of
from edge_sdk.distill.skip.recipes import SkipSettings
from edge_sdk.distill.steps import State
from edge_sdk.distill.tape import Form, Pass, Tape


@dataclass
class SkipTape(Tape):
    """The state of one pass, and how much of each layer was open in it.

    Attributes:
        opened: share of open pixels by entry (a layer's name, with its call where it has several), (N,) float32; filled
            in delta passes.
        all_open: let every pixel pass, whatever the gates say; a check of the conversion.
    """

    opened: State = field(default_factory=dict)
    all_open: bool = False

    def start(self, mode: Pass, form: Form, state: State) -> None:
        """Begin a pass that reads or fills ``state``."""
        super().start(mode, form, state)
        self.opened = {}


class SkipConv2d(nn.Conv2d):
    """A convolution of the network, with a gate.

    Keyframe: z = W * x + b. Afterwards, with r the change of x since the reference and g the gate's decision a pixel,

        residual (published): z <- z + g (W * r)
        refresh:              z <- (1 - g) z + g (W * x + b)

    The bias is no part of a change; the published code adds it again with every residual.

    State by entry: ``.x`` and ``.z``, both rewritten, and ``.scale`` where the threshold is relative, which is only
    read. ``.x`` is this frame's input, or with reference ``last_open`` that of the frame in which the pixel was last
    open.
    """

    def __init__(
        self, conv: nn.Conv2d, label: str, tape: SkipTape, settings: SkipSettings, *, calls: int = 1
    ) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
        )  # fmt: skip
        # The very parameters: a weight tied to another layer's stays tied.
        self.weight, self.bias = conv.weight, conv.bias
        self.label, self.calls, self.settings = label, calls, settings
        self._tape = [tape]
        self.g_gate = gate_of(conv, settings).to(conv.weight.device)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the current pass; the argument is named as in ``nn.Conv2d``."""
        tape = self._tape[0]
        if tape.mode in (Pass.PLAIN, Pass.REFERENCE):
            return super().forward(input)
        key = tape.key(self.label)
        if tape.mode is Pass.DELTA:
            return self._skipping(tape, key, input)
        z = super().forward(input)
        scale = self.g_gate.scale_of(input, z)
        # Copies: what follows may work in place, as activations often do.
        tape.state |= {f"{key}.x": input.clone(), f"{key}.z": z.clone()}
        if scale is not None:
            tape.state[f"{key}.scale"] = scale
        return z

    def _skipping(self, tape: SkipTape, key: str, x: Tensor) -> Tensor:
        before, kept = tape.state[f"{key}.x"], tape.state[f"{key}.z"]
        change = x - before
        is_open = self.g_gate(change, self.weight, tape.state.get(f"{key}.scale"))
        if tape.all_open:
            is_open = torch.ones_like(is_open)
        tape.opened[key] = is_open.float().mean((1, 2, 3))
        if self.settings.update == "refresh":
            fresh = super().forward(x)
        else:
            fresh = kept + self._conv_forward(change, self.weight, None)
        z = _chosen(is_open, fresh, kept)
        if self.settings.reference == "previous":
            reference = x.clone()
        else:
            reference = torch.where(_at_input(is_open, x), x, before)
        tape.changes |= {f"{key}.x": reference, f"{key}.z": z.clone()}
        return z


def _chosen(is_open: Tensor, fresh: Tensor, kept: Tensor) -> Tensor:
    if is_open.dtype == torch.bool:
        return torch.where(is_open, fresh, kept)
    # In training the gate has a gradient.
    return kept + is_open * (fresh - kept)


def _at_input(is_open: Tensor, x: Tensor) -> Tensor:
    """The decision of the output pixel in the place of each input pixel, (N, 1, h, w) bool."""
    if is_open.shape[-2:] != x.shape[-2:]:
        is_open = F.interpolate(is_open.float(), size=x.shape[-2:], mode="nearest")
    return is_open > 0.5 if is_open.dtype != torch.bool else is_open
