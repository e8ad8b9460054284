"""Rules about the graph around the Q/DQ nodes: what the parser takes, and where INT8 brings nothing."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from edge_sdk.compile.lint.finding import Finding, Target
from edge_sdk.compile.lint.graph import (
    DEQUANTIZE,
    NO_PARSER,
    QUANTIZE,
    WEIGHTED,
    GraphView,
    label,
    type_name,
    whole_number,
)
from edge_sdk.compile.lint.qdq import output_axis
from edge_sdk.manifest import state_name

# The parser of TensorRT 11 reads opset 9 to 25, that of 10.3 on JetPack 6 only to 20 (NVIDIA's ONNX opset guide;
# operators.md of either). Newer operators are read by their old definition rather than refused.
OPSETS, JETPACK_6_OPSET = (9, 25), 20
# ModelOpt leaves narrower convolutions in float too: the tensor cores work on groups of 16 channels.
THIN = 16
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def static_shapes(view: GraphView, target: Target) -> Iterator[Finding]:
    """Every input and output has a fixed size."""
    for value in (*view.inputs, *view.outputs):
        if value.dims is None:
            what, loose = "its number of axes is not fixed", True
        else:
            loose = any(not isinstance(size, int) or size <= 0 for size in value.dims)
            what = f"its shape is ({', '.join(map(str, value.dims))}), expected fixed sizes"
        if loose:
            repair = "Export with fixed sizes, no dynamic axes: engines and their buffers are built for one."
            yield target.on("static-shape", "error", value.name, what, repair)


def opsets(view: GraphView, target: Target) -> Iterator[Finding]:
    """The opset is one that TensorRT's parser documents."""
    low, high = OPSETS
    if not target.for_tensorrt:
        return
    if not low <= view.opset <= high:
        what = f"the graph's opset is {view.opset}, TensorRT's parser knows {low} to {high}"
        yield target.whole("opset", "error", what, "Export with opset 17 to 20.")
    elif view.opset > JETPACK_6_OPSET:
        what = f"the graph's opset is {view.opset}, TensorRT 10.3 of JetPack 6 knows up to {JETPACK_6_OPSET}"
        yield target.whole("opset", "warning", what, "Export with opset 17 to 20.")


def operators(view: GraphView, target: Target) -> Iterator[Finding]:
    """Every operator is one that TensorRT's parser has."""
    if not target.for_tensorrt:
        return
    for node in view.nodes:
        foreign = node.domain not in ("", "ai.onnx")
        if foreign and node.op_type in (QUANTIZE, DEQUANTIZE):
            what = f"it is of the domain {node.domain}, which TensorRT's parser takes without promising to"
            repair = "Quantise to 8 bits at opset 13 or later: onnxruntime then writes ONNX's own operators."
            yield target.at("operator", "warning", node, what, repair)
        elif foreign:
            what = f"it is of the domain {node.domain}, not of ONNX; TensorRT would look for a plug-in"
            yield target.at(
                "operator", "error", node, what, "Give the graph before ONNX Runtime optimised it."
            )
        elif node.op_type in NO_PARSER:
            what = "TensorRT's parser has no such operator"
            repair = "Write it with other operators; quantised layers as float layers between Q and DQ."
            yield target.at("operator", "error", node, what, repair)


def softmax_axes(view: GraphView, target: Target) -> Iterator[Finding]:
    """TensorRT: a softmax runs over a tensor of two axes or more."""
    if not target.for_tensorrt:
        return
    for node in view.of_type("Softmax", "LogSoftmax"):
        shape = view.shape(node.input[0])
        if shape is not None and len(shape) < 2:
            what = f"its input '{node.input[0]}' has {len(shape)} axis, TensorRT's softmax needs two"
            repair = "Keep the batch axis until after it."
            yield target.at("softmax-axes", "error", node, what, repair, node.input[0])


