"""What values each tensor of a step graph takes, from real passes."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
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


# ONNX Runtime's own 128 bins leave the search for the range of least entropy loss one candidate: all values.
_BINS = {"percentile": 2048, "entropy": 512}
_QUANTISED_BINS = 128


class _One:
    """One pass in the form that ONNX Runtime's calibrators ask for."""

    def __init__(self, given: Feeds) -> None:
        self._left = [dict(given)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def measure_ranges(
    graph: Path, passes: Iterable[Feeds], settings: Int8Settings, limits: Ranges | None = None
) -> Ranges:
    """Lowest and highest value of every float tensor of ``graph`` over ``passes``; one pass is in memory at a time.

    Args:
        graph: a float32 step graph.
        passes: what the graph's inputs received, one mapping by input name a pass.
        settings: how a range is taken from the values.
        limits: what ``minmax`` gives for these passes; the methods that count values need it.

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
    # The calibrators print what they do, and standard output is the caller's.
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            graph,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=methods[settings.method],
        )
        if settings.method != "minmax":
            calibrator.collector = _histograms(settings, limits or {})
        count = 0
        # Pass by pass: given all at once, the histograms' calibrators keep every tensor of every pass, and minmax with
        # its limit on what it keeps forgets what it had before.
        for given in passes:
            calibrator.collect_data(_One(given))
            count += 1
        if not count:
            raise RecipeError(
                f"calibration: no pass of {graph.stem} was given.",
                hint="Record one: edge-sdk calibrate RECIPE",
            )
        found = calibrator.compute_data()
    return {name: (float(np.min(data.lowest)), float(np.max(data.highest))) for name, data in found.items()}


def _histograms(settings: Int8Settings, limits: Ranges) -> Any:
    """Empty histograms over the whole range of each tensor.

    Left to itself, ONNX Runtime widens a histogram by as many bins as a larger pass needs, and the search for the range
    of least entropy loss takes the square of them.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    found = HistogramCollector(
        method=settings.method,
        symmetric=False,
        num_bins=_BINS[settings.method],
        num_quantized_bins=_QUANTISED_BINS,
        percentile=settings.percentile,
        scenario="same",
    )
    if limits:
        found.collect({name: np.array(ends, np.float32) for name, ends in limits.items()})
    return found


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
