"""State that a delta step adds to, such as a clip's accumulator: what is rounded there is never forgotten.

A tensor is added to where its next value depends on its last one by a way without a convolution: a sum, an LSTM's cell,
a ring that is shifted, a value that is kept where nothing changed. What comes back through convolutions alone is a
network's own memory, which INT8 kernels read and write as any other map.

What is rewritten and goes into such a tensor is held as exactly: of the differences x_t - x_{t-1} that a gated layer
adds up, each rounding of the kept x_{t-1} would stay in the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from edge_sdk.manifest import is_state, state_input, state_name, state_output

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_Edges = Mapping[str, set[str]]


@dataclass(frozen=True)
class Accumulators:
    """What must not be rounded in a lower precision.

    Attributes:
        state: names of the state tensors that are added to, and of those rewritten ones that go into them.
        tensors: everything that the delta step computes between the last value of a tensor that is added to and its
            next value.
    """

    state: frozenset[str] = frozenset()
    tensors: frozenset[str] = frozenset()

    def nodes_of(self, model: onnx.ModelProto) -> list[onnx.NodeProto]:
        """The nodes of a delta step that compute one of ``tensors``."""
        return [node for node in model.graph.node if self.tensors.intersection(node.output)]


def accumulators_of(delta: onnx.ModelProto) -> Accumulators:
    """What a delta step adds to, by its graph alone, in any precision."""
    written = {value.name for value in delta.graph.output}
    read = [state_name(value.name) for value in delta.graph.input if is_state(value.name)]
    rewritten = [name for name in read if state_output(name) in written]
    onward, back = _edges(delta, through_convolutions=False)
    after = {name: _reached(onward, state_input(name)) for name in rewritten}
    before = {name: _reached(back, state_output(name)) for name in rewritten}
    leads = {name: {other for other in rewritten if state_output(other) in after[name]} for name in rewritten}
    closed = {name: _reached(leads, *leads[name]) for name in rewritten}
    added_to = [name for name in rewritten if name in closed[name]]
    tensors = {
        tensor
        for name in added_to
        for other in added_to
        if other in closed[name] and name in closed[other]
        for tensor in after[name] & before[other]
    }
    everywhere, _ = _edges(delta, through_convolutions=True)
    sums = {state_output(name) for name in added_to}
    feeding = {name for name in rewritten if sums & _reached(everywhere, state_input(name))}
    return Accumulators(
        frozenset(feeding.union(added_to)), frozenset(tensors - {state_input(n) for n in read})
    )


def _edges(model: onnx.ModelProto, *, through_convolutions: bool) -> tuple[_Edges, _Edges]:
    """From each tensor to those that are computed from it, and back."""
    onward: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    for node in model.graph.node:
        if through_convolutions or node.op_type not in _CONVOLUTIONS:
            for name in filter(None, node.input):
                onward.setdefault(name, set()).update(node.output)
                for output in node.output:
                    back.setdefault(output, set()).add(name)
    return onward, back


def _reached(edges: _Edges, *starts: str) -> set[str]:
    """Everything that an edge after another leads to, the starts included."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += edges.get(name, ())
    return found
