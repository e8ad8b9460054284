"""The frames of a bench: in memory, or from a camera that stays open for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge_sdk.bench.lineup import Lineup
from edge_sdk.bench.recipe import BenchRecipe
from edge_sdk.errors import RecipeError
from edge_sdk.evaluate.clip import Clip, check_frame_size, read_clip
from edge_sdk.video import VideoSource, open_source
from edge_sdk.video.frame import Frame

_SYNTHETIC_FRAMES = 60
# What a live source leaves without a meaning, and why.
_SENSELESS = {
    "fps": "it has a rate of its own",
    "camera_share": "all of the time is spent at its pace",
    "late": "it drops late frames for newer ones",
    "limit": "its frames are not kept",
    **dict.fromkeys(("teacher", "rival", "baselines", "engines", "intervals"), "only the bundle itself runs"),
    "accuracy": "its frames have no labels and cannot be had again",
}
# Leaving these out is what happens anyway.
_WITHOUT = ("accuracy", "baselines")


@dataclass(frozen=True)
class Footage:
    """What a run shows its rows.

    Args:
        clip: the frames in memory; of a live source one, for what warms up.
        source: the live source, open; None where the frames are in memory.
    """

    clip: Clip
    source: VideoSource | None


@contextmanager
def footage(recipe: BenchRecipe, lineup: Lineup) -> Iterator[Footage]:
    """The frames of a recipe. A live source is opened once: how long a camera takes for that, and what it delivers
    while it finds its exposure, is no part of what is measured.

    Raises:
        ShapeError: the frames are not of the bundle's size.
        RecipeError: they do not fit into memory, or the recipe sets what a live source leaves without a meaning.
        VideoError: the source cannot be read.
    """
    subject = lineup.subject
    if recipe.source is None:
        height, width = subject.size_hw
        scene = f"synthetic:shapes?height={height}&width={width}&frames={_SYNTHETIC_FRAMES}"
        yield Footage(read_clip(scene, subject.task, subject.size_hw, labels=False), None)
        return
    with open_source(recipe.source) as source:
        if source.live:
            _refuse_senseless(recipe, source.uri)
            check_frame_size(source.uri, source.size_hw, subject.size_hw)
            first = next(iter(source))
            kept = Frame(first.image, 0, first.captured_s)
            yield Footage(Clip(source.uri, source.fps, (kept,), (None,)), source)
            return
    # Labels are for accuracy, and here that of segmentations alone is measured.
    labels = recipe.accuracy and subject.manifest.task.kind == "segmentation"
    clip = read_clip(recipe.source, subject.task, subject.size_hw, limit=recipe.limit, labels=labels)
    yield Footage(clip, None)


def _refuse_senseless(recipe: BenchRecipe, uri: str) -> None:
    """An option that changes nothing would be swallowed."""
    for name, why in _SENSELESS.items():
        value = getattr(recipe, name)
        left_out = value is None or value == () or (name in _WITHOUT and not value)
        if name in recipe.model_fields_set and not left_out:
            raise RecipeError(
                f"'{name}' was given, and {uri} is a live source: {why}.",
                hint=f"Leave out '{name}', or measure a clip: edge-sdk run BUNDLE CAMERA --out FOLDER/ records one.",
            )
