"""A small fixed piece of work, timed all through a run: it tells a slow machine from a slow bundle.

Two runs are hours or days apart, and the machine may have become slower meanwhile: other work, heat, another power
mode. The yardstick is the same graph in every run, so what it says is the machine's doing; where a bundle became slower
and the yardstick did not, it is the bundle's.
"""

from __future__ import annotations

import statistics
from importlib import resources

from edge_sdk.bench.clock import Clock
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import OrtBackend

_RUNS = 9
_GRAPH = "yardstick.onnx"


class Yardstick:
    """Three convolutions on ONNX Runtime with the run's own number of threads; about 2 million bytes of maps.

    A GPU has none: its clocks are told by the readings.

    Args:
        threads: CPU threads; None for the backend's own choice.
        clock: the run's.
    """

    def __init__(self, threads: int | None, clock: Clock) -> None:
        self._clock = clock
        with resources.as_file(resources.files(__package__) / _GRAPH) as path:
            self._engine = OrtBackend().load(path, EngineOptions(threads=threads))
        specs = (*self._engine.inputs, *self._engine.outputs)
        self._step = self._engine.bind({spec.name: self._engine.allocate(spec) for spec in specs})

    def measure_ms(self) -> float:
        """Median of nine runs; two before them bring its memory into the caches."""
        for _ in range(2):
            self._step.run()
        times = []
        for _ in range(_RUNS):
            began_ms = self._clock.now_ms()
            self._step.run()
            times.append(self._clock.now_ms() - began_ms)
        return statistics.median(times)

    def close(self) -> None:
        """Release it."""
        self._engine.close()
