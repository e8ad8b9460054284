"""What a plan really runs in: the engine inspector's answer, held against what the graph asks for.

Counted are the layers that do the work, one by one (``asked_precisions`` of the network says which); copies,
casts and element-wise layers say nothing about speed. An engine fuses and renames layers, and lists in each the ONNX
nodes that went into it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from edge_sdk.build.tensorrt.network import onnx_nodes
from edge_sdk.errors import EngineError

UNKNOWN = "unknown"
# Above this share of layers that the inspector does not name, shares would be guesses.
MOST_UNKNOWN = 0.5
# Cheapest first; a layer that runs further right than it was asked to is a request not met.
_ORDER = ("int8", "float16", "bfloat16", "float32")
# How TensorRT's releases write types: "Int8", "Half", "Row major linear FP32", "Thirty-two wide ... Int8 format".
_TYPES = (
    ("bfloat16", r"bf16|bfloat"),
    ("float16", r"half|fp16|float16"),
    ("fp8", r"fp8|e4m3"),
    ("int8", r"int8|\bi8\b"),
    ("float32", r"float|fp32|tf32"),
)
_WORKING = re.compile(r"conv|gemm|matmul|matrix|dla", re.IGNORECASE)
# Whole parts of a graph in one: their inputs say nothing of what happens inside.
_BLOCKS = re.compile(r"ForeignNode|^\{")


def realised_precisions(information: str, asked: dict[str, str]) -> dict[str, str]:
    """Precision in which the engine runs each layer of ``asked``; ``""`` where the inspector does not say.

    Args:
        information: ``get_engine_information`` of an engine built with detailed profiling verbosity, JSON.
        asked: by name of the ONNX node, see :func:`edge_sdk.build.tensorrt.network.asked_precisions`.

    Raises:
        EngineError: the text is not what an inspector writes.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"engine inspector: expected JSON with 'Layers', got {information[:80]!r}."
        ) from error
    found: dict[str, str] = dict.fromkeys(asked, "")
    certain: set[str] = set()
    for layer in layers:
        if not isinstance(layer, dict):  # a name alone: built without detailed verbosity
            continue
        kind = _precision_of(layer)
        works = bool(_WORKING.search(f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"))
        # A copy before a convolution may carry the convolution's name too; the layer that computes has the say.
        for name in _nodes_of(layer):
            if name in found and name not in certain and kind:
                found[name] = kind
                if works:
                    certain.add(name)
    return found


def _nodes_of(layer: dict[str, Any]) -> list[str]:
    named = onnx_nodes(str(layer.get("Metadata", "")))
    return named or [part.strip() for part in str(layer.get("Name", "")).split(" + ")]


def _precision_of(layer: dict[str, Any]) -> str:
    if _BLOCKS.search(str(layer.get("Name", ""))):
        return ""
    texts = [str(layer.get("Precision", ""))]
    for tensor in layer.get("Inputs") or []:
        if isinstance(tensor, dict):
            texts.append(str(tensor.get("Format/Datatype") or tensor.get("Datatype") or ""))
    return next((kind for text in texts if (kind := type_of(text))), "")


def type_of(text: str) -> str:
    """Type that an inspector's words mean, ``""`` where they mean none."""
    return next((kind for kind, pattern in _TYPES if re.search(pattern, text, re.IGNORECASE)), "")


def shares_of(precisions: dict[str, str]) -> dict[str, float]:
    """Share of each precision among the layers, 0-1; layers without one count as ``unknown``."""
    counts = Counter(kind or UNKNOWN for kind in precisions.values())
    return {kind: count / len(precisions) for kind, count in sorted(counts.items())}


def check_realised(
    asked: dict[str, str], realised: dict[str, str], tolerance: float, what: str
) -> tuple[str, ...]:
    """Hold what was built against what was asked for; a request not met is a failure.

    Args:
        tolerance: share of the layers asked for in INT8 or float16 that may run in a higher precision.
        what: the engine, for messages.

    Returns:
        A note for each layer that runs higher than asked, where that is within the tolerance.

    Raises:
        EngineError: more than that do; the message names them.
    """
    low = [name for name, kind in asked.items() if kind in ("int8", "float16")]
    higher = [
        name
        for name in low
        if realised[name] in _ORDER and _ORDER.index(realised[name]) > _ORDER.index(asked[name])
    ]
    words = [f"'{name}' ({asked[name]} asked, {realised[name]} built)" for name in higher]
    if low and len(higher) / len(low) > tolerance:
        shown = ", ".join(words[:5]) + (f" and {len(words) - 5} more" if len(words) > 5 else "")
        raise EngineError(
            f"{what}: {len(higher)} of {len(low)} layers run in a higher precision than the graph asks for: {shown}.",
            hint="TensorRT has no such kernel for them here: keep those layers in higher precision when quantising, or "
            "raise 'precision_tolerance' knowingly.",
        )
    return tuple(f"runs in higher precision than asked: {text}" for text in words)
