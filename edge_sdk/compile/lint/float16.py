"""Rules about float16: what does not fit into it, what overflows in it, and where a graph leaves it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto

from edge_sdk.compile.lint.finding import Finding, Target
from edge_sdk.compile.lint.graph import GraphView, attribute, label, type_name

LARGEST, SMALLEST_NORMAL, SMALLEST = 65504.0, 2.0**-14, 2.0**-24
# They sum, square or exponentiate, so that inputs well inside float16 leave it.
_OVERFLOWING = {
    "Exp": "it grows beyond 65504 from inputs above 11",
    "Pow": "powers of large inputs exceed 65504",
    "ReduceSum": "sums over many places exceed 65504",
    "ReduceSumSquare": "squares of inputs above 255 exceed 65504",
    "ReduceL2": "squares of inputs above 255 exceed 65504",
    "ReduceLogSumExp": "exponentials of inputs above 11 exceed 65504",
    "Softmax": "its exponentials and their sum lose small classes and may overflow",
    "LogSoftmax": "its exponentials and their sum lose small classes and may overflow",
    "LayerNormalization": "its variance squares the inputs",
    "InstanceNormalization": "its variance squares the inputs",
    "GroupNormalization": "its variance squares the inputs",
    "RMSNormalization": "its mean squares the inputs",
    "LpNormalization": "its norm squares the inputs",
    "MeanVarianceNormalization": "its variance squares the inputs",
}
_GUARDED = ("Sqrt", "Reciprocal", "Log", "Pow")
_SHOWN = 4


def constants(view: GraphView, target: Target) -> Iterator[Finding]:
    """Every float16 number is finite and, as a whole tensor, above the subnormal range."""
    for tensor in view.initializers.values():
        yield from _constant(view, target, tensor.name)
    for node in view.of_type("Constant"):
        yield from _constant(view, target, node.output[0])


def _constant(view: GraphView, target: Target, name: str) -> Iterator[Finding]:
    kind = view.elem_type(name)
    half = kind == TensorProto.FLOAT16
    casts = [user for user in view.users(name) if _casts_to(user, TensorProto.FLOAT16)]
    if not half and not (kind == TensorProto.FLOAT and casts):
        return
    values = view.constant(name)
    if values is None or not values.size:
        return
    size = np.abs(values.astype(np.float64))
    users = view.users(name)
    where = f" (read by {users[0].op_type} '{label(users[0])}')" if users else ""
    if not np.isfinite(size).all() or size.max() > LARGEST:
        largest = float(np.nanmax(size))
        what = f"it holds {largest:g}{where}, float16 ends at {LARGEST:g}"
        repair = "Keep the nodes that read it in float32, or scale the numbers down before converting."
        yield target.on("float16-range", "error", name, what, repair)
    elif 0 < size.max() < SMALLEST_NORMAL:
        lost = "all of it becomes 0" if size.max() < SMALLEST / 2 else "few of its digits are left"
        what = f"its largest number is {size.max():.3g}{where}, below float16's {SMALLEST_NORMAL:.3g}: {lost}"
        repair = "Keep the nodes that read it in float32, or raise an epsilon to 1e-4."
        yield target.on("float16-subnormal", "warning", name, what, repair)


def guards(view: GraphView, target: Target) -> Iterator[Finding]:
    """An epsilon that guards a division or a root has not become 0."""
    for node in view.of_type("Add", "Max"):
        zero = next((name for name in node.input if _is_half_zero(view, name)), None)
        if zero is None:
            continue
        guarded = next((user for user in view.users(node.output[0]) if _needs_guard(user, node)), None)
        if guarded is not None:
            what = f"the '{zero}' that it adds before {guarded.op_type} '{label(guarded)}' is 0 in float16"
            repair = "Keep both nodes in float32, or raise the epsilon to 1e-4."
            yield target.at("float16-subnormal", "warning", node, what, repair, zero)


def _is_half_zero(view: GraphView, name: str) -> bool:
    value = view.constant(name) if view.elem_type(name) == TensorProto.FLOAT16 else None
    return value is not None and not np.any(value)


def _needs_guard(user: NodeProto, node: NodeProto) -> bool:
    return user.op_type in _GUARDED or (user.op_type == "Div" and user.input[1] == node.output[0])


def overflows(view: GraphView, target: Target) -> Iterator[Finding]:
    """Operators that leave float16's range from ordinary inputs are computed in float32."""
    for node in view.nodes:
        if not node.input or view.elem_type(node.input[0]) != TensorProto.FLOAT16:
            continue
        why = _OVERFLOWING.get(node.op_type, "")
        if node.op_type == "ReduceMean" and _is_square(view, node.input[0]):
            why = "it is a mean of squares, and squares of inputs above 255 exceed 65504"
        if why and not view.is_constant(node.input[0]):
            repair = "Keep it in float32, with a Cast before and after, unless a range scan shows room."
            yield target.at("float16-overflow", "warning", node, f"it computes in float16: {why}", repair)


