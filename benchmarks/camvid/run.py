"""The camvid benchmark: train, distil, export, evaluate, and write RESULTS.md and results.json beside this file.

    python benchmarks/camvid/run.py [--only-measure]

It wants the dataset under data/camvid (train and val, each with images/ and labels/); run it from the repository's
root. Everything is trained on camvid/train alone and measured on camvid/val, 101 consecutive frames at 15 a second. A
run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edge_sdk.bundle import Bundle
from edge_sdk.cli.progress import RichProgress
from edge_sdk.compile import ExportRecipe, export
from edge_sdk.distill import DistillRecipe, TrainRecipe, distill, train_teacher
from edge_sdk.distill.distil import load_student
from edge_sdk.evaluate import EvaluateRecipe, Evaluation, evaluate
from edge_sdk.evaluate.evaluation import Row
from edge_sdk.files import write_text
from edge_sdk.settings import load_recipe

HERE = Path(__file__).parent
RUNS = Path("runs/camvid")
FRAME_HW = (360, 480)
# The class of every second pixel of every second row is decided and repeated, in all three networks alike.
DECODE_STRIDE = 2
COMMAND = "python benchmarks/camvid/run.py"


def train(progress: RichProgress) -> None:
    """The five trainings, each from its recipe beside this file."""
    train_teacher(load_recipe(HERE / "teacher.yaml", TrainRecipe), progress=progress)
    for stage in ("student", "student_long", "student_last"):
        distill(load_recipe(HERE / f"{stage}.yaml", DistillRecipe), progress=progress)
    train_teacher(load_recipe(HERE / "rival.yaml", TrainRecipe), progress=progress)


def bundles(progress: RichProgress) -> dict[str, Bundle]:
    """Export all three for camvid's frame size."""
    checkpoints = {
        "teacher": "teacher/model.pt",
        "rival": "rival/model.pt",
        "pair": "student_last/student.pt",
    }
    return {
        name: export(
            ExportRecipe(
                out=RUNS / f"{name}_bundle",
                checkpoint=RUNS / file,
                frame_hw=FRAME_HW,
                decode_stride=DECODE_STRIDE,
            ),
            progress=progress,
        )
        for name, file in checkpoints.items()
    }


def published_state_bytes() -> int:
    """Bytes of the two-tensor form (x_0 and z_0) for the layers of the student that keep state."""
    import torch

    net, _, _ = load_student(RUNS / "student_last/student.pt")
    net.form = "published"
    with torch.no_grad():
        _, state = net.keyframe(torch.zeros(1, 3, *FRAME_HW))
    return sum(value.numel() * value.element_size() for value in state.values())


def measured(row: Row) -> dict[str, float | None]:
    """The figures that the claims are about."""
    timing = row.timing
    return {
        "miou": row.labels,
        "agreement": row.agreement,
        "temporal_consistency": row.consistency,
        "mean_ms": timing.mean_ms.median,
        "p99_ms": timing.p99_ms.median,
        "speedup": timing.speedup.median,
        "runner_ms": timing.runner_ms,
    }


def claims(evaluation: Evaluation, published_bytes: int) -> list[tuple[str, str, bool]]:
    """Each claim: what is claimed, what was measured, whether it holds."""
    rows = {row.name: measured(row) for row in evaluation.rows}
    teacher = rows["teacher"]

    def lost(name: str) -> float:
        return 100 * ((teacher["miou"] or 0.0) - (rows[name]["miou"] or 0.0))

    found: list[tuple[str, str, bool]] = []
    for interval, allowed in ((5, 0.5), (10, 1.0)):
        pair, copy, flow = (rows[f"{kind} K={interval}"] for kind in ("delta", "copy", "flow"))
        points = lost(f"delta K={interval}")
        claim = f"K={interval}: at most {allowed} points below the teacher"
        found.append((claim, f"{points:.2f}", points <= allowed))
        best = max(copy["miou"] or 0.0, flow["miou"] or 0.0)
        beats = (pair["miou"] or 0.0) > best
        found.append((f"K={interval}: beats copy and flow", f"{pair['miou']:.4f} against {best:.4f}", beats))
        steady = (pair["temporal_consistency"] or 0.0) >= (teacher["temporal_consistency"] or 0.0)
        text = f"{pair['temporal_consistency']:.4f} against {teacher['temporal_consistency']:.4f}"
        found.append((f"K={interval}: temporal consistency no worse than the teacher's", text, steady))
    pair10 = rows["delta K=10"]
    speedup = pair10["speedup"] or 0.0
    found.append(("K=10: at least 2.0 times the teacher's frames a second", f"{speedup:.2f}", speedup >= 2.0))
    state = evaluation.row("delta K=10").state_bytes
    text = f"{state / 1e6:.2f} MB against {published_bytes / 1e6:.2f} MB"
    found.append(("state at most half of the published form's", text, state * 2 <= published_bytes))
    cost, mean = pair10["runner_ms"] or 0.0, pair10["mean_ms"] or 1.0
    found.append(("runner's own cost at most 3 % or 0.3 ms", f"{cost:.3f} ms", cost <= max(0.03 * mean, 0.3)))
    return found


