"""Delta Distillation (Habibian et al., ECCV 2022, arXiv 2203.09594) and its telescoped form.

Published: at the keyframe z_0 = W * x_0; afterwards z_t = z_0 + g(x_t - x_0), keeping x_0 and z_0 of every layer.
Telescoped: g is linear and its bias cancels, so z_t = g(x_t) + r with r = z_0 - g(x_0), one tensor a layer, no
subtraction a frame. Both forms are here: training uses the published one (one student pass sees the difference once),
deployment the telescoped one, and a test holds them equal. Rounding is not linear: where there is one (see
:mod:`edge_sdk.distill.quantization`), training too computes what the telescoped form does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edge_sdk.distill.candidates import GATE_START, Choice, Chooser, Gate
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.distill.tape import Form, Pass, Rounding, Tape


@dataclass(frozen=True)
class Candidate:
    """One thing that a unit's student may be.

    Attributes:
        name: as recipes, cost tables and checkpoints have it (:mod:`edge_sdk.distill.kinds`).
        part: the submodule that holds the student; the published two have names of their own, as checkpoints have them.
        student: the module; ``None`` where the keyframe's output is kept.
    """

    name: str
    part: str
    student: nn.Module | None


class Joined(nn.Module):
    """A unit: a piece of the teacher with a student. What either of the two forms does with them in each pass.

    A subclass says what the teacher is; ``label`` and ``tape`` place the unit's state, one entry for each of its
    ``calls`` in a pass. Of several candidates training draws one at a time (``g_gate``), and the likeliest is deployed.
    """

    label: str
    calls: int = 1
    g_gate: Chooser | None
    _parts: dict[str, str]
    _tape: list[Tape]

    def _take(self, label: str, tape: Tape, candidates: Sequence[Candidate]) -> None:
        """Begin with these candidates; a choice is learnt where there are several."""
        self.label, self._tape = label, [tape]
        self._parts = {candidate.name: candidate.part for candidate in candidates}
        for candidate in candidates:
            if candidate.student is not None:
                self.add_module(candidate.part, candidate.student)
        self.g_gate = _chooser(candidates) if len(candidates) > 1 else None

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher's output for ``x``."""
        raise TypeError(f"{type(self).__name__} defines no teacher")

    def restored(self) -> nn.Module:
        """The teacher's part by itself."""
        raise TypeError(f"{type(self).__name__} defines no teacher")

    @property
    def candidates(self) -> tuple[str, ...]:
        """Names of what the student may be."""
        return tuple(self._parts)

    @property
    def chosen(self) -> str:
        """Name of the candidate that stands."""
        return self.candidates[0 if self.g_gate is None else self.g_gate.best]

    @property
    def student(self) -> nn.Module | None:
        """The candidate that stands; ``None`` where the keyframe's output is kept."""
        return self.student_as(self.chosen)

    def student_as(self, name: str) -> nn.Module | None:
        """The candidate of that name; ``None`` where it keeps the keyframe's output."""
        return self._modules.get(self._parts[name])

    def keep(self, name: str) -> None:
        """Drop the choice and all candidates but this one."""
        for other, part in self._parts.items():
            if other != name and part in self._modules:
                self._modules[part] = None
        self._parts = {name: self._parts[name]}
        self.g_gate = None

    def students(self) -> list[nn.Module]:
        """Everything that is trained for the student: candidates and choice; nothing where all is kept."""
        modules = [self.student_as(name) for name in self._parts]
        return [part for part in (*modules, self.g_gate) if part is not None]

    def mixed(self, x: Tensor, of: Callable[[nn.Module | None, Tensor], Tensor]) -> Tensor:
        """``of`` the student and ``x``; in training of all candidates under one draw of the choice."""
        gate = self.g_gate
        if gate is None or gate.fixed is not None or not self.training:
            return of(self.student, x)
        students = [self.student_as(name) for name in self._parts]
        # What a block does to its input in place, the last of them does once; those before it work on copies.
        last = max(index for index, student in enumerate(students) if student is not None)
        answers = [of(each, x if index == last else self.spare(x)) for index, each in enumerate(students)]
        terms = [weight * answer for weight, answer in zip(gate.weights(), answers, strict=True)]
        return sum(terms[1:], terms[0])

    def change_of(self, x: Tensor, x_key: Tensor) -> Tensor:
        """The student's answer to the change from ``x_key`` to ``x``; a scalar 0 where the output is kept."""
        return self.mixed(x, lambda s, given: x.new_zeros(()) if s is None else self._change(s, given, x_key))

    def _change(self, student: nn.Module, x: Tensor, x_key: Tensor) -> Tensor:
        return student(x) - student(self.spare(x_key))

    def spare(self, x: Tensor) -> Tensor:
        """``x`` for a run whose input is needed again: a copy, because layers may work in place."""
        return x.clone()

    def joined(self, x: Tensor) -> Tensor:
        """The output in the current pass."""
        tape = self._tape[0]
        if tape.mode is Pass.PLAIN:
            return self.teacher_of(x)
        if not self.students():
            return self._kept(tape, x)
        key = tape.key(self.label)
        if tape.form == "telescoped":
            return self._telescoped(tape, key, x)
        return self._published(tape, key, x)

    def _kept(self, tape: Tape, x: Tensor) -> Tensor:
        """The same in both forms: whatever fed nothing else vanishes from the delta graph."""
        if tape.mode is Pass.REFERENCE:
            return self.teacher_of(x)
        key = tape.key(self.label)
        # Copies: what follows may work in place.
        if tape.mode is Pass.KEYFRAME:
            out = self.teacher_of(x)
            tape.state[key] = tape.kept(key, None, out.clone())
            return out
        return tape.state[key].clone()

    def _telescoped(self, tape: Tape, key: str, x: Tensor) -> Tensor:
        student = self.student
        if tape.mode is Pass.DELTA:
            if student is None:
                return tape.state[key].clone()
            return tape.answer(student, x, at_keyframe=False) + tape.state[key]
        answer = None if student is None else tape.answer(student, self.spare(x), at_keyframe=True)
        z = tape.taught(key, self, x)
        tape.state[key] = tape.kept(key, student, z.clone() if answer is None else z - answer)
        return z

    def _published(self, tape: Tape, key: str, x: Tensor) -> Tensor:
        x_key, z_key = f"{key}.x", f"{key}.z"
        if tape.mode is Pass.DELTA and tape.rounding is not None:
            z = self.mixed(x, lambda student, given: self._rejoined(tape, key, student, given))
            tape.changes[key] = z - tape.state[z_key]
            return z
        if tape.mode is Pass.DELTA:
            change = self.change_of(x, tape.state[x_key])
            tape.changes[key] = change
            return tape.state[z_key] + change
        if tape.mode is Pass.REFERENCE:
            z = self.teacher_of(x)
            tape.changes[key] = z - tape.state[z_key]
            return z
        # Copies: the teacher's block and what follows may work in place, as activations often do.
        tape.state[x_key] = x.clone()
        z = tape.taught(key, self, x)
        tape.state[z_key] = z.clone()
        return z

    def _rejoined(self, tape: Tape, key: str, student: nn.Module | None, x: Tensor) -> Tensor:
        """The telescoped form's arithmetic over the published form's state, so that both answers have gradients."""
        z_key = tape.state[f"{key}.z"]
        if student is None:
            return tape.kept(key, None, z_key).clone()
        at_key = tape.answer(student, self.spare(tape.state[f"{key}.x"]), at_keyframe=True)
        residual = tape.kept(key, student, z_key - at_key)
        return tape.answer(student, x, at_keyframe=False) + residual


