"""Keeping weights exchangeable through an export: each a plain initialiser of its own, under its parameter's name.

Exporters fold norms into convolutions and merge constants that are equal. So the tensors that learn are inputs of the
graph while it is written and simplified, which nothing can fold, and become initialisers only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edge_sdk.compile.graphs import Decoder, StepGraph
from edge_sdk.compile.weights import check_names
from edge_sdk.distill.online import OnlinePair
from edge_sdk.distill.steps import StepPair
from edge_sdk.errors import EngineError, RecipeError
from edge_sdk.manifest import StepName

# A graph output that is there for the check of an export alone.
LOGITS = "logits"


def learned_values(pair: StepPair) -> dict[str, np.ndarray]:
    """Value of every tensor that learning may change, by name; none for a pair that does not learn on the stream."""
    learned: Mapping[str, Tensor] = pair.learned() if isinstance(pair, OnlinePair) else {}
    return {name: value.detach().cpu().numpy() for name, value in learned.items()}


class Lifted(nn.Module):
    """A step whose named tensors are inputs: ``forward(frame, state, values)``.

    Args:
        graph: the step.
        names: the tensors' names in its pair, in the order in which the values are given.
    """

    def __init__(self, graph: StepGraph, names: Sequence[str]) -> None:
        super().__init__()
        # In a list: as a submodule its own tensors would be exported beside those that take their place.
        self._graph = [graph]
        self.names = tuple(f"pair.{name}" for name in names)

    def forward(
        self, frame: Tensor, state: tuple[Tensor, ...], values: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Run the step on ``frame`` with ``values`` in place of its own."""
        out: tuple[Tensor, ...] = torch.func.functional_call(
            self._graph[0], dict(zip(self.names, values, strict=True)), (frame, *state)
        )
        return out


def settle(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Turn the inputs of these names into initialisers, in place; what the graph does not use is left out."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [value for value in model.graph.input if value.name not in values]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in used
    )


def tensors_in(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, str]:
    """Those of the tensors that a graph holds, each with the name that it has there."""
    held = {tensor.name for tensor in model.graph.initializer}
    return {name: name for name in names if name in held}


def check_open(tensors: Mapping[StepName, Mapping[str, str]], names: Iterable[str]) -> None:
    """Check that every open tensor is in a graph.

    Raises:
        RecipeError: no step uses it.
    """
    held = {name for step in tensors.values() for name in step}
    for name in names:
        if name not in held:
            raise RecipeError(f"'open': neither step uses '{name}'.", hint="Leave it out of 'open'.")


def shaken(values: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Other values of the same kind: far enough from these that answers change, near enough to stay finite."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, value in values.items():
        spread = 0.3 * float(value.std()) + 0.05 * float(np.abs(value).mean()) + 0.01
        noise = rng.normal(size=value.shape).astype(value.dtype) * np.asarray(spread, value.dtype)
        # Variances stay positive; so does whatever else is positive throughout.
        positive = value.size > 0 and bool((value > 0).all())
        out[name] = np.maximum(value + noise, 0.1 * value) if positive else value + noise
    return out


def set_pair(pair: OnlinePair, values: Mapping[str, np.ndarray]) -> None:
    """Put values into a pair, in place.

    Raises:
        BundleError: a value is missing or is nobody's.
    """
    learned = pair.learned()
    check_names(learned, values)
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(torch.from_numpy(np.asarray(values[name])))


class _Undecided(nn.Module):
    """In a decoder's place: the logits that it decides by."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, logits: Tensor) -> Tensor:
        return self.decoder.resized(logits)


def undecided(graph: StepGraph) -> StepGraph:
    """The same step, whose first output is the logits that its mask is decided by."""
    if not isinstance(graph.decoder, Decoder):
        raise TypeError(f"expected a step with a Decoder, got {type(graph.decoder).__name__}")
    return StepGraph(
        graph.pair, graph.step, graph.to_input, _Undecided(graph.decoder), graph.reads,
        matmul_resize=graph.matmul_resize,
    ).eval()  # fmt: skip


def show_logits(model: onnx.ModelProto, answer: str) -> None:
    """Give a graph the output :data:`LOGITS`, in place: what its ``answer`` is decided by.

    Raises:
        EngineError: no argmax leads to the answer.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(answer)
    while node is not None and node.op_type != "ArgMax":
        node = makers.get(node.input[0])
    if node is None:
        raise EngineError(f"export: no ArgMax leads to the output '{answer}'.", hint="Report this network.")
    model.graph.node.append(onnx.helper.make_node("Identity", [node.input[0]], [LOGITS]))
    model.graph.output.append(onnx.helper.make_tensor_value_info(LOGITS, onnx.TensorProto.FLOAT, None))
