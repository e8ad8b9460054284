"""Delta Distillation (Habibian et al., ECCV 2022, arXiv 2203.09594) and its telescoped form.

Published: at the keyframe z_0 = W * x_0; afterwards z_t = z_0 + g(x_t - x_0), keeping x_0 and z_0 of every layer.
Telescoped: g is linear and its bias cancels, so z_t = g(x_t) + r with r = z_0 - g(x_0), one tensor a layer, no
subtraction a frame. Both forms are here: training uses the published one (one student pass sees the difference once),
deployment the telescoped one, and a test holds them equal. Rounding is not linear: where there is one (see
:mod:`edge_sdk.distill.quantization`), training too computes what the telescoped form does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from edge_sdk.distill.candidates import Gate
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.distill.tape import Form, Pass, Rounding, Tape
from edge_sdk.errors import ConversionError


class Joined:
    """A piece of the teacher with a student: what either of the two forms does with them in each pass.

    A subclass says what teacher and student are; ``label`` and ``tape`` place its state, one entry for each of its
    ``calls`` in a pass.
    """

    label: str
    calls: int = 1
    _tape: list[Tape]

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher's output for ``x``."""
        raise TypeError(f"{type(self).__name__} defines no teacher")

    @property
    def student(self) -> nn.Module:
        """The student, the chosen one where there are two."""
        raise TypeError(f"{type(self).__name__} defines no student")

    def mixed(self, of: Callable[[nn.Module], Tensor]) -> Tensor:
        """``of`` the student; in training of both candidates under one draw of the gate."""
        return of(self.student)

    def change_of(self, x: Tensor, x_key: Tensor) -> Tensor:
        """The student's answer to the change from ``x_key`` to ``x``."""
        return self.student(x) - self.student(self.spare(x_key))

    def spare(self, x: Tensor) -> Tensor:
        """``x`` for a run whose input is needed again: a copy, because layers may work in place."""
        return x.clone()

    def students(self) -> list[nn.Module]:
        """Everything that is trained for the student: candidates and gate; nothing where there is none."""
        return []

    def joined(self, x: Tensor) -> Tensor:
        """The output in the current pass."""
        tape = self._tape[0]
        if tape.mode is Pass.PLAIN:
            return self.teacher_of(x)
        key = tape.key(self.label)
        if tape.form == "telescoped":
            return self._telescoped(tape, key, x)
        return self._published(tape, key, x)

    def _telescoped(self, tape: Tape, key: str, x: Tensor) -> Tensor:
        if tape.mode is Pass.DELTA:
            return tape.answer(self.student, x, at_keyframe=False) + tape.state[key]
        student = tape.answer(self.student, self.spare(x), at_keyframe=True)
        z = tape.taught(key, self, x)
        tape.state[key] = tape.kept(key, self.student, z - student)
        return z

    def _published(self, tape: Tape, key: str, x: Tensor) -> Tensor:
        x_key, z_key = f"{key}.x", f"{key}.z"
        if tape.mode is Pass.DELTA and tape.rounding is not None:
            z = self.mixed(lambda student: self._rejoined(tape, key, student, x))
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

    def _rejoined(self, tape: Tape, key: str, student: nn.Module, x: Tensor) -> Tensor:
        """The telescoped form's arithmetic over the published form's state, so that both answers have gradients."""
        at_key = tape.answer(student, self.spare(tape.state[f"{key}.x"]), at_keyframe=True)
        residual = tape.kept(key, student, tape.state[f"{key}.z"] - at_key)
        return tape.answer(student, x, at_keyframe=False) + residual