def _chooser(candidates: Sequence[Candidate]) -> Chooser:
    """The published gate for the published two, whose checkpoints hold it; else a choice with the same start."""
    if [candidate.part for candidate in candidates] == ["g_full", "g_low"]:
        return Gate()
    return Choice([GATE_START if candidate.name == "full" else 0.0 for candidate in candidates])


class DeltaConv2d(nn.Conv2d, Joined):
    """A teacher convolution (its own ``weight`` and ``bias``) with its student candidates, linear and free of bias.

    It stays an ``nn.Conv2d``, so that a network that reads its layers' attributes goes on working.
    """

    def __init__(
        self, conv: nn.Conv2d, label: str, tape: Tape, candidates: Sequence[Candidate], *, calls: int = 1
    ) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
        )  # fmt: skip
        # The very parameters: a weight tied to another layer's stays tied.
        self.weight, self.bias = conv.weight, conv.bias
        self.calls = calls
        self._take(label, tape, candidates)

    def restored(self) -> nn.Conv2d:
        """The teacher layer by itself."""
        conv = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,  # type: ignore[arg-type]
            self.groups, bias=self.bias is not None, padding_mode=self.padding_mode,
        )  # fmt: skip
        conv.weight, conv.bias = self.weight, self.bias
        return conv

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher layer."""
        return nn.Conv2d.forward(self, x)

    def spare(self, x: Tensor) -> Tensor:
        """``x`` itself: a convolution leaves its input as it is."""
        return x

    def _change(self, student: nn.Module, x: Tensor, x_key: Tensor) -> Tensor:
        """One pass over the difference, as published."""
        return student(x - x_key)

    def _rejoined(self, tape: Tape, key: str, student: nn.Module | None, x: Tensor) -> Tensor:
        # A copy: what follows may work in place on x, whose values the student's gradient needs.
        return super()._rejoined(tape, key, student, x.clone())

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the current pass; the argument is named as in ``nn.Conv2d``."""
        return self.joined(input)


