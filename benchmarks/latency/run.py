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
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_sdk.bench.compare import Comparison, compare
from edge_sdk.bench.document import BenchDocument
from edge_sdk.bench.pipeline import bench
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.cli.progress import RichProgress
from edge_sdk.files import write_text
from edge_sdk.runtime.engine import BoundStep, Buffer, Engine, EngineOptions, Lane
from edge_sdk.runtime.onnxruntime import OrtBackend
from edge_sdk.settings import load_recipe
from edge_sdk.tensors import TensorSpec

HERE = Path(__file__).parent
RUNS = Path("runs/latency")
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
        self.inputs, self.outputs, self.refittable = engine.inputs, engine.outputs, engine.refittable

    def refitted(self, weights: Mapping[str, Any]) -> Any:
        return SlowEngine(self._engine.refitted(weights), self._factor)

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


def measured(name: str, recipe: BenchRecipe, slower: str | None = None) -> BenchDocument:
    """A bench in a process of its own, as a user runs it."""
    path = RUNS / f"{name}.json"
    settings = RUNS / "recipe.yaml"
    write_text(settings, yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
    words = [sys.executable, __file__, "--one", str(settings), str(path), *([slower] if slower else [])]
    subprocess.run(words, check=True)
    return BenchDocument.load(path)


def one(settings: str, path: str, slower: str | None = None) -> None:
    """What the child process does."""
    recipe = load_recipe(settings, BenchRecipe)
    backend = None if slower is None else SlowBackend(slower, SLOWER)
    with RichProgress() as progress:
        write_text(Path(path), bench(recipe, backend=backend, progress=progress).to_json())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(*given.one)
        return
    RUNS.mkdir(parents=True, exist_ok=True)
    standard = BenchRecipe(bundle=BUNDLE, source=SOURCE, teacher=TEACHER, fps=FPS, accuracy=False)
    # The time that a standard run spends on the bundle itself, saturated and beside the bare engine.
    short = standard.model_copy(
        update={"teacher": None, "baselines": False, "seconds": 45.0, "camera_share": 0.1}
    )
    first, second = measured("standard_1", standard), measured("standard_2", standard)
    reference = measured("reference", short)
    same, slow = [], []
    for number in range(given.runs):
        same.append(compare(reference, measured(f"same_{number}", short)))
        slow.append(compare(reference, measured(f"slow_{number}", short, "delta")))
        print(number, same[-1].summary(), "|", slow[-1].summary(), flush=True)
    results = Results(first, second, compare(first, second), same, slow)
    write_text(HERE / "results.json", json.dumps(results.plain(), indent=1) + "\n")
    write_text(HERE / "RESULTS.md", results.markdown())


@dataclass(frozen=True)
class Results:
    """What was found."""

    first: BenchDocument
    second: BenchDocument
    between: Comparison
    same: list[Comparison]
    slow: list[Comparison]

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "command": COMMAND,
            "conditions": self.first.conditions.model_dump(mode="json"),
            "standard": [
                {
                    "figures": run.figures.model_dump(mode="json"),
                    "verdict": run.verdict.model_dump(mode="json"),
                }
                for run in (self.first, self.second)
            ],
            "between": self.between.model_dump(mode="json"),
            "unchanged": [found.model_dump(mode="json") for found in self.same],
            "slower": [found.model_dump(mode="json") for found in self.slow],
        }

    def markdown(self) -> str:
        """For people."""
        conditions = self.first.conditions
        found = sum(any(c.metric == "delta step p50" for c in run.changed if c.worse) for run in self.slow)
        quiet = sum(not run.changed for run in self.same)
        lines = [
            "# How far a bench can be trusted",
            "",
            f"`{COMMAND}`, commit `{conditions.commit}`, {conditions.machine}, {conditions.cpu}, {conditions.cores} "
            f"processors, onnxruntime {conditions.packages.get('onnxruntime')}, {conditions.date}. The INT8 pair of "
            f"benchmarks/camvid/int8 at {FPS:g} frames a second.",
            "",
            "## Two standard runs of the same bundle",
            "",
            *_table(self.between),
            "",
            *(f"- {note}" for note in self.between.notes()),
            "",
            "## What the runner costs over the bare session",
            "",
            "| run | step | bare ms | own ms (95 % interval) | share |",
            "| --- | --- | --- | --- | --- |",
            *(row for number, run in enumerate((self.first, self.second), 1) for row in _cost(number, run)),
            "",
            "## A delta step that takes 10 % longer, and nothing at all",
            "",
            f"Each of {len(self.slow)} runs with a slower delta step and {len(self.same)} without is compared with one "
            "reference run: the time that a standard run spends on the bundle itself, each in a process of its own.",
            "",
            f"- The slower delta step was found in {found} of {len(self.slow)}.",
            f"- No change was reported in {quiet} of {len(self.same)} in which nothing had changed.",
            "",
            "| run | machine | delta step, unchanged | delta step, 10 % longer |",
            "| --- | --- | --- | --- |",
        ]
        for number, (same, slow) in enumerate(zip(self.same, self.slow, strict=True)):
            machine = " / ".join(
                "-" if c.machine is None else f"{c.machine.value:+.1%}" for c in (same, slow)
            )
            lines.append(f"| {number} | {machine} | {_delta(same)} | {_delta(slow)} |")
        others = [c for run in self.same for c in run.changed]
        lines += ["", *(f"- Reported without reason: {c.metric}: {c.text()}" for c in others)]
        return "\n".join(lines).rstrip() + "\n"


def _table(comparison: Comparison) -> list[str]:
    head = ["| figure | first | second | found |", "| --- | --- | --- | --- |"]
    return head + ["| " + " | ".join(row) + " |" for row in comparison.rows()]


def _cost(number: int, run: BenchDocument) -> list[str]:
    return [
        f"| {number} | {kind} | {cost.bare_ms:.2f} | {cost.own_ms.value:.3f} ({cost.own_ms.low:.3f} to "
        f"{cost.own_ms.high:.3f}) | {cost.share:.1%} |"
        for kind, cost in run.figures.cost.items()
    ]


def _delta(comparison: Comparison) -> str:
    return next(change.text() for change in comparison.changes if change.metric == "delta step p50")


if __name__ == "__main__":
    main()
