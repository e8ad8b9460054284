"""INT8 step graphs: explicit Q/DQ with per-channel weights, in the form that each backend's kernels like.

TensorRT: symmetric int8 with zero points 0 and float biases; Q/DQ on the inputs of convolutions and on the skip
input of residual additions, so that convolution, addition and activation fuse into one kernel.

ONNX Runtime on the CPU: uint8 activations, zero point 0 where a ReLU made them and 128 elsewhere, on inputs and
outputs, so that everything between two convolutions stays in bytes and the ReLU disappears into the quantisation.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from edge_sdk.build.recipe import Int8Settings
from edge_sdk.compile.accumulators import Accumulators, accumulators_of
from edge_sdk.compile.quantize.frame import CENTRED, fold_frame, range_of_bytes, read_bytes
from edge_sdk.compile.quantize.nodes import (
    Wiring,
    drop_unused,
    is_matrix_layer,
    layer_of,
    matches,
    name_nodes,
    named_copy,
)
from edge_sdk.compile.quantize.ranges import Ranges, save_as_cache
from edge_sdk.compile.quantize.state import (
    TypedPair,
    form_of,
    keep_channels_last,
    permutation_for,
    quantize_inputs,
    quantize_outputs,
)
from edge_sdk.errors import EngineError
from edge_sdk.manifest import StateForm, is_state, is_told, state_name
from edge_sdk.optional import require

_CONVOLUTIONS = ("Conv", "ConvTranspose")
# What ONNX Runtime computes in bytes between convolutions.
_CPU_OPS = (*_CONVOLUTIONS, "Add", "Relu", "MatMul", "AveragePool", "GlobalAveragePool", "MaxPool", "Concat")
_TENSORRT_OPS = (*_CONVOLUTIONS, "Add")


def quantize_pair(
    graphs: Mapping[str, onnx.ModelProto],
    ranges: Mapping[str, Ranges],
    state: Mapping[str, tuple[int, ...]],
    settings: Int8Settings,
    backend: str,
    only: Collection[str] | None = None,
) -> TypedPair:
    """Quantise the float32 step graphs of a pair; state that the delta step adds to stays in float32.

    Args:
        graphs: by step; left as they are.
        ranges: of every tensor, by step; both ends of a state tensor have one range.
        state: shapes of the state tensors, by name.
        settings: what stays in higher precision, and how state lies.
        backend: ``onnxruntime`` or ``tensorrt``.
        only: quantise these layers alone, for finding out what each costs; state then stays in float32.

    Raises:
        EngineError: nothing is left to quantise in a step.
    """
    kept: dict[str, dict[str, str]] = {}
    done: dict[str, onnx.ModelProto] = {}
    sums = accumulators_of(graphs["delta"]) if "delta" in graphs else Accumulators()
    lowered = {name: shape for name, shape in state.items() if name not in sums.state}
    for step, graph in graphs.items():
        model = named_copy(graph)
        known = dict(ranges[step])
        if only is None:
            keep_channels_last(model, list(lowered), settings.state_layout)
            for name in list(known):
                if is_state(name):
                    known[f"{name}.nchw"] = known[name]
        if backend == "onnxruntime" and only is None and (folded := fold_frame(model)) is not None:
            known[CENTRED] = range_of_bytes(folded)
        kept[step] = _kept(model, settings, only)
        done[step] = _quantize(model, known, kept[step], backend, step, sums)
    forms = {} if only is not None else _quantize_state(done, ranges, lowered, settings, backend)
    return TypedPair(done, forms, kept)


def _quantize_state(
    graphs: Mapping[str, onnx.ModelProto],
    ranges: Mapping[str, Ranges],
    state: Mapping[str, tuple[int, ...]],
    settings: Int8Settings,
    backend: str,
) -> dict[str, StateForm]:
    """Let quantised graphs pass their state as bytes, in place; the forms of its tensors."""
    # The delta step says how it reads each tensor; every step writes it that way.
    dtype = "uint8" if backend == "onnxruntime" else "int8"
    found = quantize_inputs(graphs["delta"], ranges["delta"], list(state), dtype) if "delta" in graphs else {}
    for model in graphs.values():
        quantize_outputs(model, found)
        if backend == "onnxruntime":
            read_bytes(model)
        onnx.checker.check_model(model, full_check=True)
    return {
        name: form_of(scale, zero, permutation_for(settings.state_layout, state[name]))
        for name, (scale, zero) in found.items()
    }


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions with constant weights, in the order in which they run."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in _CONVOLUTIONS and node.input[1] in constants]


def _kept(model: onnx.ModelProto, settings: Int8Settings, only: Collection[str] | None) -> dict[str, str]:
    """Layers that stay as they are, and why."""
    found: dict[str, str] = {}
    nodes = convolutions(model)
    last = _last(model, nodes) if settings.keep_last else None
    for node in nodes:
        layer = layer_of(node)
        if only is not None:
            if layer not in only:
                found[layer] = "not looked at"
        elif node is last:
            found[layer] = "last layer"
        elif matches(node, settings.keep):
            found[layer] = "kept"
        elif _channels(model, node) == 1:
            found[layer] = "one channel"  # such as a gate: little work, and others hang on it
    return found


def _channels(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    """Output channels of a convolution."""
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return int(weight.dims[0] if node.op_type == "Conv" else weight.dims[1] * groups)


def _last(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.NodeProto | None:
    """The last convolution before the answer, not state or trust; None where a matrix layer decides after it."""
    wiring = Wiring(model.graph)
    answers = [v.name for v in model.graph.output if v.name in wiring.makers and not is_told(v.name)]
    needed = wiring.reaches(wiring.makers[name] for name in answers)
    last = next((node for node in reversed(nodes) if node.name in needed), None)
    if last is None:
        return None
    between = needed & wiring.reached_from([last])
    decides = (node for node in model.graph.node if node.name in between and is_matrix_layer(node, wiring))
    return None if any(decides) else last


def _quantize(
    model: onnx.ModelProto,
    ranges: Ranges,
    kept: Mapping[str, str],
    backend: str,
    step: str,
    sums: Accumulators,
) -> onnx.ModelProto:
    """Insert Q/DQ with ONNX Runtime's quantiser."""
    chosen = [node for node in convolutions(model) if layer_of(node) not in kept]
    if not chosen:
        raise EngineError(
            f"{step} step: no convolution is left to quantise.", hint="Shorten int8.keep in the recipe."
        )
    names = _zone(model, chosen, ranges, backend, sums)
    require("onnxruntime", "quantising")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    cpu = backend == "onnxruntime"
    with tempfile.TemporaryDirectory() as folder, _residual_additions(not cpu), _quiet():
        source, cache, target = (Path(folder) / name for name in ("float.onnx", "ranges.json", "int8.onnx"))
        onnx.save(model, str(source))
        save_as_cache(ranges, cache)
        quantize_static(
            source,
            target,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_CPU_OPS if cpu else _TENSORRT_OPS),
            per_channel=True,
            activation_type=QuantType.QUInt8 if cpu else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=names,
            extra_options=_options(cpu),
            calibration_cache_path=cache,
        )
        done = onnx.load(str(target))
    name_nodes(done)
    drop_unused(done)
    del done.graph.value_info[:]
    return done


