"""What values each tensor of a step graph takes, from real passes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edge_sdk.build.recipe import Int8Settings
from edge_sdk.errors import RecipeError
from edge_sdk.manifest import state_input, state_output
from edge_sdk.optional import require

Ranges = dict[str, tuple[float, float]]
Feeds = Mapping[str, np.ndarray]


class _Reader:
    """Passes in the form that ONNX Runtime's calibrators ask for."""

    def __init__(self, passes: Iterable[Feeds]) -> None:
        self._passes: Iterator[Feeds] = iter(passes)
        self.count = 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self._passes, None)
        if found is None:
            return None
        self.count += 1
        return dict(found)


def measure_ranges(
    graph: Path, passes: Iterable[Feeds], settings: Int8Settings, wanted: Iterable[str] | None = None
) -> Ranges:
    """Lowest and highest value of every float tensor of ``graph`` over ``passes``.

    Args:
        graph: a float32 step graph.
        passes: what the graph's inputs received, one mapping by input name a pass.
        settings: how a range is taken from the values.
        wanted: operator types whose inputs and outputs are measured; None for all, which only ``minmax`` can afford.

    Raises:
        RecipeError: there are no passes.
    """
    require("onnxruntime", "calibrating")
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    extra: dict[str, Any] = {"max_intermediate_outputs": 4} if settings.method == "minmax" else {}
    if settings.method == "percentile":
        extra = {"percentile": settings.percentile, "symmetric": False}
    reader = _Reader(passes)
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            graph,
            None if wanted is None else list(wanted),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[settings.method],
            extra_options=extra,
        )
        try:
            calibrator.collect_data(reader)
        except ValueError as error:
            if reader.count:
                raise
            raise RecipeError(
                f"calibration: no pass of {graph.stem} was given.",
                hint="Record one: edge-sdk calibrate RECIPE",
            ) from error
        found = calibrator.compute_data()
    return {name: (float(np.min(data.lowest)), float(np.max(data.highest))) for name, data in found.items()}


def share_state(keyframe: Ranges, delta: Ranges, state: Iterable[str]) -> None:
    """Give both ends of each state tensor one range, in place: the widest of what was written and read."""
    for name in state:
        ends = [(keyframe, state_output(name)), (delta, state_output(name)), (delta, state_input(name))]
        found = [ranges[key] for ranges, key in ends if key in ranges]
        if found:
            whole = (min(low for low, _ in found), max(high for _, high in found))
            for ranges, key in ends:
                ranges[key] = whole


def save_as_cache(ranges: Ranges, path: Path) -> None:
    """Write ranges as the calibration cache that ONNX Runtime's quantiser reads."""
    from onnxruntime.quantization import CalibrationMethod, TensorsData, save_tensors_data

    def pair(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        return np.array(low, np.float32), np.array(high, np.float32)

    data = TensorsData(CalibrationMethod.MinMax, {name: pair(*limits) for name, limits in ranges.items()})
    save_tensors_data(data, path)


def largest_magnitude(ranges: Ranges, node: onnx.NodeProto) -> float:
    """Largest magnitude among a node's measured inputs and outputs."""
    limits = [ranges[name] for name in (*node.input, *node.output) if name in ranges]
    return max((max(abs(low), abs(high)) for low, high in limits), default=0.0)
