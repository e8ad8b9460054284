"""Keyframes in turn and beside the frames, at camera pace, on camvid/val: latency, and accuracy with the older state.

    python benchmarks/camvid/asynchronous/run.py

It wants data/camvid and the built bundles that benchmarks/camvid/int8/run.py leaves. Writes RESULTS.md and
results.json beside this file. Frames come at 15 a second as the video was taken; a frame's latency is from when it is
there to when its answer is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from edge_sdk.bundle import Bundle
from edge_sdk.cli.progress import RichProgress
from edge_sdk.conditions import Conditions
from edge_sdk.evaluate.clip import Clip, read_clip
from edge_sdk.files import write_text
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.runner import EdgeRunner
from edge_sdk.runtime.schedule import EverySchedule, ExternalSchedule, ScheduleSettings

HERE = Path(__file__).parent
BUNDLE = Path("runs/camvid_int8/pair_bundle")
COMMAND = "python benchmarks/camvid/asynchronous/run.py"
FPS, INTERVAL, ROUNDS = 15.0, 10, 5
WAYS = ("in turn", "beside", "none after the first")
ENGINES = ("float32", "onnxruntime-int8")


def paced(runner: EdgeRunner, clip: Clip) -> tuple[list[float], list[int], list[np.ndarray]]:
    """Latency in ms, age of the state and mask of each frame, given at camera pace."""
    runner.reset()
    latencies, ages, masks = [], [], []
    began = time.perf_counter()
    for index, frame in enumerate(clip.frames):
        due = began + index / FPS
        # A frame that is late because the one before took long is late for its answer too: no coordinated omission.
        time.sleep(max(0.0, due - time.perf_counter()))
        result = runner(frame)
        latencies.append(1e3 * (time.perf_counter() - due))
        ages.append(result.state_age)
        masks.append(result.mask.copy())
    return latencies, ages, masks


def measure(bundle: Bundle, clip: Clip, progress: RichProgress) -> dict[str, dict]:
    """Every way with every engine, in turns."""
    found: dict[str, dict] = {}
    names = [(engine, way) for engine in ENGINES for way in WAYS]
    for number in range(ROUNDS):
        for index, (engine, way) in enumerate(names):
            progress.update("timing at camera pace", number * len(names) + index, ROUNDS * len(names))
            background = BackgroundKeyframes(threads=1) if way == "beside" else None
            schedule: ScheduleSettings = EverySchedule(interval=INTERVAL, phase=(2 * number) % INTERVAL)
            if way.startswith("none"):
                schedule = ExternalSchedule()
            # The delta step has as many threads as beside a keyframe: this is what the machine's own unrest costs.
            threads = 1 if way.startswith("none") else None
            with EdgeRunner(
                bundle, engine=engine, schedule=schedule, background=background, threads=threads
            ) as runner:
                latencies, ages, masks = paced(runner, clip)
            score = bundle.task.score()
            for truth, mask in zip(clip.truths, masks, strict=True):
                if truth is not None:
                    score.update(type(truth)(mask), truth)
            row = found.setdefault(f"{engine}, {way}", {"latencies": [], "ages": [], "miou": []})
            row["latencies"].append(latencies)
            row["ages"].append(ages)
            row["miou"].append(score.compute()["miou"])
    return found


def figures(row: dict) -> dict[str, float]:
    """Medians over the rounds; the first frame, which has no state to go on with, is left out."""
    runs = [np.array(latencies[1:]) for latencies in row["latencies"]]
    p50, p99, worst = (np.median([np.percentile(run, q) for run in runs]) for q in (50, 99, 100))
    return {
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "max_ms": float(worst),
        "p99_over_p50": float(np.median([np.percentile(run, 99) / np.percentile(run, 50) for run in runs])),
        "oldest_state": float(max(max(ages) for ages in row["ages"])),
        "miou": float(np.mean(row["miou"])),
    }


def results_text(rows: dict[str, dict[str, float]], conditions: Conditions, proofs: list) -> str:
    """RESULTS.md."""
    lines = [
        "# camvid: keyframes in turn and beside the frames",
        "",
        f"Written by `{COMMAND}`. The pair of",
        f"[../int8/RESULTS.md](../int8/RESULTS.md), a keyframe every {INTERVAL} frames, camvid/val at its own {FPS:g}",
        f"frames a second; medians of {ROUNDS} rounds in turns, keyframes at other frames in each. Latency is from",
        "when a frame is there to when its answer is; what waits because the frame before took long counts. Beside the",
        "frames, the keyframe step has one core to itself and the delta step the other; it starts when its own frame",
        "has been answered. 'None after the first' is what the machine's own unrest does to delta steps alone. mIoU",
        "is against the labels.",
        "",
        f"Machine: {conditions.cpu}, {conditions.cores} cores; ONNX Runtime; commit {conditions.commit}; "
        f"{conditions.date}.",
        "",
        "| engines, keyframes | p50 ms | p99 ms | max ms | p99 / p50 | oldest state, frames | mIoU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        cells = [f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms", "p99_over_p50")]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['oldest_state']:.0f} | {row['miou']:.4f} |")
    lines += ["", "| claim | measured | holds |", "| --- | --- | --- |"]
    lines += [f"| {claim} | {value} | {'yes' if holds else '**no**'} |" for claim, value, holds in proofs]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    bundle = Bundle.open(BUNDLE)
    clip = read_clip("data/camvid/val?fps=15", bundle.task, bundle.size_hw)
    with RichProgress() as progress:
        found = measure(bundle, clip, progress)
    rows = {name: figures(row) for name, row in found.items()}
    proofs = []
    for engine in ENGINES:
        beside, turn, floor = (
            rows[f"{engine}, {way}"]["p99_over_p50"] for way in ("beside", "in turn", WAYS[2])
        )
        value = f"{beside:.2f} (in turn {turn:.2f}, without keyframes {floor:.2f})"
        proofs.append((f"{engine}: p99 over p50 at most 1.25", value, beside <= 1.25))
    write_text(HERE / "RESULTS.md", results_text(rows, Conditions.now(None), proofs))
    write_text(HERE / "results.json", json.dumps({"rows": rows, "raw": found}, indent=1) + "\n")
    sys.stdout.write(
        "".join(f"{'ok' if ok else 'MISSED'}: {claim}: {value}\n" for claim, value, ok in proofs)
    )
    return 0 if all(ok for _, _, ok in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
