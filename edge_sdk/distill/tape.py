"""What the converted layers of one network share during a pass: its purpose, its state, and how numbers are rounded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor, nn

from edge_sdk.distill.steps import State

if TYPE_CHECKING:
    from edge_sdk.distill.delta import Joined

Form = Literal["published", "telescoped"]


class Pass(Enum):
    """What a forward pass through the converted network is for."""

    PLAIN = "plain"  # the teacher, nothing kept
    KEYFRAME = "keyframe"  # the teacher, writing the state
    REFERENCE = "reference"  # the teacher on a later frame, noting each layer's true change
    DELTA = "delta"  # the student, reading the state


class Rounding(Protocol):
    """What an engine of lower precision would make of the numbers, see :mod:`edge_sdk.distill.quantization`."""

    def start(self, mode: Pass) -> None:
        """A pass begins."""

    def taught(self, key: str, join: Joined, x: Tensor) -> Tensor:
        """The teacher's output for ``x`` at the join with state entry ``key``."""

    def answer(self, student: nn.Module, x: Tensor, *, at_keyframe: bool) -> Tensor:
        """The student's answer to ``x``, in the keyframe or in the delta step."""

    def kept(self, key: str, student: nn.Module | None, value: Tensor) -> Tensor:
        """A state tensor as the delta step reads it; ``student`` is the one whose residual it is."""


@dataclass
class Tape:
    """The state of one pass, shared by all converted layers of one network.

    A layer called several times in a pass has one entry a call, told apart by the order of calls. With ``rounding``,
    what teacher and students compute and what is kept passes through it.
    """

    form: Form = "telescoped"
    mode: Pass = Pass.PLAIN
    state: State = field(default_factory=dict)
    changes: State = field(default_factory=dict)
    rounding: Rounding | None = None
    _calls: Counter[str] = field(default_factory=Counter)

    def start(self, mode: Pass, form: Form, state: State) -> None:
        """Begin a pass that reads or fills ``state``."""
        self.mode, self.form, self.state, self.changes = mode, form, state, {}
        self._calls = Counter()
        if self.rounding is not None:
            self.rounding.start(mode)

    def key(self, label: str) -> str:
        """Entry of this call of layer ``label``."""
        self._calls[label] += 1
        count = self._calls[label]
        return label if count == 1 else f"{label}.call{count}"

    def taught(self, key: str, join: Joined, x: Tensor) -> Tensor:
        """The teacher's output at a join."""
        return join.teacher_of(x) if self.rounding is None else self.rounding.taught(key, join, x)

    def answer(self, student: nn.Module, x: Tensor, *, at_keyframe: bool) -> Tensor:
        """The student's answer."""
        return (
            student(x) if self.rounding is None else self.rounding.answer(student, x, at_keyframe=at_keyframe)
        )

    def kept(self, key: str, student: nn.Module | None, value: Tensor) -> Tensor:
        """A state tensor."""
        return value if self.rounding is None else self.rounding.kept(key, student, value)
