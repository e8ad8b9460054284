"""Quantisation-aware fine-tuning: students learn under the rounding that an INT8 engine will do to the pair.

Rounded, in symmetric int8 of -127 to 127 with straight-through gradients: the weights of convolutions (a scale for each
output channel), their inputs, what the teacher puts into a join, and the state. That is TensorRT's form of
:mod:`edge_sdk.compile.quantize`, and a test holds the two together. ONNX Runtime's form rounds more of what lies
between, but is twice as fine after a ReLU. Additions inside a student's block stay exact here.

The pair is trained as it is deployed. The published form runs a student over the difference of two frames, which no
INT8 engine ever sees and whose range is another; rounding is not linear, so that the two forms differ under it. While a
simulation is installed, :class:`edge_sdk.distill.delta.DeltaNet` therefore computes z_t = g(x_t) + [z_0 - g(x_0)]. The
two steps are graphs of their own with scales of their own, so x_0 and x_t are rounded over separate ranges, and what is
rounded away at the keyframe does not cancel where nothing moves. What students learn from, the teacher's output and
changes on the later frame, is exact. What the teacher computes in the two steps is rounded as it will be: z_0 and
g(x_0) read one rounded x_0, and most of its error cancels between them. With an exact z_0 students would fight an
error that is not there.

Nothing of it stays: ``student.pt`` holds plain float weights, and calibration finds the ranges of the deployed pair.
torch.ao's observers are not used, because torch means to remove them; the operators under them are torch's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from edge_sdk.distill.delta import DeltaBlock, DeltaConv2d, DeltaNet, Joined
from edge_sdk.distill.delta_recipe import QuantizationSettings
from edge_sdk.distill.steps import State
from edge_sdk.distill.tape import Pass
from edge_sdk.errors import RecipeError

LARGEST = 127
_STEPS = {Pass.KEYFRAME: "keyframe", Pass.DELTA: "delta"}

# Which tensor: the step, a state entry or layer, what it is to that, and the student or the number of the call.
Place = tuple[str, str, str, str]


def scale_of(largest: Tensor) -> Tensor:
    """Scale of symmetric int8 that reaches ``largest`` (float32, any shape); 1 for zero, as ONNX Runtime has it."""
    scale = largest / LARGEST
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)


def round_weight(weight: Tensor) -> Tensor:
    """A convolution's weight (Cout, Cin / groups, kh, kw) on its INT8 grid, a scale for each output channel."""
    scale = scale_of(weight.detach().float().abs().amax(dim=(1, 2, 3)))
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    rounded = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -LARGEST, LARGEST)
    return rounded.to(weight.dtype)


class _RoundedWeight(nn.Module):
    """The parametrisation of a weight while its simulation rounds."""

    def __init__(self, simulation: SimulatedInt8) -> None:
        super().__init__()
        # In a list, so that the simulation does not become part of every layer.
        self._simulation = [simulation]

    def forward(self, weight: Tensor) -> Tensor:
        simulation = self._simulation[0]
        return round_weight(weight) if simulation.rounds and simulation.step else weight