class DeltaBlock(Joined):
    """A block of the teacher (several layers, or any module) with one student for all of it, joined where both end.

    The student may be nonlinear: the difference is of its outputs, z_t = s(x_t) + z_0 - s(x_0). Fewer joins than one a
    layer mean less state to read and fewer additions that an engine cannot fuse. What changes slowly, such as coarse
    context, may be kept.
    """

    def __init__(self, block: nn.Module, label: str, tape: Tape, candidates: Sequence[Candidate]) -> None:
        super().__init__()
        self.block = block
        self._take(label, tape, candidates)

    def restored(self) -> nn.Module:
        """The teacher's block by itself."""
        return self.block

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher's block."""
        return self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output in the current pass."""
        return self.joined(x)


class DeltaNet(StepPair):
    """A converted network: its keyframe step is the teacher, its delta step the student layers plus residuals.

    Made by :func:`edge_sdk.distill.convert.to_delta`.

    Args:
        network: the network whose convolutions are :class:`DeltaConv2d` over ``tape``.
    """

    method = "delta"
    has_delta = True

    def __init__(self, network: nn.Module, tape: Tape) -> None:
        super().__init__()
        self.network = network
        self._tape = [tape]

    @property
    def layers(self) -> list[DeltaConv2d]:
        """The converted single convolutions, each once."""
        return [m for m in self.network.modules() if isinstance(m, DeltaConv2d)]

    @property
    def units(self) -> dict[str, Joined]:
        """The units by name, in the network's order."""
        return {m.label: m for m in self.network.modules() if isinstance(m, Joined)}

    @property
    def choice(self) -> dict[str, str]:
        """By unit, the candidate that stands."""
        return {label: unit.chosen for label, unit in self.units.items()}

    @property
    def joins(self) -> int:
        """How many times a pass joins a student: one state entry each in telescoped form."""
        return sum(unit.calls for unit in self.units.values() if unit.students())

    def round_by(self, rounding: Rounding | None) -> None:
        """Let students and state pass through ``rounding`` from now on; ``None`` ends it."""
        self._tape[0].rounding = rounding

    def student_parameters(self) -> list[nn.Parameter]:
        """The candidates' and the gates' parameters; all others are the teacher's."""
        parts = [part for unit in self.units.values() for part in unit.students()]
        return [parameter for part in parts for parameter in part.parameters()]

    def run(self, mode: Pass, x: Tensor, state: State, form: Form = "telescoped") -> tuple[Tensor, State]:
        """One pass; returns the output and each layer's change where the pass notes them."""
        tape = self._tape[0]
        tape.start(mode, form, state)
        try:
            return self.network(x), tape.changes
        finally:
            tape.start(Pass.PLAIN, form, {})

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's output and the state of every converted layer."""
        state: State = {}
        out, _ = self.run(Pass.KEYFRAME, x, state)
        return out, state

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's output; the state is only read."""
        out, _ = self.run(Pass.DELTA, x, state)
        return out, {}

    @contextmanager
    def each_as(self, index: int, *, computing: bool = False) -> Iterator[None]:
        """For a while, units take their candidate of this index, or their last.

        Args:
            computing: do not count what is kept.
        """
        before = {unit.g_gate: unit.g_gate.fixed for unit in self.units.values() if unit.g_gate is not None}
        for unit in self.units.values():
            able = [
                i
                for i, name in enumerate(unit.candidates)
                if not computing or unit.student_as(name) is not None
            ]
            if unit.g_gate is not None:
                unit.g_gate.fixed = able[min(index, len(able) - 1)]
        try:
            yield
        finally:
            for gate, fixed in before.items():
                gate.fixed = fixed

    def unused_state(self, x: Tensor) -> set[str]:
        """State tensors that the delta step's output for ``x`` does not depend on, whatever is still to be chosen."""
        with torch.enable_grad(), self.each_as(0, computing=True):
            _, state = self.keyframe(x)
            leaves = {name: value.detach().requires_grad_() for name, value in state.items()}
            out, _ = self.delta(x, dict(leaves))
            answers = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
            total = (
                torch.stack([t.sum() for t in answers]).sum()
                if answers
                else torch.zeros((), requires_grad=True)
            )
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {name for name, grad in zip(leaves, grads, strict=True) if grad is None}

    def keep_choices(self) -> DeltaNet:
        """Keep each unit's candidate that stands and drop the others, for deployment."""
        for unit in self.units.values():
            unit.keep(unit.chosen)
        return self
