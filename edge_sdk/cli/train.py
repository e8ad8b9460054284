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
    """Train a network: a teacher from labels, or a rival from a teacher; the recipe's kind is frames or clips.

    Stopped runs go on from their last checkpoint. On several GPUs: torchrun --nproc-per-node N -m edge_sdk train ...
    """
    from edge_sdk.cli.stage import run_training

    run_training("train", "Trained", recipe, out=out, device=device, resume=resume, as_json=as_json)
