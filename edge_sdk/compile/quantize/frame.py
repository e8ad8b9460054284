"""The first convolution on the frame's own bytes.

A camera frame is already an eight-bit tensor. Where preprocessing is a permutation of channels and one scale and
shift a channel, it is a linear map that the first convolution can take in; the frame then needs no pass in float32
at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_sdk.compile.quantize.nodes import (
    Wiring,
    add_constant,
    drop_unused,
    replace_input,
    shape_of,
    sort_nodes,
)
from edge_sdk.manifest import FRAME
from edge_sdk.optional import require

CENTRED = "frame.centred"
_SCALE, _ZERO = "frame.centred.scale", "frame.centred.zero_point"
_SHUFFLES = {"Unsqueeze", "Reshape", "Transpose", "Slice", "Split", "Concat", "Gather"}
_ELEMENTWISE = _SHUFFLES | {"Cast", "Mul", "Add", "Sub", "Div"}


@dataclass(frozen=True)
class Preprocessing:
    """``y = matrix @ pixel + shift`` of every pixel, (3, 3) and (3,)."""

    matrix: np.ndarray
    shift: np.ndarray

    @property
    def blank(self) -> int:
        """The byte nearest to what the network's zero padding stands for: where most channels' result is zero."""
        pixel = np.linalg.lstsq(self.matrix, -self.shift, rcond=None)[0]
        return int(np.clip(np.round(pixel.mean()), 0, 255))


def fold_frame(model: onnx.ModelProto) -> Preprocessing | None:
    """Let the first convolutions read the frame's bytes, dequantised with scale 1, in place.

    Exact but for the outermost pixels: the convolutions' padding becomes one byte for all channels, where it was a
    zero after normalisation. Of a pair of whole networks each has a first convolution in the keyframe step; that of a
    student which sees half of the frame reads means of neighbours, and takes them in as well.

    Returns:
        what was folded, or None where the frame is resized in another way first or read by anything but convolutions
        with constant weights; the model is then as it was.
    """
    convs = _first_readers(model)
    read = {(conv.input[0] if pool is None else pool.input[0]) for conv, pool in convs}
    found = _affine(model, *read) if len(read) == 1 else None
    if found is None:
        return None
    for conv, pool in convs:
        _fold_into(model, conv, found, pool)
    height, width, _ = shape_of(_frame(model))
    shape = add_constant(model, "frame.batched.shape", np.array([1, height, width, 3], np.int64))
    add_constant(model, _SCALE, np.array(1, np.float32))
    add_constant(model, _ZERO, np.array(found.blank, np.uint8))
    nodes = [
        helper.make_node("Reshape", [FRAME, shape], ["frame.batched"], name="frame_batched"),
        helper.make_node(
            "Transpose", ["frame.batched"], ["frame.planes"], name="frame_planes", perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "DequantizeLinear", ["frame.planes", _SCALE, _ZERO], [CENTRED], name="frame_centred"
        ),
    ]
    model.graph.node.extend(nodes)
    sort_nodes(model)
    drop_unused(model)
    return found


def _fold_into(
    model: onnx.ModelProto, conv: onnx.NodeProto, found: Preprocessing, pool: onnx.NodeProto | None
) -> None:
    """Give a convolution the weights and bias with which it reads :data:`CENTRED`."""
    constants = Wiring(model.graph).constants
    weight = numpy_helper.to_array(constants[conv.input[1]])
    bias = (
        numpy_helper.to_array(constants[conv.input[2]])
        if len(conv.input) > 2 and conv.input[2]
        else np.zeros(len(weight), np.float32)
    )
    folded = np.einsum("oihw,ic->ochw", weight, found.matrix)
    middle = found.shift + found.matrix @ np.full(3, float(found.blank))
    moved = bias + np.einsum("oihw,i->o", weight, middle)
    if pool is not None:
        folded = _over_means(conv, folded, _kernel_of(pool))
    stem = conv.input[1].removesuffix(".weight")
    if f"{stem}.on_bytes.weight" in constants:
        stem = conv.name  # two convolutions had the same weights
    conv.input[1] = add_constant(model, f"{stem}.on_bytes.weight", folded.astype(np.float32))
    del conv.input[2:]
    conv.input.append(add_constant(model, f"{stem}.on_bytes.bias", moved.astype(np.float32)))
    conv.input[0] = CENTRED


def _over_means(conv: onnx.NodeProto, weight: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """Weights of the convolution where it reads what the means of that size were of, and its strides and padding."""
    given = _attributes(conv)
    changed = {
        "kernel_shape": [size * of for size, of in zip(weight.shape[2:], kernel, strict=True)],
        "strides": [step * of for step, of in zip(given.get("strides", (1, 1)), kernel, strict=True)],
        "pads": [pad * of for pad, of in zip(given.get("pads", (0,) * 4), (*kernel, *kernel), strict=True)],
    }
    kept = [attribute for attribute in conv.attribute if attribute.name not in changed]
    del conv.attribute[:]
    conv.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in changed.items())])
    return weight.repeat(kernel[0], 2).repeat(kernel[1], 3) / math.prod(kernel)


def range_of_bytes(found: Preprocessing) -> tuple[float, float]:
    """Range of the dequantised frame."""
    return -float(found.blank), 255.0 - found.blank


def read_bytes(model: onnx.ModelProto) -> None:
    """After quantisation: take away the second quantisation of the frame, which is in bytes already, in place."""
    wiring = Wiring(model.graph)
    for quantize in wiring.readers.get(CENTRED, []):
        if quantize.op_type == "QuantizeLinear":
            for dequantize in wiring.readers.get(quantize.output[0], []):
                replace_input(model.graph.node, dequantize.output[0], CENTRED)
    drop_unused(model)


def _frame(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    return next(value for value in model.graph.input if value.name == FRAME)


def _first_readers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto | None]]:
    """The convolutions over three channels that all elementwise work on the frame leads to, each with the means that
    it reads; none where the frame also leads elsewhere."""
    wiring = Wiring(model.graph)
    frontier, seen = [FRAME], set()
    found: list[tuple[onnx.NodeProto, onnx.NodeProto | None]] = []
    while frontier:
        for node in wiring.readers.get(frontier.pop(), []):
            if node.name in seen:
                continue
            seen.add(node.name)
            if node.op_type in _ELEMENTWISE:
                frontier += node.output
            elif _block_means(node, shape_of(_frame(model))[:2]):
                found += [(reader, node) for reader in wiring.readers.get(node.output[0], [])]
            else:
                found.append((node, None))
    return found if all(_plain(conv, wiring, pool is not None) for conv, pool in found) else []


def _block_means(node: onnx.NodeProto, size_hw: tuple[int, ...]) -> bool:
    """Whether it gives the mean of each block of a frame, none of which overlap or reach beyond it."""
    if node.op_type != "AveragePool":
        return False
    given, kernel = _attributes(node), _kernel_of(node)
    apart = tuple(given.get("strides", (1, 1))) == kernel and not any(given.get("pads", ()))
    whole = all(side % step == 0 for side, step in zip(size_hw, kernel, strict=True))
    return apart and whole and given.get("auto_pad", b"NOTSET") == b"NOTSET"


def _kernel_of(pool: onnx.NodeProto) -> tuple[int, int]:
    height, width = _attributes(pool)["kernel_shape"]
    return height, width


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _plain(node: onnx.NodeProto, wiring: Wiring, stretched: bool) -> bool:
    """Whether it is a convolution over three channels with constant weights; stretched, without holes."""
    if node.op_type != "Conv":
        return False
    given = _attributes(node)
    if stretched and (
        set(given.get("dilations", (1,))) != {1} or given.get("auto_pad", b"NOTSET") != b"NOTSET"
    ):
        return False
    weight = wiring.constants.get(node.input[1])
    biases = [name for name in node.input[2:] if name]
    return weight is not None and weight.dims[1] == 3 and all(name in wiring.constants for name in biases)


def _affine(model: onnx.ModelProto, tensor: str) -> Preprocessing | None:
    """The map from frame to ``tensor`` where it is one affine map of each pixel, tried out on frames; else None."""
    ort = require("onnxruntime", "quantising")
    # The extractor wants the type of each tensor, which not every exporter writes down.
    typed = onnx.shape_inference.infer_shapes(model)
    shown = onnx.utils.Extractor(typed).extract_model([FRAME], [tensor])
    session = ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = shape_of(_frame(model))

    def run(frame: np.ndarray) -> np.ndarray:
        result: np.ndarray = session.run(None, {FRAME: frame})[0]
        return result

    shift = run(np.zeros(shape, np.uint8))
    if shift.shape != (1, 3, *shape[:2]):
        return None
    columns = []
    for channel in range(3):
        frame = np.zeros(shape, np.uint8)
        frame[..., channel] = 255
        columns.append((run(frame)[0, :, 0, 0].astype(np.float64) - shift[0, :, 0, 0]) / 255)
    found = Preprocessing(np.stack(columns, 1), shift[0, :, 0, 0].astype(np.float64))
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    told = np.einsum("ic,hwc->ihw", found.matrix, frame.astype(np.float64)) + found.shift[:, None, None]
    scale = float(np.abs(told).max()) or 1.0
    return found if float(np.abs(run(frame)[0] - told).max()) <= 1e-4 * scale else None
