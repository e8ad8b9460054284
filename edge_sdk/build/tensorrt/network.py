"""From an ONNX file to TensorRT's network, and the precision that the graph asks for.

Runs in the child process, where ``tensorrt`` is loaded. polygraphy makes the network; the parser is called directly,
because polygraphy's loader only prints the parser's errors, and with them the name of the node.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edge_sdk.errors import EngineError
from edge_sdk.optional import require

# What the parser's words mean for whoever made the graph; the first pattern that is found counts.
_REPAIRS = (
    (
        r"has type UInt8",
        "TensorRT knows bytes only at a graph's border, cast from or to floats: export the bundle again, or give a "
        "graph that was quantised for TensorRT.",
    ),
    (
        r"Int32.*Dequantize|Dequantize.*Int32|zero ?point|[Qq]uantiz",
        "TensorRT takes symmetric INT8 alone: int8 tensors, zero points 0, float biases. Quantise for TensorRT, and "
        "see what 'edge-sdk lint GRAPH --backend tensorrt --precision int8' says.",
    ),
    (
        r"No importer registered|[Uu]nsupported|not supported",
        "Replace that operator in the network, or run this bundle on ONNX Runtime.",
    ),
)
_REPAIR = "See what 'edge-sdk lint GRAPH --backend tensorrt' says of it."
_LONGEST = 300


def make_network(trt: Any, graph: Path) -> tuple[Any, Any, Any]:
    """Builder, network and parser; the parser owns the weights and must live as long as the network.

    Raises:
        EngineError: TensorRT refuses the graph; the message names the node, the operator and TensorRT's reason.
    """
    loaders = require("polygraphy.backend.trt", "building for TensorRT")
    # Strong typing is the only kind from TensorRT 11 on; before, this flag asks for it.
    builder, network = loaders.create_network(strongly_typed=True)
    parser = trt.OnnxParser(network, loaders.get_trt_logger())
    if not parser.parse_from_file(str(graph)):
        raise _refusal(parser, graph)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if min(tensor.shape, default=1) < 1:
            raise EngineError(
                f"graph {graph}: input '{tensor.name}' has a dynamic shape {tuple(tensor.shape)}.",
                hint="Export the bundle again; edge_sdk builds fixed shapes only.",
            )
    return builder, network, parser


def _refusal(parser: Any, graph: Path) -> EngineError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return EngineError(
            f"graph {graph}: TensorRT cannot read it as ONNX.", hint="Copy or export the bundle again."
        )
    first = errors[0]
    reason = " ".join(first.desc().split())
    more = f" ({len(errors) - 1} more nodes are refused)" if len(errors) > 1 else ""
    if not first.node_name() and not first.node_operator():
        return EngineError(
            f"graph {graph}: TensorRT cannot read it: {_short(reason)}.", hint="Copy it again."
        )
    words = f"{first.node_operator()}: {reason}"
    repair = next((text for pattern, text in _REPAIRS if re.search(pattern, words)), _REPAIR)
    return EngineError(
        f"graph {graph}: TensorRT refuses node '{first.node_name()}' ({first.node_operator()}): "
        f"{_short(reason)}{more}.",
        hint=repair,
    )


def _short(text: str) -> str:
    text = text.rstrip(".")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def asked_precisions(trt: Any, network: Any) -> dict[str, str]:
    """Precision of every layer that does the work, as the graph's types ask for it.

    Those are the convolutions; in a network without any, the matrix products (beside convolutions these only resize).
    A layer is INT8 where its data and its weights both come out of a dequantisation from INT8; TensorRT then replaces
    the three by one INT8 kernel. Otherwise its precision is its input's type.

    Returns:
        ``int8``, ``float16``, ``float32`` or TensorRT's name of another type, by the name of the ONNX node.
    """
    convolutions = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
        if layer.get_output(index) is not None
    }
    working = [layer for layer in layers if layer.type in convolutions]
    found = {}
    for layer in working or [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]:
        inputs = [layer.get_input(index) for index in range(min(layer.num_inputs, 2))]
        quantised = [_from_int8(trt, makers.get(tensor.name)) for tensor in inputs if tensor is not None]
        both = len(quantised) == 2 and all(quantised)
        found[onnx_name(layer)] = "int8" if both else _type_name(trt, inputs[0].dtype)
    return found


def onnx_name(layer: Any) -> str:
    """Name of the ONNX node that a network's layer was made for."""
    nodes = onnx_nodes(layer.metadata)
    return nodes[0] if nodes else str(layer.name)


def onnx_nodes(metadata: str) -> list[str]:
    """Names of the ONNX nodes in a layer's metadata, which lists them as ``[ONNX Layer: NAME]``."""
    return re.findall(r"\[ONNX Layer: (.*?)\](?=$|[\x00-\x20\[])", metadata)


def _from_int8(trt: Any, layer: Any) -> bool:
    """Whether this layer dequantises INT8."""
    if layer is None or layer.type != trt.LayerType.DEQUANTIZE:
        return False
    return bool(layer.get_input(0).dtype == trt.DataType.INT8)


def _type_name(trt: Any, dtype: Any) -> str:
    names = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    return names.get(dtype, str(dtype).rsplit(".", 1)[-1].lower())


def check_request(asked: dict[str, str], precision: str, graph: Path) -> None:
    """Refuse, before a long build, a graph that is not of the precision that it is meant to be.

    Raises:
        EngineError: an INT8 or float16 engine was asked for and no layer of the graph is of that type, or a float32
            engine and some layer is not.
    """
    count = sum(kind == precision for kind in asked.values())
    if precision == "float32":
        other = [name for name, kind in asked.items() if kind != precision]
        if other:
            raise EngineError(
                f"graph {graph}: an engine in float32 was asked for, but {len(other)} of {len(asked)} layers are of "
                f"another type, first '{other[0]}' ({asked[other[0]]}).",
                hint="Give the exported graph.",
            )
    elif not count:
        raise EngineError(
            f"graph {graph}: an engine in {precision} was asked for, but none of the {len(asked)} layers "
            f"that do the work is {precision}.",
            hint=f"Precision lies in the graph: give the one that was typed as {precision} for TensorRT.",
        )
