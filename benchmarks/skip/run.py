"""The Skip-Convolution benchmark: gated layers and a gate for whole frames.

    python benchmarks/skip/run.py [--only-measure]

It writes RESULTS.md and results.json beside this file, and wants the dataset under data/, the camvid teacher of
benchmarks/camvid/int8 and the camera's of benchmarks/online; run it from the repository's root. Rows of gated layers
are kept under runs/skip, so that a run that was stopped goes on; times are always measured anew. Learned gates are
trained first, unless they are there (--only-measure: they must be).
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import torch
from cases import CASES, INTERVALS, RUNS, Case, read
from frames import REPEATS, STRIDE, THREADS, frame_rows, pair_rows
from layers import layer_rows

from edge_sdk.cli.progress import RichProgress
from edge_sdk.conditions import Conditions
from edge_sdk.distill.skip import SkipRecipe
from edge_sdk.distill.skip.train import train_skip
from edge_sdk.files import write_text
from edge_sdk.settings import load_recipe

HERE = Path(__file__).parent
COMMAND = "python benchmarks/skip/run.py"
Row = dict[str, Any]


def measured(progress: RichProgress) -> dict[str, Any]:
    """Everything, by case."""
    streams = {case.name: read(case) for case in CASES}
    return {
        "frames": {case.name: frame_rows(case, streams[case.name], progress) for case in CASES},
        "pair": pair_rows(CASES[0], streams[CASES[0].name], progress),
        "layers": {case.name: layer_rows(case, streams[case.name], progress) for case in CASES},
    }


def claims(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Each claim: what is claimed, what was measured, whether it holds."""
    found = []
    for case in CASES:
        rows = results["layers"][case.name]
        exact = next(row for row in rows if row["name"] == "input norm, eps 0")
        teacher = rows[0]
        frames = teacher["equal_frames"]
        text = f"logits of {exact['exact_frames']} of {frames} frames equal bit for bit"
        holds = exact["exact_frames"] == frames
        found.append((f"{case.name}: with threshold 0 the result equals the teacher's", text, holds))
        for gate in ("input norm", "output norm"):
            points = sorted(
                (row["open"], row["agreement"])
                for row in rows
                if row["interval"] == 10
                and row["name"].startswith(f"{gate}, eps")
                and row["name"].count(",") == 1
            )
            rises = all(a[1] <= b[1] for a, b in pairwise(points))
            text = ", ".join(f"{agreement:.3f} at {share:.2f}" for share, agreement in points)
            found.append((f"{case.name}, {gate}, K=10: the more is open, the better it agrees", text, rises))
    return found


def layer_table(case: Case, rows: list[Row]) -> list[str]:
    """Agreement against open share."""
    labelled = rows[0]["miou"] is not None
    head = ["variant", "K", "open share", "GMAC", "of the teacher's", "agreement with teacher"]
    lines = [f"### {case.name}", "", case.words + ".", ""]
    lines.append("| " + " | ".join([*head, *(["mIoU"] if labelled else []), "masks equal"]) + " |")
    lines.append("| --- " * (len(head) + 1 + labelled) + "|")
    for row in sorted(rows, key=lambda row: row["interval"]):
        share = "" if row["open"] is None else f"{row['open']:.3f}"
        cells = [row["name"], str(row["interval"]), share, f"{row['gmac']:.2f}"]
        cells += [f"{row['gmac'] / rows[0]['gmac']:.0%}", f"{row['agreement']:.4f}"]
        cells += [f"{row['miou']:.4f}"] if labelled else []
        lines.append("| " + " | ".join([*cells, str(row["equal_frames"])]) + " |")
    return [*lines, ""]


