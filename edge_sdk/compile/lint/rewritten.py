"""Rules about state that a delta step rewrites: what it adds up must not be rounded at every step."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from edge_sdk.compile.lint.finding import Finding, Target
from edge_sdk.compile.lint.graph import GraphView, type_name
from edge_sdk.manifest import state_input, state_name

_ROUNDED = (
    TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.UINT8,
)  # fmt: skip
_KEEP = "Keep it in float32: quantise or convert the float32 graph again with edge-sdk build."


def sums(view: GraphView, target: Target) -> Iterator[Finding]:
    """State that is added to is float32, and so is the addition."""
    names = {state_input(name) for name in view.sums.state} - _handed_on(view)
    found = False
    for value in view.inputs:
        if value.name in names and value.elem_type in _ROUNDED:
            found = True
            what = f"the step adds to this state, and it is {type_name(value.elem_type)}: what it rounds adds up too"
            yield target.on("state-sum", "warning", value.name, what, _KEEP)
    for node in [] if found else view.sums.nodes_of(view.model):
        if any(view.elem_type(name) in _ROUNDED for name in node.output):
            what = "it adds to state in less than float32: what it rounds adds up from step to step"
            yield target.at("state-sum", "warning", node, what, _KEEP)
            return  # one names them all: they are repaired together


def copies(view: GraphView, target: Target) -> Iterator[Finding]:
    """A step does not write state that it only hands on."""
    for name in sorted(_handed_on(view)):
        what = "the step writes it as it received it, which costs a copy at each frame"
        repair = f"Leave '{state_name(name)}' out of the state that the delta step returns."
        yield target.on("state-copied", "warning", name, what, repair)


def _handed_on(view: GraphView) -> set[str]:
    """Inputs of the state tensors that are written as they came."""
    ends = {state_input(state_name(value.name)): value.name for value in view.outputs if value.is_state}
    return {name for name, end in ends.items() if view.origin(end) == name}


RULES = (sums, copies)