def _options(cpu: bool) -> dict[str, Any]:
    shared = {"WeightSymmetric": True, "QuantizeBias": cpu}
    if cpu:
        return {**shared, "ActivationRestrictedAsymmetric": True}
    return {
        **shared,
        "ActivationSymmetric": True,
        "OpTypesToExcludeOutputQuantization": list(_TENSORRT_OPS),
    }


def _zone(
    model: onnx.ModelProto, chosen: list[onnx.NodeProto], ranges: Ranges, backend: str, sums: Accumulators
) -> list[str]:
    """Names of the nodes to quantise: the chosen convolutions, and what lies between them and the state in bytes."""

    def in_bytes(name: str) -> bool:
        return is_state(name) and state_name(name) not in sums.state

    wiring = Wiring(model.graph)
    names = [node.name for node in chosen]
    adding = {node.name for node in sums.nodes_of(model)}
    state = [node for name, nodes in wiring.readers.items() if in_bytes(name) for node in nodes]
    after = wiring.reached_from([*chosen, *state])
    written = [wiring.makers[name] for name in wiring.outputs if in_bytes(name)]
    before = wiring.reaches([*convolutions(model), *written])
    wanted = set(_CPU_OPS if backend == "onnxruntime" else _TENSORRT_OPS) - set(_CONVOLUTIONS)
    for node in model.graph.node:
        measured = all(name in ranges or name in wiring.constants for name in (*node.input, *node.output))
        between = node.name in after and node.name in before and node.name not in adding
        fitting = _two_activations(node, wiring) and _ends_at_zero(node, ranges)
        if node.op_type in wanted and measured and between and fitting:
            names.append(node.name)
    return names


def _two_activations(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Not an addition of a constant, which is a bias or a shift and loses accuracy in bytes for no time."""
    return node.op_type != "Add" or not any(name in wiring.constants for name in node.input)


def _ends_at_zero(node: onnx.NodeProto, ranges: Ranges) -> bool:
    """Not a ReLU whose output shares its range with a state tensor that goes below zero: the quantiser drops a ReLU, as
    the zero point 0 of what follows does its work, and there it would not be 0."""
    return node.op_type != "Relu" or ranges[node.output[0]][0] >= 0


@contextmanager
def _residual_additions(active: bool) -> Iterator[None]:
    """Make ONNX Runtime's quantiser put Q/DQ on the skip input of an addition alone.

    Its own rule quantises both inputs, and Q/DQ between a convolution and the addition after it keeps TensorRT from
    fusing the two.
    """
    if not active:
        yield
        return
    from onnxruntime.quantization.operators.qdq_base_operator import QDQOperatorBase
    from onnxruntime.quantization.registry import QDQRegistry

    class SkipInput(QDQOperatorBase):
        def quantize(self) -> None:
            wiring = Wiring(self.quantizer.model.model.graph)

            def fuses(name: str) -> bool:
                maker = wiring.makers.get(name)
                alone = len(wiring.readers.get(name, ())) == 1 and name not in wiring.outputs
                return maker is not None and maker.op_type in _CONVOLUTIONS and alone

            main = next((name for name in self.node.input if fuses(name)), None)
            if main is not None:
                for name in self.node.input:
                    if name != main:
                        self.quantizer.quantize_activation_tensor(name)

    before = QDQRegistry.get("Add")
    QDQRegistry["Add"] = SkipInput
    try:
        yield
    finally:
        if before is None:
            del QDQRegistry["Add"]
        else:
            QDQRegistry["Add"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice on preprocessing, which export has done, at the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
