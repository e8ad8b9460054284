"""Where the steps that are exported come from: a checkpoint of any training here, a user's module, or an online recipe.

A checkpoint says of itself what it is; each kind has one function here that makes a pair of steps of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.compile.recipes import ExportRecipe
from edge_sdk.distill.clips.network import ClipNetwork, ClipPair
from edge_sdk.distill.distil import load_student
from edge_sdk.distill.modules import load_module, read_checkpoint, reason_of
from edge_sdk.distill.online import OnlinePair, OnlineRecipe, make_pair
from edge_sdk.distill.recipes import Preprocess, TrainRecipe
from edge_sdk.distill.steps import PerFrame, StepPair
from edge_sdk.distill.train import check_logits
from edge_sdk.errors import CheckpointError, RecipeError, ShapeError
from edge_sdk.runtime.schedule import AlwaysSchedule, EverySchedule, SampleSchedule, ScheduleSettings
from edge_sdk.settings import parse_settings
from edge_sdk.tasks.base import TaskSpec

_DEFAULT_INTERVAL = 5


@dataclass(frozen=True)
class Origin:
    """A pair of steps and what is known of it.

    Args:
        pair: the steps.
        task: what its answers mean.
        preprocess: how frames become its input.
        provenance: for the manifest; anything JSON holds.
        online: where it goes on learning.
        schedule: that it was made for; None where any will do.
    """

    pair: StepPair
    task: TaskSpec
    preprocess: Preprocess
    provenance: dict[str, Any]
    online: OnlineRecipe | None = None
    schedule: ScheduleSettings | None = None


def load_origin(recipe: ExportRecipe) -> Origin:
    """The trained steps that a recipe names.

    Raises:
        CheckpointError: the checkpoint was written by something else.
        RecipeError: the recipe asks for what this network does not have.
    """
    if recipe.module is not None and recipe.task is not None:
        network = load_module(recipe.module)
        pair = ClipPair(network) if isinstance(network, ClipNetwork) else PerFrame(network)
        known = {"module": recipe.module.model_dump(mode="json")}
        origin = Origin(pair, recipe.task, recipe.preprocess, known)
    elif recipe.online is not None:
        online = recipe.online
        known = {"online": online.model_dump(mode="json")}
        origin = Origin(make_pair(online), online.task, online.preprocess, known, online)
    elif recipe.checkpoint is not None:
        origin = _of_checkpoint(recipe.checkpoint, recipe)
    else:
        raise RecipeError("'checkpoint': expected a file, or 'module' with 'task', or 'online', got none.")
    _check_asked(recipe, origin)
    return origin


def schedule_of(recipe: ExportRecipe, origin: Origin) -> ScheduleSettings:
    """The bundle's default schedule: the recipe's, the origin's, or a keyframe every few frames where deltas are."""
    default = EverySchedule(interval=_DEFAULT_INTERVAL) if origin.pair.has_delta else AlwaysSchedule()
    return recipe.schedule or origin.schedule or default


def check_networks(origin: Origin, size_hw: tuple[int, int]) -> None:
    """Run each network that gives the answer by itself once and refuse what is not class logits.

    Raises:
        ShapeError: naming what came out.
    """
    pair, classes = origin.pair, len(origin.task.classes)
    if origin.task.kind == "classification":
        _check_clip_logits(pair, size_hw, classes)
    elif isinstance(pair, OnlinePair):
        check_logits(pair.student, size_hw, classes, "student")
        given = len(origin.online.teacher_classes) if origin.online is not None else 0
        check_logits(pair.teacher, size_hw, given or classes, "teacher")
    elif isinstance(pair, PerFrame):
        check_logits(pair.network, size_hw, classes, "network")


def _check_clip_logits(pair: StepPair, size_hw: tuple[int, int], classes: int) -> None:
    try:
        with torch.no_grad():
            out: Any = pair.eval().keyframe(torch.zeros(1, 3, *size_hw))[0]
    except Exception as error:  # it may be the user's code
        raise ShapeError(
            f"network: refuses an input of (1, 3, {size_hw[0]}, {size_hw[1]}): {reason_of(error)}.",
            hint="Give it a size that it takes: preprocess.size_hw.",
        ) from error
    if not isinstance(out, Tensor) or tuple(out.shape) != (1, classes):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeError(
            f"network: expected class logits (1, {classes}) for a classification, got {shape}.",
            hint="Match the network's class count to task.classes, or take task.kind: segmentation for maps.",
        )


