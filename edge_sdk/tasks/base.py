"""What a graph's outputs mean: decode them, draw them, score them. The runtime knows no task by name."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from edge_sdk.settings import Settings
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.video.frame import Truth

# A mask's class ids travel as uint8 and one value is kept for "ignored".
MAX_MASK_CLASSES = 255
MAX_CLASSES = 1 << 16


class TaskSpec(Settings):
    """What the outputs mean, as a bundle records it.

    Args:
        kind: the task: one class a pixel, or the classes of a clip.
        classes: class names; a class id is its position. A segmentation has at most 255.
        palette: one (blue, green, red) colour a class, each 0-255; empty for generated colours.
        ignore_label: of a segmentation, id in a truth mask that is not scored; not the id of a class.
        multi_label: of a classification, whether a clip may be of several classes at once, or of none.
    """

    kind: Literal["segmentation", "classification"] = "segmentation"
    classes: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore_label: int = Field(default=255, ge=0, le=255)
    multi_label: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> TaskSpec:
        count = len(self.classes)
        if len(set(self.classes)) != count:
            raise ValueError("class names must be different from each other")
        if self.palette and len(self.palette) != count:
            raise ValueError(f"palette needs {count} colours, one a class, or none")
        if any(not 0 <= value <= 255 for colour in self.palette for value in colour):
            raise ValueError("palette colours are (blue, green, red), each 0-255")
        if self.kind == "classification":
            return self
        if count > MAX_MASK_CLASSES:
            raise ValueError(f"a segmentation has at most {MAX_MASK_CLASSES} classes, got {count}")
        if self.multi_label:
            raise ValueError("'multi_label' belongs to kind 'classification'")
        if self.ignore_label < count:
            name = self.classes[self.ignore_label]
            raise ValueError(f"ignore_label {self.ignore_label} is the id of class '{name}'")
        return self

    def colours(self) -> np.ndarray:
        """Colours of all classes, (N, 3) uint8 BGR: the palette, or hues a golden angle apart."""
        if self.palette:
            return np.array(self.palette, np.uint8)
        hues = (index * 0.6180339887 % 1.0 for index in range(len(self.classes)))
        rgb = [colorsys.hsv_to_rgb(hue, 0.75, 0.95) for hue in hues]
        return (np.array(rgb)[:, ::-1] * 255).round().astype(np.uint8)


class Prediction(Protocol):
    """What a task decodes from one frame; its arrays may be views of memory that the runner writes again."""

    def copy(self) -> Prediction:
        """The same prediction in memory of its own."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """One class a pixel.

    Args:
        mask: (H, W) uint8 class ids at frame size.
    """

    mask: np.ndarray

    def copy(self) -> Segmentation:
        """The same prediction in memory of its own."""
        return Segmentation(self.mask.copy())


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """How sure the network is of each class of a clip.

    Args:
        scores: (classes,) float32 in 0-1: shares that add up to 1, or with ``multi_label`` each by itself.
    """

    scores: np.ndarray

    def copy(self) -> Classification:
        """The same prediction in memory of its own."""
        return Classification(self.scores.copy())


class Score(Protocol):
    """Adds up how well predictions agree with the truth over a set of frames."""

    primary: str

    def update(self, prediction: Prediction, truth: Prediction) -> None:
        """Count one frame."""
        ...

    def headline(self) -> tuple[str, float]:
        """Name and value (0-1; NaN while nothing is counted) of the metric that devices are compared by.

        It needs numpy alone; for a segmentation it is the primary one.
        """
        ...

    def compute(self) -> dict[str, float]:
        """Metrics over everything counted since the last reset; ``primary`` is among the keys."""
        ...

    def merge(self, other: Score) -> None:
        """Add what another score of the same task has counted."""
        ...

    def reset(self) -> None:
        """Forget everything counted."""
        ...


class Task(Protocol):
    """How one kind of output is read, drawn and scored."""

    @property
    def spec(self) -> TaskSpec:
        """The spec this task was made from."""
        ...

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph outputs that this task reads."""
        ...

    def check_outputs(self, outputs: Sequence[TensorSpec], frame: TensorSpec) -> None:
        """Check a step's task outputs, in the order of ``output_names``, for frames of spec ``frame``.

        Raises:
            BundleError: a shape or dtype is not what this task reads.
        """
        ...

    def decode(self, outputs: Mapping[str, np.ndarray]) -> Prediction:
        """The graph's outputs as a prediction, without a copy where that is possible."""
        ...

    def encode(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The reverse of :meth:`decode`: arrays by graph output, not copied."""
        ...

    def from_truth(self, truth: Truth) -> Prediction | None:
        """A frame's labels as a prediction; None where the source carries no labels for this task."""
        ...

    def agreeing(self, prediction: Prediction, other: Prediction) -> tuple[int, int]:
        """How many decisions of two predictions are the same, and of how many, such as pixels."""
        ...

    def draw(self, image_bgr: np.ndarray, prediction: Prediction, alpha: float = 0.5) -> np.ndarray:
        """A new (H, W, 3) uint8 BGR image: ``image_bgr`` with the prediction over it, ``alpha`` in 0-1."""
        ...

    def score(self) -> Score:
        """A fresh score for this task."""
        ...
