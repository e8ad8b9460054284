"""How far `edge-sdk bench` can be trusted on this machine; writes RESULTS.md and results.json beside this file.

    python benchmarks/latency/run.py [--runs 10]

It wants the bundles of benchmarks/camvid/int8 and the dataset under data/camvid; run it from the repository's root, on
a machine that is left alone. It measures

1. two standard runs of the same bundle, and compares them;
2. a reference run, then by turns `--runs` runs in which nothing was changed and as many in which the delta step takes
   10 % longer, each compared with the reference;
3. what the runner costs over the bare session, in the standard runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sdk.bench.compare import Comparison, compare
from edge_sdk.bench.document import BenchDocument
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.cli.progress import RichProgress
from edge_sdk.files import write_text
from edge_sdk.runtime.engine import Backend, BoundStep, Buffer, Engine, EngineOptions, Lane
from edge_sdk.runtime.onnxruntime import OrtBackend
from edge_sdk.tensors import TensorSpec

HERE = Path(__file__).parent
COMMAND = "python benchmarks/latency/run.py"
FPS = 15.0
BUNDLE, TEACHER = Path("runs/camvid_int8/pair_bundle"), Path("runs/camvid_int8/teacher_bundle")
SOURCE = "data/camvid/val"
SLOWER = 1.1


class SlowStep:
    """A step that takes longer by a factor: it is kept busy after its run."""

    def __init__(self, step: BoundStep, factor: float) -> None:
        self._step, self._factor = step, factor
        self._began = 0

    @property
    def device_times(self) -> Any:
        return self._step.device_times

    def run(self) -> None:
        self.start()
        self.wait()

    def start(self) -> None:
        self._began = time.perf_counter_ns()
        self._step.start()

    def finished(self) -> bool:
        return self._step.finished()

    def wait(self) -> None:
        self._step.wait()
        until = self._began + int((time.perf_counter_ns() - self._began) * self._factor)
        while time.perf_counter_ns() < until:
            pass


class SlowEngine:
    """Binds slow steps."""

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine, self._factor = engine, factor
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def allocate(self, spec: TensorSpec, *, host: bool = True) -> Buffer:
        return self._engine.allocate(spec, host=host)

    def bind(self, buffers: Mapping[str, Buffer], lane: Lane | None = None) -> SlowStep:
        return SlowStep(self._engine.bind(buffers, lane), self._factor)

    def close(self) -> None:
        self._engine.close()


class SlowBackend(OrtBackend):
    """ONNX Runtime with one step that takes longer."""

    def __init__(self, step: str, factor: float) -> None:
        self._step, self._factor = step, factor

    def load(self, path: Path, options: EngineOptions, built: bytes | None = None) -> Any:
        engine = super().load(path, options, built)
        return SlowEngine(engine, self._factor) if path.stem == self._step else engine


def measured(recipe: BenchRecipe, progress: RichProgress, backend: Backend | None = None) -> BenchDocument:
    document = bench(recipe, backend=backend, progress=progress)
    progress.close()
    return document


def by_metric(comparison: Comparison) -> dict[str, Any]:
    return json.loads(comparison.model_dump_json())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    standard = BenchRecipe(bundle=BUNDLE, source=SOURCE, teacher=TEACHER, fps=FPS, accuracy=False)
    quick = BenchRecipe(
        bundle=BUNDLE, source=SOURCE, fps=FPS, accuracy=False, baselines=False, preset="quick"
    )
    with RichProgress() as progress:
        first, second = measured(standard, progress), measured(standard, progress)
        reference = measured(quick, progress)
        same, slow = [], []
        for _ in range(runs):
            same.append(compare(reference, measured(quick, progress)))
            slow.append(compare(reference, measured(quick, progress, SlowBackend("delta", SLOWER))))
    results = {
        "command": COMMAND,
        "conditions": json.loads(first.conditions.model_dump_json()),
        "standard": [
            {
                "figures": json.loads(run.figures.model_dump_json()),
                "verdict": json.loads(run.verdict.model_dump_json()),
            }
            for run in (first, second)
        ],
        "two_standard_runs": by_metric(compare(first, second)),
        "unchanged": [by_metric(found) for found in same],
        "slower": [by_metric(found) for found in slow],
    }
    write_text(HERE / "results.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