def trained_at(evaluation: Evaluation) -> str:
    """Commit at which each network's last stage was trained, from the bundles' provenance; + marks local changes."""
    found = []
    for facts in evaluation.bundles:
        training = facts.provenance.get("training")
        commit = training.get("commit") if isinstance(training, dict) else None
        found.append(f"{facts.role} {commit}")
    return ", ".join(found)


def results_text(evaluation: Evaluation, proofs: list[tuple[str, str, bool]]) -> str:
    """RESULTS.md."""
    conditions = evaluation.conditions
    lines = [
        "# camvid: teacher, delta pair and rival",
        "",
        f"Written by `{COMMAND}`; settings in the recipes beside it. Trained on camvid/train alone, measured on",
        f"camvid/val, {evaluation.source.frames} frames; accuracy over every alignment of the keyframes, times the "
        f"median of {evaluation.recipe.repeats} interleaved runs.",
        "",
        f"Machine: {conditions.cpu}, {conditions.cores} cores; ONNX Runtime float32; commit {conditions.commit}; "
        f"{conditions.date}.",
        f"Networks trained at: {trained_at(evaluation)}.",
        "In INT8: [int8/RESULTS.md](int8/RESULTS.md).",
        "",
        "| variant | mIoU | agreement with teacher | temporal consistency | mean ms (IQR) | p99 ms | speed-up (IQR) "
        "| GMAC | state MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in evaluation.rows:
        figures, timing = measured(row), row.timing
        work = f"{row.macs / 1e9:.2f}" if row.macs is not None else ""
        spent, gained = timing.mean_ms, timing.speedup
        cells = [
            row.name,
            *(f"{figures[key]:.4f}" for key in ("miou", "agreement", "temporal_consistency")),
            f"{spent.median:.2f} ({spent.iqr:.2f})",
            f"{timing.p99_ms.median:.2f}",
            f"{gained.median:.2f} ({gained.iqr:.2f})",
            work,
            f"{row.state_bytes / 1e6:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## mIoU by distance from the keyframe", ""]
    pairs = [row for row in evaluation.rows if row.by_distance]
    longest = max(len(row.by_distance) for row in pairs)
    lines.append("| variant | " + " | ".join(str(d) for d in range(longest)) + " |")
    lines.append("| --- " * (longest + 1) + "|")
    for row in pairs:
        cells = [f"{at.labels:.4f}" for at in row.by_distance] + [""] * (longest - len(row.by_distance))
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    lines += ["", "## Claims", "", "| claim | measured | holds |", "| --- | --- | --- |"]
    lines += [f"| {claim} | {value} | {'yes' if holds else '**no**'} |" for claim, value, holds in proofs]
    lines += ["", *(f"Warning: {warning}" for warning in evaluation.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run the benchmark; exit 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only-measure", action="store_true", help="use the checkpoints under runs/camvid")
    arguments = parser.parse_args()
    with RichProgress() as progress:
        if not arguments.only_measure:
            train(progress)
        made = bundles(progress)
        recipe = EvaluateRecipe(
            bundle=made["pair"].path, teacher=made["teacher"].path, rival=made["rival"].path,
            source="data/camvid/val?fps=15", intervals=(5, 10), repeats=5, out=RUNS / "evaluation",
        )  # fmt: skip
        evaluation = evaluate(recipe, progress=progress)
    evaluation.write_report(RUNS / "evaluation")
    proofs = claims(evaluation, published_state_bytes())
    write_text(HERE / "RESULTS.md", results_text(evaluation, proofs))
    write_text(HERE / "results.json", json.dumps(json.loads(evaluation.to_json()), indent=1) + "\n")
    sys.stdout.write(
        "".join(f"{'ok' if holds else 'MISSED'}: {claim}: {value}\n" for claim, value, holds in proofs)
    )
    return 0 if all(holds for _, _, holds in proofs) else 1


if __name__ == "__main__":
    sys.exit(main())