def bytes_inside(view: GraphView, target: Target) -> Iterator[Finding]:
    """TensorRT: uint8 is for inputs and outputs alone, a Cast to or from float stands next to them."""
    if not target.for_tensorrt:
        return
    for node in view.nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue  # the rule 'uint8' tells of those
        given = [name for name in node.input if name and view.elem_type(name) == TensorProto.UINT8]
        if given and view.maker(given[0]) is not None:
            continue  # told of where the first uint8 was written or read
        if given and node.op_type != "Cast":
            what = f"it computes with uint8 '{given[0]}', which TensorRT only takes into a Cast"
            repair = "Cast a uint8 input to float before anything else."
            yield target.at("uint8-inside", "error", node, what, repair, given[0])
        elif given and view.elem_type(node.output[0]) == TensorProto.INT8:
            what = f"it casts uint8 '{given[0]}' to int8, TensorRT documents float only"
            yield target.at("uint8-inside", "error", node, what, "Cast to float, then quantise.", given[0])
        for name in node.output:
            inside = view.users(name) or not view.is_output(name)
            if name and inside and not given and view.elem_type(name) == TensorProto.UINT8:
                what = f"it writes uint8 '{name}', on which the graph computes further"
                repair = "Cast to uint8 last, right before the output."
                yield target.at("uint8-inside", "error", node, what, repair, name)


def precision_met(view: GraphView, target: Target) -> Iterator[Finding]:
    """The graph holds the precision that is asked for; a builder takes it from there and nowhere else."""
    quantised = any(view.is_quantised(node) for node in view.nodes)
    layers = [node for node in view.nodes if node.op_type in WEIGHTED]
    half = any(TensorProto.FLOAT16 in map(view.elem_type, node.output) for node in view.nodes)
    if target.precision == "int8" and layers and not quantised:
        what = (
            f"int8 is asked for, and none of its {len(layers)} convolutions reads quantised input and weights"
        )
        yield target.whole("precision", "error", what, "Quantise the graph first.")
    elif target.precision == "float16" and not half:
        what = "float16 is asked for, and no tensor in the graph is float16"
        yield target.whole("precision", "error", what, "Convert the graph first.")
    elif target.precision == "float32" and (half or view.of_type(QUANTIZE, DEQUANTIZE)):
        what = f"float32 is asked for, and the graph holds {'float16' if half else 'Q/DQ nodes'}"
        yield target.whole("precision", "error", what, "Give the exported graph.")


def unquantised_layers(view: GraphView, target: Target) -> Iterator[Finding]:
    """INT8: every convolution reads quantised input and weights; lists those that do not."""
    if target.precision != "int8":
        return
    for node in view.nodes:
        if node.op_type not in WEIGHTED or view.is_quantised(node):
            continue
        if view.dequantised(node.input[1]):
            what = (
                f"its weights are quantised and its input '{node.input[0]}' is not, so it computes in float"
            )
            repair = "Quantise its input too, or leave its weights in float."
        else:
            what = "its weights are not quantised, so it computes in float"
            repair = (
                "Right for layers that lose too much; otherwise take it out of the quantiser's exclusions."
            )
        yield target.at("not-quantised", "warning", node, what, repair)


def thin_layers(view: GraphView, target: Target) -> Iterator[Finding]:
    """INT8: layers that gain nothing from it, for their few channels or for being depthwise."""
    for node in view.nodes:
        if not view.is_quantised(node) or node.op_type == "Gemm":
            continue
        shape, axis = view.weight_shape(node), output_axis(node)
        if shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape[:2]):
            continue
        groups = whole_number(node, "group", 1)
        outputs, inputs = int(shape[axis or 0]), int(shape[1 - (axis or 0)])
        outputs, inputs = (outputs * groups, inputs) if axis == 1 else (outputs, inputs * groups)
        if groups > 1 and groups == inputs:
            what = f"it is depthwise ({groups} groups): INT8 hardly speeds it up and often costs accuracy"
            yield target.at(
                "depthwise", "warning", node, what, "Leave it in float, or use a plain convolution."
            )
        elif min(inputs, outputs) // groups < THIN:
            each = " a group" if groups > 1 else ""
            what = (
                f"it goes from {inputs // groups} to {outputs // groups} channels{each}: below {THIN} INT8 kernels "
                "are padded and gain nothing"
            )
            repair = f"Leave it in float, or widen it to a multiple of {THIN}."
            yield target.at("thin-layer", "warning", node, what, repair)


def residual_adds(view: GraphView, target: Target) -> Iterator[Finding]:
    """INT8: an addition melts into the convolution before it only if its other input is quantised."""
    for node in view.of_type("Add"):
        if any(view.is_constant(name) for name in node.input):
            continue
        makers = [view.maker(name) for name in node.input]
        if target.for_tensorrt:
            yield from _unfused(view, target, node, makers)
        elif any(maker is not None and _is_int8(view, maker) for maker in makers):
            floats = [name for name in node.input if not view.dequantised(name)]
            floats += [] if floats or _quantised_after(view, node) else [node.output[0]]
            if floats:
                what = f"'{floats[0]}' is not quantised, so it adds in float"
                repair = "Put Q and DQ on both its inputs and on its output."
                yield target.at("residual-add", "warning", node, what, repair, floats[0])