def _is_square(view: GraphView, name: str) -> bool:
    node = view.maker(name)
    if node is None:
        return False
    return node.op_type == "Pow" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def islands(view: GraphView, target: Target) -> Iterator[Finding]:
    """A float16 graph's float32 nodes, each group with the casts around it."""
    if target.precision != "float16":
        return
    adding = {label(node) for node in view.sums.nodes_of(view.model)}
    for group in _groups(view):
        if adding.issuperset(label(node) for node in group):
            continue  # what is added up must not be rounded
        names = [label(node) for node in group]
        casts = _casts_around(view, group)
        shown = ", ".join(names[:_SHOWN]) + (
            f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        )
        what = f"it computes in float32, with {len(casts)} casts around: {shown}"
        repair = (
            "Right for what overflows in float16; otherwise convert these nodes too, the casts cost passes."
        )
        yield target.at("float32-island", "warning", group[0], what, repair)


def _groups(view: GraphView) -> list[list[NodeProto]]:
    """Nodes that compute in float32, joined where one reads another's float32 output."""
    group_of: dict[str, list[NodeProto]] = {}  # by tensor written
    groups: list[list[NodeProto]] = []
    for node in view.nodes:
        if node.op_type in ("Cast", "Constant") or not _in_float32(view, node):
            continue
        before = [group_of[name] for name in node.input if name in group_of]
        joined = before[0] if before else []
        if not before:
            groups.append(joined)
        for other in before[1:]:
            if other is not joined:
                joined += other
                groups = [group for group in groups if group is not other]
                group_of.update({name: joined for member in other for name in member.output})
        joined.append(node)
        group_of.update(dict.fromkeys(node.output, joined))
    return groups


def _in_float32(view: GraphView, node: NodeProto) -> bool:
    tensors = [*(name for name in node.input if name and not view.is_constant(name)), *node.output]
    return any(view.elem_type(name) == TensorProto.FLOAT for name in tensors)


def _casts_around(view: GraphView, group: list[NodeProto]) -> set[str]:
    casts = {label(maker) for node in group for name in node.input
             if (maker := view.maker(name)) is not None and maker.op_type == "Cast"}  # fmt: skip
    casts |= {label(user) for node in group for name in node.output
              for user in view.users(name) if user.op_type == "Cast"}  # fmt: skip
    return casts


def cast_pairs(view: GraphView, target: Target) -> Iterator[Finding]:
    """No tensor is cast to float32 and straight back."""
    for node in view.of_type("Cast"):
        before = view.maker(node.input[0])
        if before is None or before.op_type != "Cast" or not _casts_to(node, TensorProto.FLOAT16):
            continue
        if view.elem_type(before.input[0]) == TensorProto.FLOAT16 and _casts_to(before, TensorProto.FLOAT):
            what = f"it undoes Cast '{label(before)}', nothing is computed between"
            yield target.at("cast-pair", "warning", node, what, "Remove both.", node.input[0])


def _casts_to(node: NodeProto, elem_type: int) -> bool:
    return node.op_type == "Cast" and attribute(node, "to") == elem_type


def io_types(view: GraphView, target: Target) -> Iterator[Finding]:
    """Frame and answers keep the types that the float32 pair has; only state becomes float16."""
    for value in (*view.inputs, *view.outputs):
        if value.elem_type == TensorProto.FLOAT16 and not value.is_state:
            what = f"it is {type_name(value.elem_type)}; the pair's manifest has it as exported"
            repair = "Keep the types of inputs and outputs when converting (AutoCast: keep_io_types)."
            yield target.on("float16-io", "warning", value.name, what, repair)


def backend_computes(view: GraphView, target: Target) -> Iterator[Finding]:
    """float16 is for TensorRT: ONNX Runtime's CPU computes it in float32, slower than float32 itself."""
    if target.backend == "onnxruntime" and target.precision == "float16":
        what = "ONNX Runtime's CPU computes float16 in float32 with casts around every node"
        yield target.whole("float16-backend", "warning", what, "Use float32 or int8 on this backend.")


RULES = (constants, guards, overflows, islands, cast_pairs, io_types, backend_computes)