def _check_asked(recipe: ExportRecipe, origin: Origin) -> None:
    """What a recipe asks for and an origin does not have is an error, not left aside."""
    clips = isinstance(origin.pair, ClipPair)
    if origin.task.kind == "classification" and recipe.decode_stride != 1:
        raise RecipeError(
            "'decode_stride': expected none for a classification, which has no pixels to decide."
        )
    if clips and origin.task.kind != "classification":
        raise RecipeError("'task.kind': expected 'classification' for a clip network, got 'segmentation'.")
    if clips and recipe.schedule is None and origin.schedule is None:
        raise RecipeError(
            "'schedule': expected one, nothing says how many frames of a clip this network sees.",
            hint="Such as schedule: {kind: sample, length: 60, samples: 6}.",
        )
    if recipe.sliding and not (clips and recipe.checkpoint is not None):
        raise RecipeError("'sliding': expected the checkpoint of a clip network, this is none.")


def _of_checkpoint(path: Path, recipe: ExportRecipe) -> Origin:
    content = read_checkpoint(path)
    found = content.get("meta")
    meta: dict[str, Any] = found if isinstance(found, dict) and "state_dict" in content else {}
    load = _KINDS.get(meta.get("kind", ""))
    if load is None or not {"recipe", "model"} & set(meta):
        raise CheckpointError(
            f"checkpoint {path}: expected one written by edge-sdk train or distill.",
            hint="For other checkpoints give 'module' (factory and checkpoint), 'task' and 'preprocess' in the recipe.",
        )
    return load(path, meta, recipe)


def _delta(path: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Origin:
    net, distilled, known = load_student(path)
    return Origin(net, distilled.task, distilled.preprocess, known)


def _per_frame(path: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Origin:
    trained = parse_settings(meta["recipe"], TrainRecipe, f"recipe in {path}")
    network = load_module(trained.module.model_copy(update={"checkpoint": path}))
    return Origin(PerFrame(network), trained.task, trained.preprocess, meta)


def _clips(path: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Origin:
    from edge_sdk.distill.clips.checkpoints import load_clip_model

    network, model, task, known = load_clip_model(path)
    if known.get("features") is not None:
        raise RecipeError(
            f"'checkpoint': {path} takes feature vectors ({known['features']} numbers a frame), and a bundle's graphs "
            "take camera frames.",
            hint="Train with a frame encoder in the network (encoder: small) to run it on a camera.",
        )
    if model.sampling not in ("uniform", "random") and recipe.schedule is None:
        raise RecipeError(
            f"'schedule': {path} was trained on the frames of sampling '{model.sampling}', a device sees frames spread "
            "evenly.",
            hint="Train with sampling: uniform, or name the schedule that you want, knowing this.",
        )
    schedule = SampleSchedule(length=known["length"], samples=model.samples, restart=not recipe.sliding)
    pair = (
        ClipPair(_sliding(network, model.samples), "sliding_window") if recipe.sliding else ClipPair(network)
    )
    return Origin(pair, task, model.preprocess, known, schedule=schedule)


def _sliding(network: nn.Module, samples: int) -> ClipNetwork:
    from edge_sdk.distill.models.clips import EncodedClip, SlidingWindow

    if not isinstance(network, EncodedClip):
        raise RecipeError(
            f"'sliding': expected a network of encoder, aggregator and head, got {type(network).__name__}.",
            hint="Wrap your own network's window into a ClipNetwork, and export that as 'module'.",
        )
    return SlidingWindow(network, samples).eval()


def _skip(path: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Origin:
    from edge_sdk.distill.skip.train import load_skip

    pair, trained, known = load_skip(path)
    return Origin(pair, trained.task, trained.preprocess, known)


def _cross(path: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Origin:
    from edge_sdk.distill.cross import load_cross

    pair, trained, known = load_cross(path)
    return Origin(pair, trained.task, trained.preprocess, known)


_Load = Callable[[Path, dict[str, Any], ExportRecipe], Origin]
_KINDS: Mapping[str, _Load] = MappingProxyType(
    {"delta": _delta, "per_frame": _per_frame, "clips": _clips, "skip": _skip, "cross": _cross}
)