def _unfused(
    view: GraphView, target: Target, node: NodeProto, makers: list[NodeProto | None]
) -> Iterator[Finding]:
    """An addition that TensorRT would melt into a convolution whose output nothing else reads, and cannot."""
    layers = [maker if maker is not None and _read_once(view, maker) else None for maker in makers]
    into = [index for index, layer in enumerate(layers) if layer is not None and view.is_quantised(layer)]
    if into and not any(view.dequantised(node.input[1 - index]) for index in into):
        skip, conv = node.input[1 - into[0]], layers[into[0]]
        name = f"{conv.op_type} '{label(conv)}'" if conv is not None else ""
        what = f"its input '{skip}' is not quantised, so it does not melt into {name}"
        yield target.at("residual-add", "warning", node, what, f"Put Q and DQ on '{skip}'.", skip)
    elif not into and all(view.dequantised(name) for name in node.input):
        convs = [conv for layer in layers if (conv := _quantised_before(view, layer)) is not None]
        if convs:
            what = f"Q and DQ stand between it and {convs[0].op_type} '{label(convs[0])}', so the two do not melt"
            repair = "Take Q and DQ off that input and leave them on the other."
            yield target.at("residual-add", "warning", node, what, repair, convs[0].output[0])


def _read_once(view: GraphView, node: NodeProto) -> bool:
    return len(view.users(node.output[0])) == 1 and not view.is_output(node.output[0])


def _quantised_before(view: GraphView, dequantise: NodeProto | None) -> NodeProto | None:
    """The quantised layer whose output a DQ gives back, where nothing else reads it on the way."""
    quantise = view.maker(dequantise.input[0]) if dequantise is not None else None
    if quantise is None or quantise.op_type != QUANTIZE or not _read_once(view, quantise):
        return None
    layer = view.maker(quantise.input[0])
    return layer if layer is not None and view.is_quantised(layer) and _read_once(view, layer) else None


def _quantised_after(view: GraphView, node: NodeProto) -> bool:
    """Whether only Qs read what a node writes, before or after a ReLU."""
    users = view.users(node.output[0])
    if len(users) == 1 and users[0].op_type == "Relu":
        users = view.users(users[0].output[0])
    return bool(users) and all(user.op_type == QUANTIZE for user in users)


def _is_int8(view: GraphView, node: NodeProto) -> bool:
    return node.op_type == DEQUANTIZE or view.is_quantised(node)


def float_state(view: GraphView, target: Target) -> Iterator[Finding]:
    """A state tensor is stored in the precision of the steps that use it."""
    wanted = {"int8": (), "float16": (TensorProto.FLOAT16,), "float32": _FLOATS}[target.precision]
    for value in (*view.inputs, *view.outputs):
        wide = {*target.wide_state, *view.sums.state}
        if not value.is_state or value.elem_type not in _FLOATS or value.elem_type in wanted:
            continue
        if state_name(value.name) in wide and value.elem_type == TensorProto.FLOAT:
            continue  # what is added up must not be rounded
        node = _quantiser_at(view, value.name)
        kind = type_name(value.elem_type)
        if target.precision == "int8" and node is not None:
            repair = "Store it quantised, with a fixed scale: move the Q to the step that writes it."
            what = f"the state '{value.name}' is {kind}, though it is quantised right here"
            yield target.at("float-state", "warning", node, what, repair, value.name)
        else:
            what = f"this state is {kind} in a graph of {target.precision}: its traffic eats what the layers gain"
            repair = (
                "Store it as int8 with a fixed scale."
                if target.precision == "int8"
                else "Store it as float16."
            )
            yield target.on("float-state", "warning", value.name, what, repair)


def _quantiser_at(view: GraphView, name: str) -> NodeProto | None:
    """The Q right after a state input, or the DQ right before a state output."""
    reader = next((node for node in view.readers(name) if node.op_type == QUANTIZE), None)
    maker = view.maker(view.origin(name))
    writer = maker if maker is not None and maker.op_type == DEQUANTIZE else None
    return reader or writer


RULES = (
    static_shapes,
    opsets,
    operators,
    softmax_axes,
    bytes_inside,
    precision_met,
    unquantised_layers,
    thin_layers,
    residual_adds,
    float_state,
)
