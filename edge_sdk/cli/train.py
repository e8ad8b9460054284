"""``edge-sdk train``."""

from __future__ import annotations

from edge_sdk.cli.options import DeviceOption, JsonFlag, OutFolder, Recipe, Resume


def train(
    recipe: Recipe,
    out: OutFolder = None,
    device: DeviceOption = None,
    resume: Resume = True,
    as_json: JsonFlag = False,
) -> None:
    """Train a per-frame network: a teacher from labels, or a rival from a teacher.

    Stopped runs go on from their last checkpoint. On several GPUs: torchrun --nproc-per-node N -m edge_sdk train ...
    """
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import need, read_training

    need("train", "torch", "lightning_fabric", recipe=recipe)
    from edge_sdk.distill import TrainRecipe, train_teacher

    settings = read_training(recipe, TrainRecipe, out=out, device=device)
    with RichProgress() as progress:
        report = train_teacher(settings, progress=progress, resume=resume)
    if as_json:
        emit_json(report)
    else:
        show(figures_table("Trained", report.figures), f"checkpoint: {report.checkpoint}")
