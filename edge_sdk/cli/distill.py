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
    """Distil a student from a teacher; the recipe's kind is delta, clips, cross or skip.

    Stopped runs go on from their last checkpoint. On several GPUs: torchrun --nproc-per-node N -m edge_sdk distill ...
    """
    from edge_sdk.cli.stage import run_training

    run_training("distill", "Distilled", recipe, out=out, device=device, resume=resume, as_json=as_json)