class SimulatedInt8(nn.Module):
    """INT8 rounding of one network's two steps, and the ranges it found; its buffers belong in a checkpoint.

    Installed from the start, and inert outside of :meth:`training_step` and :meth:`rounding`.

    Args:
        net: the network; changed in place until :meth:`remove`.
        settings: when, and what not.
        steps: of the training.
        example: one input (1, 3, h, w) of the network.

    Raises:
        RecipeError: a pattern of ``quantization.keep`` matches no convolution, or all students' are kept.
    """

    largest: Tensor
    zero: Tensor

    def __init__(self, net: DeltaNet, settings: QuantizationSettings, *, steps: int, example: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.start_step = int(settings.start * steps)
        # At least one step finds the ranges that it rounds over.
        self.freeze_step = max(int(settings.freeze * steps), self.start_step + 1)
        self.rounds, self.observes, self.step, self._net = False, False, "", [net]
        self._calls: Counter[tuple[str, str]] = Counter()
        self._index: dict[Place, int] = {}
        self._names = {id(m): name for name, m in net.network.named_modules()}
        last = _last_convolutions(net, example) if settings.keep_last else set()
        self._chosen = _chosen(net, settings.keep, last)
        self._handles: list[RemovableHandle] = []
        for conv in self._chosen.values():
            parametrize.register_parametrization(conv, "weight", _RoundedWeight(self))
            if not isinstance(conv, DeltaConv2d):  # whose teacher and students have inputs of their own
                self._handles.append(conv.register_forward_pre_hook(self._round_input, with_kwargs=True))
        net.round_by(self)
        self._find_places(example)
        self.register_buffer("largest", torch.zeros(len(self._index)))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32), persistent=False)

    def _find_places(self, example: Tensor) -> None:
        """Run a pair with all candidates, so that every tensor to round has its place before training begins."""
        net = self._net[0]
        state: State = {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for unit in net.units.values():
                unit.training = True
            for mode in _STEPS:
                net.run(mode, example, state, "published")
            for unit in net.units.values():
                unit.training = False

    def _round_input(self, conv: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (self._read_by(conv, args[0] if args else kwargs["input"]),), {}

    def _read_by(self, conv: nn.Module, x: Tensor) -> Tensor:
        """``x`` as a convolution reads it."""
        name = self._names[id(conv)]
        if name not in self._chosen:
            return x
        self._calls[self.step, name] += 1
        return self._through((self.step, name, "in", str(self._calls[self.step, name])), x)

    def _through(self, place: Place, x: Tensor) -> Tensor:
        """``x`` as int8 holds it, after its range was looked at; each only while it is on."""
        if not self.step:
            return x
        index = self._index.setdefault(place, len(self._index))
        if self.observes:
            with torch.no_grad():
                found, before = x.detach().abs().amax().float(), self.largest[index]
                moved = torch.lerp(before, found, self.settings.momentum)
                self.largest[index] = torch.where(before > 0, moved, found)
        if not self.rounds:
            return x
        scale = scale_of(self.largest[index : index + 1])
        rounded = torch.fake_quantize_per_tensor_affine(x.float(), scale, self.zero, -LARGEST, LARGEST)
        return rounded.to(x.dtype)

    def start(self, mode: Pass) -> None:
        """A pass begins; one that is neither of the two steps is exact."""
        self.step = _STEPS.get(mode, "")
        self._calls.clear()

    def taught(self, key: str, join: Joined, x: Tensor) -> Tensor:
        """The teacher's output at a join, rounded."""
        if isinstance(join, DeltaConv2d):
            x = self._read_by(join, x)
        return self._through((self.step, key, "out", ""), join.teacher_of(x))

    def answer(self, student: nn.Module, x: Tensor, *, at_keyframe: bool) -> Tensor:
        """The student's answer with the numbers of the keyframe or of the delta step."""
        before, self.step = self.step, "keyframe" if at_keyframe else "delta"
        try:
            return student(x)
        finally:
            self.step = before

    def kept(self, key: str, student: nn.Module | None, value: Tensor) -> Tensor:
        """A state tensor, rounded as it is stored."""
        name = "" if student is None else self._names[id(student)]
        return self._through(("both", key, "kept", name), value)

    @contextmanager
    def training_step(self, step: int) -> Iterator[None]:
        """Observe and round as the settings say for training step ``step``, counted from 0."""
        self.observes, self.rounds = step < self.freeze_step, step >= self.start_step
        try:
            yield
        finally:
            self.observes = self.rounds = False

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Round over the ranges as they stand, for measuring."""
        self.rounds = True
        try:
            yield
        finally:
            self.rounds = False

    def remove(self) -> None:
        """Give the network back its plain layers, with the float weights under the rounding."""
        for handle in self._handles:
            handle.remove()
        for conv in self._chosen.values():
            parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
        self._chosen, self._handles = {}, []
        self._net[0].round_by(None)


def _chosen(net: DeltaNet, keep: tuple[str, ...], last: set[int]) -> dict[str, nn.Conv2d]:
    """The convolutions to round, by name."""
    named = net.network.named_modules()
    # Not where another parametrisation already makes the weight.
    found = {name: m for name, m in named if isinstance(m, nn.Conv2d) and "weight" in m._parameters}
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise RecipeError(
                f"'quantization.keep': the pattern '{pattern}' matches no convolution.",
                hint=f"The network's convolutions are: {', '.join(found)}.",
            )
    chosen = {
        name: m
        for name, m in found.items()
        if id(m) not in last and not any(fnmatchcase(name, pattern) for pattern in keep)
    }
    trained = {id(parameter) for parameter in net.student_parameters()}
    if trained.isdisjoint(id(m.weight) for m in chosen.values()):
        raise RecipeError(
            "'quantization': no student convolution is left to round.",
            hint="Shorten quantization.keep, or leave 'quantization' out of the recipe.",
        )
    return chosen


def _last_convolutions(net: DeltaNet, example: Tensor) -> set[int]:
    """By identity, the last convolution that runs; where a join ends the network, its teacher's and each student's."""
    ended: list[nn.Module] = []

    def note(module: nn.Module, args: object, out: object) -> None:
        ended.append(module)

    watched = [m for m in net.network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | Joined)]
    handles = [m.register_forward_hook(note) for m in watched]
    with torch.no_grad():
        _, state = net.keyframe(example)
        net.delta(example, state)
    for handle in handles:
        handle.remove()
    join = ended[-1]
    parts = [*join.students()] if isinstance(join, Joined) else []
    if isinstance(join, DeltaBlock):
        parts.append(join.block)
    inside = [[m for m in part.modules() if isinstance(m, nn.Conv2d)] for part in parts]
    return {id(join), *(id(convs[-1]) for convs in inside if convs)}
