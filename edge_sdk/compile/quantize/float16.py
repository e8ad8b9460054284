"""Float16 step graphs: typed tensors throughout, float32 where float16 would overflow."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edge_sdk.build.recipe import Float16Settings
from edge_sdk.compile.accumulators import Accumulators, accumulators_of
from edge_sdk.compile.quantize.nodes import (
    Wiring,
    drop_unused,
    matches,
    named_copy,
    replace_input,
    sort_nodes,
)
from edge_sdk.compile.quantize.ranges import Ranges, largest_magnitude
from edge_sdk.compile.quantize.state import TypedPair, keep_channels_last, permutation_for
from edge_sdk.errors import EngineError
from edge_sdk.manifest import StateForm, is_state, state_input, state_output
from edge_sdk.optional import require

# Nodes that only rearrange numbers.
_MOVES = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose")
_MOST = float(np.finfo(np.float16).max)


def halve_pair(
    graphs: Mapping[str, onnx.ModelProto],
    ranges: Mapping[str, Ranges],
    state: Mapping[str, tuple[int, ...]],
    settings: Float16Settings,
) -> TypedPair:
    """Convert the float32 step graphs of a pair, state included but for what the delta step adds to.

    Args:
        graphs: by step; left as they are.
        ranges: of every tensor, by step, from calibration passes.
        state: shapes of the state tensors, by name.
        settings: what stays in float32, and how state lies.

    Raises:
        EngineError: a state tensor takes values that float16 cannot hold.
    """
    sums = accumulators_of(graphs["delta"]) if "delta" in graphs else Accumulators()
    halved = {name: shape for name, shape in state.items() if name not in sums.state}
    for name in halved:
        reached = max((max(map(abs, found[key])) for found in ranges.values()
                       for key in (state_input(name), state_output(name)) if key in found), default=0.0)  # fmt: skip
        if reached > _MOST:
            raise EngineError(
                f"float16: the state '{name}' reaches {reached:.3g}, float16 ends at {_MOST:g}.",
                hint="Leave float16 out of 'precisions'; int8 has a scale for it.",
            )
    done: dict[str, onnx.ModelProto] = {}
    kept: dict[str, dict[str, str]] = {}
    for step, graph in graphs.items():
        model = named_copy(graph)
        kept[step] = overflowing(model, ranges[step], settings)
        keep_channels_last(model, list(halved), settings.state_layout)
        done[step] = to_float16(model, list(kept[step]), sums.state)
        kept[step] |= dict.fromkeys(wide_nodes(model, sums), "state or an answer in float32")
    permuted = {name: permutation_for(settings.state_layout, shape) for name, shape in halved.items()}
    forms = {name: StateForm(permutation=axes) for name, axes in permuted.items() if axes}
    return TypedPair(done, forms, kept)


def to_float16(model: onnx.ModelProto, kept: list[str], wide_state: Collection[str] = ()) -> onnx.ModelProto:
    """A typed float16 copy of ``model``; answers that are floats stay in float32, and so does what makes them.

    Args:
        model: a step graph; left as it is.
        kept: names of nodes that stay in float32 between casts.
        wide_state: names of state tensors that stay in float32, with all that a delta step adds to them by.
    """
    require("onnxruntime", "converting to float16")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    ends = {end for name in wide_state for end in (state_input(name), state_output(name))}
    ends |= {value.name for value in model.graph.output if not is_state(value.name)}
    sums = accumulators_of(model) if wide_state else Accumulators()
    with warnings.catch_warnings():
        # It warns of every constant below float16's smallest; those become zero or the smallest, as they should.
        warnings.simplefilter("ignore")
        done: onnx.ModelProto = convert_float_to_float16(
            model,
            keep_io_types=sorted(ends),
            op_block_list=[],
            node_block_list=[*kept, *wide_nodes(model, sums)],
        )
    _join_kept(done)
    sort_nodes(done)
    drop_unused(done)
    del done.graph.value_info[:]
    onnx.checker.check_model(done, full_check=True)
    return done


def wide_nodes(model: onnx.ModelProto, sums: Accumulators) -> list[str]:
    """Names of the nodes that add to state, and of those that write an answer in floats."""
    answers = {
        value.name
        for value in model.graph.output
        if not is_state(value.name) and value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    makers = Wiring(model.graph).makers
    found = [node.name for node in sums.nodes_of(model)]
    for answer in answers:
        node = makers.get(answer)
        while node is not None:  # back to what computes it
            found.append(node.name)
            node = makers.get(node.input[0]) if node.op_type in _MOVES else None
    return found


def _join_kept(model: onnx.ModelProto) -> None:
    """Let kept nodes read each other, and graph inputs and outputs in float32, in place.

    The converter casts what each of them writes to float16 and back for the next, where it would overflow; and it
    writes one such cast for every reader under one name.
    """
    graph = model.graph
    once = list({node.output[0]: node for node in reversed(graph.node)}.values())[::-1]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in once]
    del graph.node[:]
    graph.node.extend(nodes)
    given = {value.name for value in graph.input}
    halving = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.name.endswith("_cast_to_fp16_node")
        or (node.name.startswith("graph_input_cast") and node.input[0] in given)
    }
    for node in graph.node:
        if node.name.endswith("_cast_to_fp32_node") and node.input[0] in halving:
            replace_input(graph.node, node.output[0], halving[node.input[0]])
    _write_directly(graph, halving)


def _write_directly(graph: onnx.GraphProto, halving: Mapping[str, str]) -> None:
    """Let a node that computes in float32 write a float32 output itself, in place."""
    wiring = Wiring(graph)
    for cast in [node for node in graph.node if node.op_type == "Cast"]:
        output, source = cast.output[0], halving.get(cast.input[0])
        maker = wiring.makers.get(source or "")
        casts_out = cast.name.startswith("graph_output_cast") and output in wiring.outputs
        if not casts_out or source is None or maker is None:
            continue
        maker.output[list(maker.output).index(source)] = output
        replace_input(graph.node, source, output)
        graph.node.remove(cast)


def overflowing(model: onnx.ModelProto, ranges: Ranges, settings: Float16Settings) -> dict[str, str]:
    """Nodes that stay in float32, by name, and why."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    for node in model.graph.node:
        magnitude = largest_magnitude(ranges, node)
        if matches(node, settings.keep):
            found[node.name] = "kept"
        elif magnitude > settings.largest:
            found[node.name] = f"its values reach {magnitude:.3g}"
        elif any(_overflows(constants[name]) for name in node.input if name in constants):
            found[node.name] = "a constant of it is beyond float16"
    return found


def _overflows(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return values.size > 0 and float(np.abs(values).max()) > _MOST
