"""How far a build is: TensorRT's nested phases as one number that never goes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Phase:
    parent: str
    steps: int
    done: int = 0
    # Of the parts that run below the step that is under way.
    parts: dict[str, _Phase] = field(default_factory=dict)

    def share(self) -> float:
        below = max((part.share() for part in self.parts.values()), default=0.0)
        return min((self.done + min(below, 1.0)) / max(self.steps, 1), 1.0)


class Fraction:
    """Share of a build that is done, from the events of ``IProgressMonitor``.

    TensorRT says in advance how many steps the outermost phase has; phases inside it are parts of one of its steps.
    Steps differ in length, so the time left is an estimate.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._root: _Phase | None = None
        self.value = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> float:
        """A phase begins; returns the share done, 0-1."""
        made = _Phase(parent or "", steps)
        self._phases[phase] = made
        above = self._phases.get(parent or "")
        if above is not None:
            above.parts[phase] = made
        elif self._root is None:
            self._root = made
        return self._advance()

    def step(self, phase: str, step: int) -> float:
        """Step number ``step``, counted from 0, of a phase is complete."""
        found = self._phases.get(phase)
        if found is not None:
            found.done = max(found.done, step + 1)
            found.parts.clear()
        return self._advance()

    def finish(self, phase: str) -> float:
        """A phase is over, also one that left out steps."""
        found = self._phases.pop(phase, None)
        if found is not None:
            found.done = found.steps
        return self._advance()

    def _advance(self) -> float:
        if self._root is not None:
            self.value = max(self.value, self._root.share())
        return self.value


def make_monitor(trt: Any, report: Callable[[float], bool]) -> Any:
    """An ``IProgressMonitor`` that reports the share done.

    Args:
        report: called with the share, 0-1; ``False`` stops the build.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.fraction = Fraction()
            self.going = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.going = report(self.fraction.start(phase_name, parent_phase, num_steps)) and self.going

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.going = report(self.fraction.step(phase_name, step)) and self.going
            return self.going

        def phase_finish(self, phase_name: str) -> None:
            self.going = report(self.fraction.finish(phase_name)) and self.going

    return Monitor()
