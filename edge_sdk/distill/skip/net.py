"""Skip-Convolution as a pair of steps, and how any network becomes one.

keyframe: frame         -> outputs, every gated layer's input and output
delta:    frame, state  -> outputs, both of them rewritten
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_sdk.distill.candidates import conv_macs
from edge_sdk.distill.skip.layer import SkipConv2d, SkipTape
from edge_sdk.distill.skip.macs import SkipLayer, Work
from edge_sdk.distill.skip.recipes import SkipSettings
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.distill.surgery import copy_of, fold, obstacle, replace
from edge_sdk.distill.survey import check_patterns, left_alone, survey
from edge_sdk.distill.tape import Pass
from edge_sdk.distill.verify import answer, check_conversion, probe_like
from edge_sdk.errors import ConversionError


class SkipPair(StepPair):
    """A network whose gated convolutions skip what did not change. Made by :func:`to_skip`.

    Args:
        network: the network whose convolutions are :class:`SkipConv2d` over ``tape``.
        tape: what they share.
    """

    method = "skip_convolution"
    has_delta = True

    def __init__(self, network: nn.Module, tape: SkipTape) -> None:
        super().__init__()
        self.network = network
        self._tape = [tape]

    @property
    def layers(self) -> list[SkipConv2d]:
        """The gated layers, each once."""
        return [m for m in self.network.modules() if isinstance(m, SkipConv2d)]

    def gate_parameters(self) -> list[nn.Parameter]:
        """What is trained of the gates; all other parameters are the teacher's."""
        return [parameter for layer in self.layers for parameter in layer.g_gate.parameters()]

    def teacher(self, x: Tensor) -> Tensor:
        """The network without gates."""
        return self.network(x)

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's output and the state of every gated layer."""
        state: State = {}
        with self._pass(Pass.KEYFRAME, state):
            return self.network(x), state

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The gated layers' output, and the state tensors that they rewrite."""
        out, changes, _ = self.measured(x, state)
        return out, changes

    def measured(self, x: Tensor, state: State) -> tuple[Tensor, State, State]:
        """:meth:`delta`, and the share of open pixels by entry, (N,) each."""
        with self._pass(Pass.DELTA, state) as tape:
            return self.network(x), tape.changes, tape.opened

    @contextmanager
    def _pass(self, mode: Pass, state: State) -> Iterator[SkipTape]:
        tape = self._tape[0]
        tape.start(mode, "published", state)
        try:
            yield tape
        finally:
            tape.mode = Pass.PLAIN

    @contextmanager
    def all_open(self) -> Iterator[None]:
        """Gates let everything pass meanwhile, so that the delta step is the teacher."""
        tape = self._tape[0]
        tape.all_open = True
        try:
            yield
        finally:
            tape.all_open = False


@dataclass(frozen=True)
class SkipConversion:
    """A gated network and what it costs."""

    net: SkipPair
    work: Work


def to_skip(teacher: nn.Module, example: Tensor, settings: SkipSettings) -> SkipConversion:
    """Convert a copy of ``teacher``; the teacher itself is left as it is.

    Batch norms are folded into their convolutions, so that a gate of the output sees the output that is used.

    Args:
        teacher: any module mapping (N, 3, h, w) to outputs.
        example: one input (1, 3, h, w), float32, to watch the module run.
        settings: which layers, which gates.

    Raises:
        ConversionError: a pattern matches no convolution, nothing is left to convert, or the converted network does
            not agree with the teacher.
    """
    network = copy_of(teacher).eval()
    probe = probe_like(example)
    expected, moved = answer(network, probe), answer(network, -probe)
    uses = survey(network, example)
    check_patterns("skip", settings, ("include", "exclude"), uses)
    for use in uses:
        if use.norm is not None and obstacle(use.conv) is None:
            fold(network, use.conv, use.norm)
    tape = SkipTape()
    layers: list[SkipLayer] = []
    replaced: dict[int, nn.Module] = {}
    for index, use in enumerate(uses):
        macs = tuple(conv_macs(use.conv, hw)[0] for hw in use.inputs)
        reason = left_alone(index, len(uses), use, settings)
        if reason is not None:
            layers.append(SkipLayer(use.name, False, reason, macs))
            continue
        layer = SkipConv2d(use.conv, use.name, tape, settings, calls=len(use.inputs))
        replaced[id(use.conv)] = layer
        spent = tuple(layer.g_gate.macs(n * use.conv.groups, use.conv.out_channels) for n in macs)
        layers.append(SkipLayer(use.name, True, settings.gate, macs, spent))
    if not replaced:
        reasons = sorted({layer.reason for layer in layers}) or ["the network has no Conv2d"]
        raise ConversionError(
            f"'skip': no convolution of {type(teacher).__name__} can get a gate ({'; '.join(reasons)}).",
            hint="Widen skip.include.",
        )
    replace(network, replaced)
    net = SkipPair(network, tape).eval()
    with net.all_open():
        check_conversion(net, probe, expected, setting="skip")
        _check_moved(net, probe, moved)
    return SkipConversion(net, Work(tuple(layers)))


def _check_moved(net: SkipPair, probe: Tensor, expected: list[Tensor]) -> None:
    """With all gates open, a delta step on another frame is the teacher too."""
    with torch.no_grad():
        _, state = net.keyframe(probe.clone())

    class Other(StepPair):
        def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
            return net.delta(-x, state)

        def delta(self, x: Tensor, found: State) -> tuple[Tensor, State]:
            return net.delta(-x, {**state, **found})

    check_conversion(Other(), probe, expected, setting="skip")
