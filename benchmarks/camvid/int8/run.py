"""The camvid benchmark in INT8: train, export, calibrate, build, evaluate, profile; writes RESULTS.md beside this file.

    python benchmarks/camvid/int8/run.py [--only-measure]

It wants the dataset under data/camvid; run it from the repository's root. Ranges and the choice of layers come from
camvid/train, the table from camvid/val. A run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from edge_sdk.build.onnxruntime import profile_kernels
from edge_sdk.build.pipeline import build
from edge_sdk.build.recipe import AccuracySettings, BuildRecipe
from edge_sdk.bundle import Bundle
from edge_sdk.cli.progress import RichProgress
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.compile.calibrate import CalibrateRecipe, DrawSettings, calibrate
from edge_sdk.distill import DistillRecipe, TrainRecipe, distill, train_teacher
from edge_sdk.evaluate import EvaluateRecipe, Evaluation, evaluate
from edge_sdk.evaluate.timing import Spread, rotation
from edge_sdk.files import write_text
from edge_sdk.runtime.engine import EngineOptions
from edge_sdk.runtime.onnxruntime import OrtBackend
from edge_sdk.runtime.steps import StepEngines
from edge_sdk.settings import load_recipe

HERE = Path(__file__).parent
RUNS = Path("runs/camvid_int8")
COMMAND = "python benchmarks/camvid/int8/run.py"
INT8 = "onnxruntime-int8"
TRAIN = "data/camvid/train?fps=1"
ROUNDS = 200


def train(progress: RichProgress) -> None:
    """The trainings, each from its recipe beside this file."""
    train_teacher(load_recipe(HERE / "teacher.yaml", TrainRecipe), progress=progress)
    distill(load_recipe(HERE / "student.yaml", DistillRecipe), progress=progress)
    distill(load_recipe(HERE / "gamma4.yaml", DistillRecipe), progress=progress)


def built(name: str, checkpoint: str, progress: RichProgress) -> Bundle:
    """Export, calibrate and build for ONNX Runtime, in float32 and INT8."""
    bundle = export(
        ExportRecipe(
            out=RUNS / f"{name}_bundle", checkpoint=RUNS / checkpoint, frame_hw=(360, 480), decode_stride=2
        ),
        progress=progress,
    )
    recorded = RUNS / f"{name}_calibration.npz"
    recorded.unlink(missing_ok=True)
    draw = DrawSettings(sources=(f"{TRAIN}&labels=0",), clips=48, frames=2)
    calibrate(CalibrateRecipe(bundle=bundle.path, draw=draw, out=recorded), progress=progress)
    return build(
        BuildRecipe(
            bundle=bundle.path,
            calibration=recorded,
            backends=("onnxruntime",),
            precisions=("int8",),
            accuracy=AccuracySettings(source=TRAIN, interval=2, max_drop=0.5, limit=80, repeats=2),
        ),
        progress=progress,
    ).bundle


def step_times(teacher: Bundle, pair: Bundle) -> dict[str, list[float]]:
    """Times in ms of the bare steps in float32 and INT8, interleaved in rotating order, ``ROUNDS`` of each."""
    import time

    steps = {}
    for engine in ("float32", INT8):
        plain = StepEngines.load(teacher, OrtBackend(), EngineOptions(), engine=engine, with_delta=False)
        both = StepEngines.load(pair, OrtBackend(), EngineOptions(), engine=engine, with_delta=True)
        steps[f"teacher {engine}"] = bound(plain.keyframe)
        steps[f"keyframe {engine}"] = bound(both.keyframe)
        if both.delta is not None:
            steps[f"student {engine}"] = bound(both.delta)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(ROUNDS):
        for name in rotation(list(steps), repeat):
            steps[name].run()  # brings its weights back into the caches
            began = time.perf_counter()
            steps[name].run()
            times[name].append(1e3 * (time.perf_counter() - began))
    return times


def bound(engine):
    return engine.bind({spec.name: engine.allocate(spec) for spec in (*engine.inputs, *engine.outputs)})


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> Spread:
    """How many times faster, over blocks of ten rounds."""
    blocks = [np.median(np.array(times[name]).reshape(-1, 10), axis=1) for name in (slow, fast)]
    return Spread.of(blocks[0] / blocks[1])


def profile_text(bundle: Bundle, step: str) -> list[str]:
    """Where the time of an INT8 step goes, by operator."""
    spec = dict(bundle.pair(INT8).steps.items())[step]
    nodes = profile_kernels(bundle.path / spec.graph, runs=60)
    total = sum(nodes.values())
    operators: dict[str, list[float]] = {}
    for (_, operator), ms in nodes.items():
        operators.setdefault(operator, []).append(ms)
    lines = ["| operator | nodes | ms | share |", "| --- | --- | --- | --- |"]
    for operator, ms in sorted(operators.items(), key=lambda item: -sum(item[1]))[:10]:
        lines.append(f"| {operator} | {len(ms)} | {sum(ms):.2f} | {sum(ms) / total:.0%} |")
    slowest = sorted(nodes.items(), key=lambda item: -item[1])[:5]
    named = "; ".join(f"{name} ({operator}) {ms:.2f}" for (name, operator), ms in slowest)
    return [*lines, "", f"Slowest nodes, ms: {named}."]


def claims(evaluation: Evaluation, times: dict[str, dict[str, list[float]]]) -> list[tuple[str, str, bool]]:
    """Each claim: what is claimed, what was measured, whether it holds."""
    miou = {row.name: 100 * (row.labels or 0.0) for row in evaluation.rows}
    found = []
    for name, built_name in (("delta K=10", f"delta K=10 {INT8}"), ("teacher", f"teacher {INT8}")):
        lost = miou[name] - miou[built_name]
        found.append((f"{name}: INT8 loses at most 0.5 points against float32", f"{lost:.2f}", lost <= 0.5))
    beats = max(miou["copy K=10"], miou["flow K=10"])
    pair = miou[f"delta K=10 {INT8}"]
    found.append(("K=10: INT8 beats copy and flow", f"{pair:.2f} against {beats:.2f}", pair > beats))
    gain = ratio(times["gamma4"], f"teacher {INT8}", f"student {INT8}")
    text = f"{gain.median:.2f} (IQR {gain.iqr:.2f})"
    found.append(("gamma 4: INT8 student step 1.4 times faster than INT8 teacher", text, gain.median >= 1.4))
    return found


def times_text(name: str, times: dict[str, list[float]]) -> list[str]:
    """Median times of the bare steps."""
    lines = [
        f"| {name} | float32 ms (IQR) | INT8 ms (IQR) | INT8 faster (IQR) |",
        "| --- | --- | --- | --- |",
    ]
    for step in ("teacher", "keyframe", "student"):
        cells = [Spread.of(times[f"{step} {engine}"]) for engine in ("float32", INT8)]
        gain = ratio(times, f"{step} float32", f"{step} {INT8}")
        shown = [f"{cell.median:.2f} ({cell.iqr:.2f})" for cell in (*cells, gain)]
        lines.append(f"| {step} step | " + " | ".join(shown) + " |")
    gains = [ratio(times, f"teacher {engine}", f"student {engine}") for engine in ("float32", INT8)]
    shown = [f"{gain.median:.2f} ({gain.iqr:.2f})" for gain in gains]
    return [*lines, f"| teacher over student | {shown[0]} | {shown[1]} | |"]


def results_text(
    evaluation: Evaluation,
    times: dict[str, dict[str, list[float]]],
    proofs: list[tuple[str, str, bool]],
    bundles: dict[str, Bundle],
) -> str:
    """RESULTS.md."""
    conditions = evaluation.conditions
    lines = [
        "# camvid in INT8 on the CPU",
        "",
        f"Written by `{COMMAND}`; settings in the recipes beside it. The networks are those of",
        "[../RESULTS.md](../RESULTS.md), trained for a shorter time, so compare rows of this table with each other",
        "only.",
        "Trained and calibrated on camvid/train alone, measured on camvid/val, "
        f"{evaluation.source.frames} frames; accuracy over",
        "every alignment of the keyframes, times the median of "
        f"{evaluation.recipe.repeats} interleaved runs.",
        "",
        f"Machine: {conditions.cpu}, {conditions.cores} cores; ONNX Runtime; commit {conditions.commit}; "
        f"{conditions.date}.",
        "",
        "| variant | mIoU | agreement with float32 teacher | mean ms (IQR) | p99 ms | speed-up (IQR) | state MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in evaluation.rows:
        spent, gained = row.timing.mean_ms, row.timing.speedup
        lines.append(
            f"| {row.name} | {row.labels:.4f} | {row.agreement:.4f} | {spent.median:.2f} ({spent.iqr:.2f}) | "
            f"{row.timing.p99_ms.median:.2f} | {gained.median:.2f} ({gained.iqr:.2f}) | {row.state_bytes / 1e6:.2f} |"
        )
    for name in ("pair", "teacher"):
        variant = bundles[name].manifest.variants[INT8].provenance
        lines += ["", f"Layers kept in float32, {name}: {json.dumps(variant['kept'])}."]
    lines += ["", "## Bare steps", "", f"{ROUNDS} rounds of all steps in rotating order, in one process.", ""]
    lines += times_text("pair (gamma 8, blocks)", times["pair"])
    lines += ["", *times_text("gamma 4, one join a layer", times["gamma4"])]
    for step, bundle in (("keyframe", bundles["teacher"]), ("delta", bundles["gamma4"])):
        title = "INT8 teacher step" if step == "keyframe" else "INT8 student step, gamma 4"
        lines += ["", f"## Where the time goes: {title}", "", *profile_text(bundle, step)]
    lines += ["", "## Claims", "", "| claim | measured | holds |", "| --- | --- | --- |"]
    lines += [f"| {claim} | {value} | {'yes' if holds else '**no**'} |" for claim, value, holds in proofs]
    lines += ["", *(f"Warning: {warning}" for warning in evaluation.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only-measure", action="store_true", help=f"use the checkpoints under {RUNS}")
    arguments = parser.parse_args()
    with RichProgress() as progress:
        if not arguments.only_measure:
            train(progress)
        checkpoints = {
            "teacher": "teacher/model.pt",
            "pair": "student/student.pt",
            "gamma4": "gamma4/student.pt",
        }
        bundles = {name: built(name, file, progress) for name, file in checkpoints.items()}
        evaluation = evaluate(
            EvaluateRecipe(
                bundle=bundles["pair"].path, teacher=bundles["teacher"].path, source="data/camvid/val?fps=15",
                engines=(INT8,), intervals=(5, 10), repeats=5, out=RUNS / "evaluation",
            ),
            progress=progress,
        )  # fmt: skip
        times = {name: step_times(bundles["teacher"], bundles[name]) for name in ("pair", "gamma4")}
    evaluation.write_report(RUNS / "evaluation")
    proofs = claims(evaluation, times)
    write_text(HERE / "RESULTS.md", results_text(evaluation, times, proofs, bundles))
    figures = {"evaluation": json.loads(evaluation.to_json()), "step_times_ms": times}
    write_text(HERE / "results.json", json.dumps(figures, indent=1) + "\n")
    sys.stdout.write(
        "".join(f"{'ok' if holds else 'MISSED'}: {claim}: {value}\n" for claim, value, holds in proofs)
    )
    return 0 if all(holds for _, _, holds in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
