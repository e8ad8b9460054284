"""Rules across the two steps: what the keyframe step writes is what the delta step reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from edge_sdk.compile.lint.finding import Finding, Target
from edge_sdk.compile.lint.graph import DEQUANTIZE, QUANTIZE, GraphView, Value, label, type_name
from edge_sdk.manifest import StateForm, state_input, state_name

_INTEGERS = (TensorProto.INT8, TensorProto.UINT8)
_SAME = "Quantise both steps with one table of scales: a state tensor has one scale, fixed for the pair."


@dataclass(frozen=True)
class Quantised:
    """How a quantised state tensor is to be read.

    Args:
        node: the Q that writes it or the DQ that reads it; None for what a manifest says.
        scale, zero_point: the constants; None where the file does not fix them.
    """

    node: NodeProto | None
    scale: np.ndarray | np.generic | None
    zero_point: np.ndarray | np.generic | None

    def agrees(self, other: Quantised) -> bool:
        """Whether both turn bytes into the same numbers."""
        return _equal(self.scale, other.scale) and _equal(self.zero_point, other.zero_point)

    def __str__(self) -> str:
        where = f" in '{label(self.node)}'" if self.node is not None else ""
        return f"scale {_shown(self.scale)} and zero point {_shown(self.zero_point)}{where}"


def state_rules(keyframe: GraphView, delta: GraphView, target: Target) -> Iterator[Finding]:
    """Each state tensor that the delta step reads or rewrites, against the one that the keyframe step writes."""
    written = _written(keyframe)
    read = {state_name(value.name): value for value in delta.inputs if value.is_state}
    for name, value in read.items():
        source = written.get(name)
        if source is None:
            what = "the delta step reads it, the keyframe step does not write it"
            yield target.on("state-missing", "error", value.name, what, "Export the pair again.")
            continue
        yield from _compare(target, (keyframe, source, "keyframe"), (delta, value, "delta"))
    for name, value in _written(delta).items():
        if name in read:
            yield from _compare(target, (delta, value, "delta"), (delta, read[name], "delta"))
    for name in written:
        if name not in read:
            what = "the keyframe step writes it, the delta step does not read it"
            yield target.on(
                "state-unused", "warning", state_input(name), what, "Remove it from the keyframe step."
            )


def form_rules(keyframe: GraphView, forms: Mapping[str, StateForm], target: Target) -> Iterator[Finding]:
    """Each state tensor's scale in the keyframe step, against what the manifest tells whoever reads it outside."""
    for name, value in _written(keyframe).items():
        if value.elem_type not in _INTEGERS:
            continue
        made = _writer(keyframe, keyframe.origin(value.name))
        form = forms.get(name, StateForm())
        told = Quantised(None, np.float32(form.scale), np.int64(form.zero_point))
        if made is not None and not made.agrees(told):
            what = f"the manifest has it with {told}, the keyframe step writes it with {made}"
            yield target.on("state-form", "error", value.name, what, "Quantise the bundle again.")


Side = tuple[GraphView, Value, str]


def _written(view: GraphView) -> dict[str, Value]:
    return {state_name(v.name): v for v in view.outputs if v.is_state}


def _compare(target: Target, writer: Side, reader: Side) -> Iterator[Finding]:
    source_view, source, source_step = writer
    view, value, step = reader
    if source.elem_type != value.elem_type:
        what = (
            f"the {source_step} step writes it as {type_name(source.elem_type)}, the {step} step reads "
            f"{type_name(value.elem_type)}"
        )
        yield target.on(
            "state-dtype", "error", value.name, what, "Convert both steps with the same settings."
        )
        return
    if source.dims != value.dims:
        what = f"the {source_step} step writes it as {source.dims}, the {step} step reads {value.dims}"
        yield target.on("state-shape", "error", value.name, what, "Give it one layout in both steps.")
        return
    if value.elem_type in _INTEGERS:
        yield from _compare_scales(target, (source_view, source, source_step), (view, value, step))


def _compare_scales(target: Target, writer: Side, reader: Side) -> Iterator[Finding]:
    source_view, source, source_step = writer
    view, value, step = reader
    passed = source_view.origin(source.name)
    if source_view is view and passed == value.name:
        return  # handed on as it came
    made = _writer(source_view, passed)
    if made is None:
        what = f"the {source_step} step writes it as integers, and no QuantizeLinear says of which scale"
        yield target.on("state-scale", "error", value.name, what, "Let a QuantizeLinear write it.")
        return
    for node in view.readers(value.name):
        if node.op_type != DEQUANTIZE:
            what = f"it computes with the integers of state '{value.name}', no DequantizeLinear between"
            repair = f"Read it through a DequantizeLinear with {made}."
            yield target.at("state-scale", "error", node, what, repair, value.name)
        elif not made.agrees(found := _quantised(view, node)):
            what = f"the {step} step reads '{value.name}' with {found}, the {source_step} step writes it with {made}"
            yield target.at("state-scale", "error", node, what, _SAME, value.name)


def _writer(view: GraphView, name: str) -> Quantised | None:
    node = view.maker(name)
    return _quantised(view, node) if node is not None and node.op_type == QUANTIZE else None


def _quantised(view: GraphView, node: NodeProto) -> Quantised:
    zero = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int64)
    return Quantised(node, view.constant(node.input[1]), zero)


def _equal(one: np.ndarray | np.generic | None, other: np.ndarray | np.generic | None) -> bool:
    """Equal numbers; a constant that the file does not fix equals none."""
    if one is None or other is None:
        return False
    return bool(np.array_equal(np.ravel(one).astype(np.float64), np.ravel(other).astype(np.float64)))


def _shown(value: np.ndarray | np.generic | None) -> str:
    if value is None:
        return "(computed)"
    return f"{float(np.ravel(value)[0]):.9g}" if value.size == 1 else f"({value.size} numbers)"
