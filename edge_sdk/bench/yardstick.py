"""A small fixed piece of work, timed all through a run: it tells a slow machine from a slow bundle.

Two runs are hours or days apart, and the machine may have become slower meanwhile: other work, heat, another power
mode. The yardstick is the same graph in every run, so what it says is the machine's doing; where a bundle became slower
and the yardstick did not, it is the bundle's.

What slows a machine slows each kind of work by another factor: a neighbour that takes memory bandwidth hardly touches
convolutions whose maps lie in a core's cache, and one that takes processor time in slices hits many small layers
hardest. So the graph is a mixture: INT8 and float32, large maps and small. On a shared virtual machine with two
processors it left 3 to 4 % of the 7 to 11 % by which the steps of an INT8 pair varied from one quarter of a minute to
the next; float32 convolutions in the cache alone left 4 to 8 %.
"""

from __future__ import annotations

import math
import statistics
from importlib import resources

from edge_sdk.bench.clock import Clock
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import OrtBackend

_RUNS = 7
# Readings so close to each other are one: the one after a block is the one before the next.
_SAME_MS = 5.0
_GRAPH = "yardstick.onnx"


class Yardstick:
    """The graph on ONNX Runtime with the run's own number of threads: some milliseconds of a small processor.

    A GPU has none: its clocks are told by the readings.

    Args:
        threads: CPU threads; None for the backend's own choice.
        clock: the run's.
    """

    def __init__(self, threads: int | None, clock: Clock) -> None:
        self._clock = clock
        self._last_ms, self._last_at_ms = 0.0, -math.inf
        with resources.as_file(resources.files(__package__) / _GRAPH) as path:
            self._engine = OrtBackend().load(path, EngineOptions(threads=threads))
        specs = (*self._engine.inputs, *self._engine.outputs)
        self._step = self._engine.bind({spec.name: self._engine.allocate(spec) for spec in specs})

    def measure_ms(self) -> float:
        """Median of seven runs; one before them brings its memory into the caches."""
        if self._clock.now_ms() - self._last_at_ms > _SAME_MS:
            self._step.run()
            times = []
            for _ in range(_RUNS):
                began_ms = self._clock.now_ms()
                self._step.run()
                times.append(self._clock.now_ms() - began_ms)
            self._last_ms, self._last_at_ms = statistics.median(times), self._clock.now_ms()
        return self._last_ms

    def close(self) -> None:
        """Release it."""
        self._engine.close()
