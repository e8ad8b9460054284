"""Trained clip networks as files, whole: what made them, what they see and what they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.clips.data import ClipSet
from edge_sdk.distill.clips.network import ClipNetwork, Seen, describe
from edge_sdk.distill.clips.objective import Clips, Sight
from edge_sdk.distill.clips.recipes import ClipLoss, ClipModel
from edge_sdk.distill.modules import (
    fill_module,
    make_module,
    read_checkpoint,
    read_weights,
    reason_of,
    save_checkpoint,
)
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.errors import CheckpointError, RecipeError, ShapeError
from edge_sdk.sampling import sampled
from edge_sdk.settings import parse_settings
from edge_sdk.tasks.base import TaskSpec

KIND = "clips"


def make_clip_network(settings: ModuleSettings) -> ClipNetwork:
    """Call the factory; the network has its initial weights.

    Raises:
        RecipeError: the factory cannot be called, or returns another kind of network.
    """
    network = make_module(settings)
    if not isinstance(network, ClipNetwork):
        raise RecipeError(
            f"'factory': expected {settings.factory} to return a ClipNetwork, got {type(network).__name__}.",
            hint="Such as edge_sdk.distill.models.clips:clip_network, or a subclass of your own.",
        )
    # Convolutions of small frames train faster so on CPUs; those over time too have no such format.
    if all(parameter.ndim < 5 for parameter in network.parameters()):
        channels_last(network)
    return network


def save_clip_model(
    path: Path, network: ClipNetwork, model: ClipModel, task: TaskSpec, clips: Clips, meta: dict[str, Any]
) -> None:
    """Write a checkpoint that holds all that :func:`load_clip_model` and an export need.

    Args:
        network: its weights are kept.
        model: what made it.
        task: what it answers.
        clips: what it learned from.
        meta: what else to keep, such as its figures, as plain values.
    """
    bare = model.model_copy(update={"module": model.module.model_copy(update={"checkpoint": None})})
    known = {
        "kind": KIND, "model": bare.model_dump(mode="json"), "task": task.model_dump(mode="json"),
        "length": clips.length,
        "frame_hw": list(clips.size_hw) if isinstance(clips, ClipSet) else None,
        "features": None if isinstance(clips, ClipSet) else clips.features,
    }  # fmt: skip
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_checkpoint(path, {"state_dict": weights, "meta": {**known, **meta}})


def load_clip_model(path: str | Path) -> tuple[ClipNetwork, ClipModel, TaskSpec, dict[str, Any]]:
    """A trained clip network in evaluation mode, what made it and what it sees, what it answers, and the meta data.

    The meta data have ``length`` (frames of a clip, of which ``model.samples`` are seen), ``frame_hw`` (the training
    frames' height and width; None where it takes features) and ``features`` (their width; None where it takes frames).

    Raises:
        CheckpointError: the file is no clip network of ``edge-sdk train`` or ``distill``.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    if not isinstance(meta, dict) or meta.get("kind") != KIND or "state_dict" not in content:
        raise CheckpointError(
            f"checkpoint {path}: expected a clip network written by edge-sdk train or distill, found none.",
            hint="Give the model.pt or student.pt of a recipe with kind: clips.",
        )
    model = parse_settings(meta["model"], ClipModel, f"model in {path}")
    task = parse_settings(meta["task"], TaskSpec, f"task in {path}")
    network = make_clip_network(model.module)
    fill_module(network, content["state_dict"], path)
    filled = model.module.model_copy(update={"checkpoint": Path(path)})
    return network.eval(), model.model_copy(update={"module": filled}), task, meta


def fill_clip_network(network: ClipNetwork, path: Path, task: TaskSpec) -> None:
    """Fill a network from a checkpoint of edge-sdk or of others.

    Raises:
        CheckpointError: the weights do not fit, or were trained for other classes than the task's.
    """
    meta = read_checkpoint(path).get("meta")
    classes = meta["task"]["classes"] if isinstance(meta, dict) and meta.get("kind") == KIND else None
    if classes is not None and tuple(classes) != task.classes:
        raise CheckpointError(
            f"checkpoint {path}: was trained for other classes, or for these in another order, than 'task.classes'.",
            hint="Name the same classes in the same order.",
        )
    fill_module(network, read_weights(path), path)


def check_clip_network(network: ClipNetwork, model: ClipModel, clips: Clips, classes: int) -> Seen:
    """Run a network on one blank clip and refuse what is not as :class:`ClipNetwork` says.

    Returns:
        What it makes of the clip.

    Raises:
        RecipeError: it sees more frames than a clip has.
        ShapeError: it refuses the input, or its answer has another shape.
    """
    name = model.module.factory
    sampled("uniform", clips.length, model.samples)
    count = model.samples
    shape = (count, *clips.size_hw, 3) if isinstance(clips, ClipSet) else (count, clips.features)
    blank = torch.zeros(1, *shape, dtype=torch.uint8 if isinstance(clips, ClipSet) else torch.float32)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            seen = network(Sight(model.preprocess)(blank, torch.arange(count)))
    except Exception as error:  # it is the user's code
        raise ShapeError(
            f"{name}: refuses a clip of {count} {_described(clips)}: {reason_of(error)}.",
            hint="Give it an input that it takes: preprocess.size_hw, samples, or the factory's arguments.",
        ) from error
    network.train(was_training)
    right = isinstance(seen, Seen) and seen.logits.shape == (1, classes) and seen.representation.ndim == 2
    maps = seen.maps if isinstance(seen, Seen) else None
    if not right or (maps is not None and (maps.ndim != 5 or maps.shape[:2] != (1, count))):
        raise ShapeError(
            f"{name}: expected of a clip of {count} frames a Seen with logits (1, {classes}), representation (1, R) "
            f"and maps (1, {count}, C, h, w) or none, got {_shapes(seen)}.",
            hint="Match the factory's class count to task.classes.",
        )
    return seen


def check_comparable(
    loss: ClipLoss, networks: tuple[ClipNetwork, ClipNetwork], seen: tuple[Seen, Seen]
) -> None:
    """Refuse losses that this student and this teacher cannot be compared by; both are given in this order.

    Raises:
        ShapeError: naming the loss and the shapes.
    """
    student, teacher = seen
    widths = student.representation.shape[1], teacher.representation.shape[1]
    if loss.representation and widths[0] != widths[1]:
        raise ShapeError(
            f"'loss.representation': expected representations of one width, got {widths[0]} of the student and "
            f"{widths[1]} of the teacher.",
            hint="Give both the same widths, or compare their 'prediction'.",
        )
    if not (loss.features or loss.places):
        return
    if student.maps is None or teacher.maps is None:
        whose = "student" if student.maps is None else "teacher"
        raise ShapeError(
            f"'loss.features' and 'loss.places': the {whose} gives no feature maps.",
            hint="Compare 'representation' or 'prediction'.",
        )
    channels = student.maps.shape[2], teacher.maps.shape[2]
    if loss.features and channels[0] != channels[1]:
        raise ShapeError(
            f"'loss.features': expected maps of as many channels, got {channels[0]} of the student and {channels[1]} "
            "of the teacher.",
            hint="Use 'loss.places', which compares networks of unlike width.",
        )
    for network, one in zip(networks, (student.maps, teacher.maps), strict=True):
        if loss.places:
            _check_places(network, one)


def _check_places(network: ClipNetwork, maps: torch.Tensor) -> None:
    try:
        with torch.no_grad():
            network.classify(maps.flatten(0, 1))
    except TypeError as error:
        raise ShapeError(
            f"'loss.places': {error}.",
            hint="Compare 'features', or use a network whose classifier takes maps.",
        ) from error


def _described(clips: Clips) -> str:
    if isinstance(clips, ClipSet):
        height, width = clips.size_hw
        return f"frames of {height} x {width}"
    return f"feature vectors of {clips.features}"


def _shapes(seen: object) -> str:
    if not isinstance(seen, Seen):
        return type(seen).__name__
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in describe(seen).items())