class DeltaConv2d(nn.Conv2d, Joined):
    """A teacher convolution (its own ``weight`` and ``bias``) with its student candidates, linear and free of bias.

    It stays an ``nn.Conv2d``, so that a network that reads its layers' attributes goes on working.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        label: str,
        tape: Tape,
        full: nn.Module | None,
        low_rank: nn.Module | None,
        *,
        calls: int = 1,
    ) -> None:
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, bias=conv.bias is not None, padding_mode=conv.padding_mode,
        )  # fmt: skip
        # The very parameters: a weight tied to another layer's stays tied.
        self.weight, self.bias = conv.weight, conv.bias
        self.label, self.calls = label, calls
        self._tape = [tape]
        self.g_full, self.g_low = full, low_rank
        self.g_gate = Gate() if full is not None and low_rank is not None else None

    @property
    def student(self) -> nn.Module:
        """The chosen candidate."""
        gate_full = self.g_gate is not None and self.g_gate.full
        chosen = self.g_full if gate_full or self.g_low is None else self.g_low
        if chosen is None:
            raise ConversionError(f"layer {self.label}: expected at least one student candidate, got none.")
        return chosen

    def keep_choice(self) -> None:
        """Drop the gate and the candidate it did not choose."""
        if self.g_gate is not None:
            if self.g_gate.full:
                self.g_low = None
            else:
                self.g_full = None
            self.g_gate = None

    def students(self) -> list[nn.Module]:
        """The candidates that are still there, and the gate between them."""
        return [part for part in (self.g_full, self.g_low, self.g_gate) if part is not None]

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

    def change_of(self, x: Tensor, x_key: Tensor) -> Tensor:
        """One pass over the difference, as published; in training both candidates under the gate."""
        dx = x - x_key
        return self.mixed(lambda student: student(dx))

    def mixed(self, of: Callable[[nn.Module], Tensor]) -> Tensor:
        """``of`` the chosen candidate; in training of both under one draw of the gate."""
        if self.g_gate is None or self.g_full is None or self.g_low is None or not self.training:
            return of(self.student)
        gate = self.g_gate()
        return gate * of(self.g_full) + (1 - gate) * of(self.g_low)

    def _rejoined(self, tape: Tape, key: str, student: nn.Module, x: Tensor) -> Tensor:
        # A copy: what follows may work in place on x, whose values the student's gradient needs.
        return super()._rejoined(tape, key, student, x.clone())

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output in the current pass; the argument is named as in ``nn.Conv2d``."""
        return self.joined(input)


class DeltaBlock(nn.Module, Joined):
    """A block of the teacher (several layers) with a narrower block as its student, joined where both end.

    The student may be nonlinear: the difference is of its outputs, z_t = s(x_t) + z_0 - s(x_0). Fewer joins than one a
    layer mean less state to read and fewer additions that an engine cannot fuse.
    """

    def __init__(self, block: nn.Module, label: str, tape: Tape, student: nn.Module) -> None:
        super().__init__()
        self.block, self.g_block = block, student
        self.label = label
        self._tape = [tape]

    def students(self) -> list[nn.Module]:
        """The student's block."""
        return [self.g_block]

    def restored(self) -> nn.Module:
        """The teacher's block by itself."""
        return self.block

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher's block."""
        return self.block(x)

    @property
    def student(self) -> nn.Module:
        """The student's block."""
        return self.g_block

    def forward(self, x: Tensor) -> Tensor:
        """The block's output in the current pass."""
        return self.joined(x)


class KeptBlock(nn.Module, Joined):
    """A block of the teacher that only runs at keyframes; its output there is kept until the next one.

    For what changes slowly, such as coarse context. Whatever fed nothing else vanishes from the delta graph.
    """

    def __init__(self, block: nn.Module, label: str, tape: Tape) -> None:
        super().__init__()
        self.block = block
        self.label = label
        self._tape = [tape]

    def restored(self) -> nn.Module:
        """The teacher's block by itself."""
        return self.block

    def teacher_of(self, x: Tensor) -> Tensor:
        """The teacher's block."""
        return self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output in the current pass."""
        tape = self._tape[0]
        if tape.mode in (Pass.PLAIN, Pass.REFERENCE):
            return self.block(x)
        key = tape.key(self.label)
        # Copies: what follows may work in place.
        if tape.mode is Pass.KEYFRAME:
            out = self.block(x)
            tape.state[key] = tape.kept(key, None, out.clone())
            return out
        return tape.state[key].clone()


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
        """The converted single layers, each once."""
        return [m for m in self.network.modules() if isinstance(m, DeltaConv2d)]

    @property
    def joins(self) -> int:
        """How many times a pass joins a student: one state entry each in telescoped form."""
        return sum(m.calls for m in self.network.modules() if isinstance(m, Joined) and m.students())

    def round_by(self, rounding: Rounding | None) -> None:
        """Let students and state pass through ``rounding`` from now on; ``None`` ends it."""
        self._tape[0].rounding = rounding

    def student_parameters(self) -> list[nn.Parameter]:
        """The candidates' and the gates' parameters; all others are the teacher's."""
        owners = (m for m in self.network.modules() if isinstance(m, Joined))
        parts = [part for owner in owners for part in owner.students()]
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

    def unused_state(self, x: Tensor) -> set[str]:
        """State tensors that the delta step's output for ``x`` does not depend on."""
        with torch.enable_grad():
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
        """Keep each layer's chosen candidate and drop the gates, for deployment."""
        for layer in self.layers:
            layer.keep_choice()
        return self