def time_table(title: str, rows: list[Row]) -> list[str]:
    """Accuracy and time of what runs."""
    labelled = rows[0]["miou"] is not None
    head = ["variant", "keyframes", "agreement", *(["mIoU"] if labelled else []), "mean ms (IQR)"]
    head += ["keyframe ms", "between ms", "times faster than the teacher (IQR)"]
    lines = [f"### {title}", "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [row["name"], str(row["keyframes"]), f"{row['agreement']:.4f}"]
        cells += [f"{row['miou']:.4f}"] if labelled else []
        cells.append(f"{row['mean_ms']:.2f} ({row['mean_ms_iqr']:.2f})")
        cells += ["" if row[key] is None else f"{row[key]:.2f}" for key in ("keyframe_ms", "between_ms")]
        lines.append("| " + " | ".join([*cells, f"{row['speedup']:.2f} ({row['speedup_iqr']:.2f})"]) + " |")
    return [*lines, ""]


def results_text(results: dict[str, Any], proofs: list[tuple[str, str, bool]], conditions: Conditions) -> str:
    """RESULTS.md."""
    lines = [
        "# Skip-Convolution: what is computed, what is lost, and what is saved in time",
        "",
        f"Written by `{COMMAND}`. What the words mean is in [docs/skip.md](../../docs/skip.md).",
        f"Machine: {conditions.cpu}, {conditions.cores} cores, load {conditions.load}; commit {conditions.commit}; "
        f"{conditions.date}.",
        "",
        "## Gated layers: work, not time",
        "",
        "Every convolution has a gate. Open share: of the gated layers, weighted by their multiply-accumulates, mean "
        "over the frames between keyframes. GMAC: a frame, keyframes counted in. Keyframes at frames 0, K, 2K, ...; "
        "agreement: mean IoU with the teacher's own masks over all frames. Updates are `refresh`, changes are measured "
        "from the frame before and `eps` is absolute where the row says nothing else. The teacher's masks are those of "
        "the network as it was trained; gated networks have their batch norms folded, which rounds otherwise and tips "
        "a pixel in a few frames, so that not even keyframes always have equal masks. Gumbel gates "
        "([gumbel.yaml](gumbel.yaml)) were trained on camvid/train alone. They answer as copy does: in use, without "
        "the noise of training, the gates that the answer hangs on stay closed and the others spend work for nothing: "
        "this beta is too high.",
        "",
    ]
    for case in CASES:
        lines += layer_table(case, results["layers"][case.name])
    lines += [
        "## A gate for whole frames: time",
        "",
        f"The teacher runs where the picture has changed by more than so many grey levels since it last ran (mean over "
        f"every {STRIDE}th pixel of every {STRIDE}th row), else its last answer stays. Copy and flow have about as "
        f"many keyframes, evenly spread. EdgeRunner on ONNX Runtime, float32, {THREADS} thread; medians of {REPEATS} "
        "interleaved runs, ratios within each run. Other programs ran on this machine: trust ratios, not milliseconds.",
        "",
    ]
    for case in CASES:
        lines += time_table(case.name, results["frames"][case.name])
    state = results["pair"][0]["state_mb"]
    lines += [
        "## Gated layers on a backend without sparse kernels: time",
        "",
        f"The exported pair on camvid/val: every pixel is computed and the closed ones are thrown away. "
        f"State: {state:.1f} MB, all of it rewritten every frame.",
        "",
        *time_table("camvid/val", results["pair"]),
        "## Claims",
        "",
        "| claim | measured | holds |",
        "| --- | --- | --- |",
        *(f"| {claim} | {value} | {'yes' if holds else '**no**'} |" for claim, value, holds in proofs),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only-measure", action="store_true", help="use the gates under runs/skip")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(THREADS)
    with RichProgress() as progress:
        if not arguments.only_measure and not (RUNS / "gumbel/student.pt").is_file():
            train_skip(load_recipe(HERE / "gumbel.yaml", SkipRecipe), progress=progress)
        results = measured(progress)
    conditions = Conditions.now(threads=THREADS)
    proofs = claims(results)
    write_text(HERE / "RESULTS.md", results_text(results, proofs, conditions))
    document = {"command": COMMAND, "conditions": conditions.model_dump(mode="json"), "intervals": INTERVALS}
    write_text(HERE / "results.json", json.dumps(document | results, indent=1) + "\n")
    sys.stdout.write(
        "".join(f"{'ok' if holds else 'MISSED'}: {claim}: {value}\n" for claim, value, holds in proofs)
    )
    return 0 if all(holds for _, _, holds in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
