"""The state of one stream: its tensors' buffers, and how old their content is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np

from edge_sdk.bundle import state_input, state_output
from edge_sdk.runtime.engine import Buffer
from edge_sdk.tensors import TensorSpec


class StreamState:
    """Buffers of all state tensors, allocated once.

    The keyframe step writes the memory that the delta step reads. A tensor that the delta step also rewrites has two
    buffers: a step cannot write what it still reads. Such a stream has two slots and the deltas alternate between
    them; the tensors that only the keyframe writes are the same memory in both.

    Args:
        specs: the state tensors, named without prefix.
        rewritten: names of those that the delta step rewrites.
        allocate: makes one buffer.
    """

    def __init__(
        self,
        specs: Iterable[TensorSpec],
        rewritten: Collection[str],
        allocate: Callable[[TensorSpec], Buffer],
    ) -> None:
        first = {spec.name: allocate(spec) for spec in specs}
        second = {name: allocate(first[name].spec) for name in first if name in rewritten}
        self._slots = (first, first | second) if second else (first,)
        self.size_bytes = sum(buffer.spec.size_bytes for buffer in (*first.values(), *second.values()))
        self.rewritten = tuple(second)
        self.reset()

    def reset(self) -> None:
        """No keyframe has been seen; the content of the buffers counts for nothing."""
        self.valid = False
        self.age = 0
        self.slot = 0

    @property
    def slots(self) -> range:
        """The slots that a delta step can find the state in."""
        return range(len(self._slots))

    def keyframe_buffers(self) -> dict[str, Buffer]:
        """What a keyframe step writes, by graph output name: always the first slot."""
        return {state_output(name): buffer for name, buffer in self._slots[0].items()}

    def delta_buffers(self, slot: int) -> dict[str, Buffer]:
        """What a delta step reads from ``slot`` and writes to the next one, by graph input and output name."""
        target = self._slots[(slot + 1) % len(self._slots)]
        read = {state_input(name): buffer for name, buffer in self._slots[slot].items()}
        return read | {state_output(name): target[name] for name in self.rewritten}

    def keyframe_done(self) -> None:
        """A keyframe step has written the state."""
        self.valid = True
        self.age = 0
        self.slot = 0

    def taken_over(self, age: int) -> None:
        """A keyframe step beside the frames has written the state, ``age`` frames ago."""
        self.valid = True
        self.age = age
        self.slot = 0

    def delta_done(self) -> None:
        """A delta step has read, and perhaps rewritten, the state."""
        self.age += 1
        self.slot = (self.slot + 1) % len(self._slots)

    def skipped(self, frames: int = 1) -> None:
        """Frames went by without a step."""
        self.age += frames


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of ``array`` that nobody can write through."""
    view = array.view()
    view.flags.writeable = False
    return view
