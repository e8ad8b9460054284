"""``edge-sdk distill``."""

from __future__ import annotations

from edge_sdk.cli.options import DeviceOption, JsonFlag, OutFolder, Recipe, Resume


def distill(
    recipe: Recipe,
    out: OutFolder = None,
    device: DeviceOption = None,
    resume: Resume = True,
    as_json: JsonFlag = False,
) -> None:
    """Distil a delta student from a teacher.

    Stopped runs go on from their last checkpoint. On several GPUs: torchrun --nproc-per-node N -m edge_sdk distill ...
    """
    from edge_sdk.cli.output import emit_json, figures_table, show
    from edge_sdk.cli.progress import RichProgress
    from edge_sdk.cli.stage import need, read_training

    need("distill", "torch", "lightning_fabric", recipe=recipe)
    from edge_sdk import distill as stage

    settings = read_training(recipe, stage.DistillRecipe, out=out, device=device)
    with RichProgress() as progress:
        report = stage.distill(settings, progress=progress, resume=resume)
    if as_json:
        emit_json(report)
    else:
        show(figures_table("Distilled", report.figures), f"checkpoint: {report.checkpoint}")
