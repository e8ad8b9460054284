"""Classification of clips: a score for each class, judged by top-1, mean average precision and GAP@20."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.errors import BundleError, FileFormatError, ShapeError
from edge_sdk.optional import require
from edge_sdk.tasks.base import Classification, Prediction, Score, TaskSpec
from edge_sdk.tensors import TensorSpec

if TYPE_CHECKING:
    from edge_sdk.video.frame import Truth

# Of each clip so many of its best classes are pooled for GAP, as YouTube-8M does.
GAP_CLASSES = 20
# With several labels a clip is of the classes whose score is at least this.
DECIDED = 0.5
# Classes that are drawn over a frame, best first.
_DRAWN = 5


class ClassificationTask:
    """Reads the graph output ``scores``, (classes,) float32 in 0-1.

    Args:
        spec: classes, colours, and whether a clip may be of several classes.
    """

    output_names: tuple[str, ...] = ("scores",)

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._ids = {name: index for index, name in enumerate(spec.classes)}
        self._colours = [tuple(map(int, colour)) for colour in spec.colours()[:_MOST_COLOURS]]

    def check_outputs(self, outputs: Sequence[TensorSpec], frame: TensorSpec) -> None:
        """Check that ``scores`` is (classes,) float32; the frame's size is no matter.

        Raises:
            BundleError: it is not.
        """
        (scores,) = outputs
        expected = (len(self.spec.classes),)
        if scores.shape != expected or scores.dtype != "float32":
            raise BundleError(
                f"output 'scores': expected {expected} float32, one score a class, got {scores.shape} {scores.dtype}.",
                hint="Export again with the softmax, or the sigmoids, in the graph and one score a class.",
            )

    def decode(self, outputs: Mapping[str, np.ndarray]) -> Classification:
        """The scores as they lie in the runner's memory, not a copy."""
        return Classification(outputs["scores"])

    def encode(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The prediction as graph outputs."""
        return {"scores": _scores_of(prediction)}

    def from_truth(self, truth: Truth) -> Classification | None:
        """The labels of a frame's clip as 0 and 1, or None where there are none.

        Raises:
            FileFormatError: a label is the name of no class, or there is not just one where a clip has one class.
        """
        if truth.labels is None:
            return None
        unknown = [name for name in truth.labels if name not in self._ids]
        if unknown:
            known = ", ".join(self.spec.classes[:_NAMED]) + (", ..." if len(self._ids) > _NAMED else "")
            raise FileFormatError(
                f"clip labels: expected names of classes ({known}), found {', '.join(map(repr, unknown))}.",
                hint="Check that the labels and the bundle have the same classes.",
            )
        if not self.spec.multi_label and len(set(truth.labels)) != 1:
            raise FileFormatError(
                f"clip labels: expected one class, found {len(truth.labels)} ({', '.join(truth.labels) or 'none'}).",
                hint="Train with `multi_label: true` where a clip is of several classes or of none.",
            )
        scores = np.zeros(len(self.spec.classes), np.float32)
        scores[[self._ids[name] for name in truth.labels]] = 1
        return Classification(scores)

    def agreeing(self, prediction: Prediction, other: Prediction) -> tuple[int, int]:
        """Decisions that are the same, and of how many: the best class; with several labels each class by itself."""
        one, two = _scores_of(prediction), _scores_of(other)
        if self.spec.multi_label:
            return int(np.count_nonzero((one >= DECIDED) == (two >= DECIDED))), one.size
        return int(np.argmax(one) == np.argmax(two)), 1

    def draw(self, image_bgr: np.ndarray, prediction: Prediction, alpha: float = 0.5) -> np.ndarray:
        """A new image with the best classes as bars in its upper left: full width of a bar's ground is a score of 1.

        Args:
            image_bgr: (H, W, 3) uint8.
            prediction: its scores are (classes,).
            alpha: 0 (image only) to 1 (bars hide what is under them); names are written over both.

        Raises:
            ShapeError: it is no such image, or there is not one score a class.
            DependencyError: OpenCV is not installed.
        """
        scores = _scores_of(prediction)
        if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8:
            raise ShapeError(f"image: expected (H, W, 3) uint8, got {image_bgr.shape} {image_bgr.dtype}.")
        _check_count(scores, self.spec)
        drawn = image_bgr.copy()
        if alpha <= 0:
            return drawn
        cv2 = require("cv2", "drawing a classification")
        height, width = image_bgr.shape[:2]
        row = int(np.clip(height // 12, 9, 36))
        best = np.argsort(-np.nan_to_num(scores), kind="stable")[: min(_DRAWN, max(1, height // (2 * row)))]
        reach = max(1, min(width, 9 * row))
        for place, index in enumerate(best.tolist()):
            top = place * row
            ground = drawn[top : top + row, :reach]
            bar = np.zeros_like(ground)
            length = round(float(np.clip(np.nan_to_num(scores[index]), 0, 1)) * reach)
            bar[:, :length] = self._colours[index % len(self._colours)]
            ground[:] = cv2.addWeighted(ground, 1.0 - alpha, bar, alpha, 0.0)
            _write(cv2, ground, f"{self.spec.classes[index]} {scores[index]:.2f}")
        return drawn

    def score(self) -> ClassificationScore:
        """A fresh :class:`ClassificationScore`."""
        return ClassificationScore(self.spec)


# More colours than these nobody tells apart; classes beyond them take them in turn.
_MOST_COLOURS = 64
# Classes that a message names.
_NAMED = 20


def _write(cv2: Any, ground: np.ndarray, text: str) -> None:
    """Write ``text`` in white with a dark shadow into ``ground`` (h, w, 3), as large as fits."""
    height, width = ground.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    (long, _), _ = cv2.getTextSize(text, font, 1.0, 1)
    (_, tall), below = cv2.getTextSize("Ag", font, 1.0, 1)  # one size for all rows, whatever their letters
    scale = max(0.1, min(0.85 * height / (tall + below), (width - 4) / long))
    across, down = 2, round((height + scale * tall) / 2)
    for colour, shift in (((0, 0, 0), 1), ((255, 255, 255), 0)):
        cv2.putText(ground, text, (across + shift, down + shift), font, scale, colour, 1, cv2.LINE_AA)


class ClassificationScore:
    """Top-1, mean average precision and GAP@20; scores and truths of all clips are kept until :meth:`compute`.

    Args:
        spec: classes, and whether a clip may be of several.

    Attributes:
        primary: ``"gap"`` with several labels, else ``"top1"``.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.primary = "gap" if spec.multi_label else "top1"
        self._scores: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []
        self._hits = 0

    def update(self, prediction: Prediction, truth: Prediction) -> None:
        """Count one clip.

        Scores that are not finite count as 0, and their clip as missed at the top.

        Args:
            prediction: its scores are (classes,) in 0-1.
            truth: 1 for each of the clip's classes and 0 for all others; of another network's answer its decisions are
                taken, the best class, or with several labels those with a score of at least a half.

        Raises:
            ShapeError: there is not one score a class.
        """
        scores, wanted = _scores_of(prediction), _scores_of(truth)
        _check_count(scores, self.spec)
        _check_count(wanted, self.spec)
        if self.spec.multi_label:
            true = wanted >= DECIDED
        else:
            true = np.zeros(wanted.shape, bool)
            true[np.argmax(wanted)] = True
        right = true[np.argmax(scores)] if true.any() else not (scores >= DECIDED).any()
        self._hits += bool(np.isfinite(scores).all() and right)
        finite = np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0)
        self._scores.append(np.clip(finite, 0, 1, dtype=np.float32))
        self._truths.append(true)

    def headline(self) -> tuple[str, float]:
        """Top-1, which needs neither torch nor torchmetrics."""
        return "top1", self._hits / len(self._truths) if self._truths else float("nan")

    def compute(self) -> dict[str, float]:
        """Metrics in 0-1 over all clips counted.

        Returns:
            ``top1``: share of the clips whose best class is one of theirs (with several labels, Hit@1; a clip of no
            class is right where no score reaches a half). ``map``: mean over the classes that occur of the average
            precision over all clips, from all scores (YouTube-8M takes each clip's best 20 alone). ``gap``: global
            average precision, the best 20 of every clip in one list, with all labels as denominator, those outside the
            list too. NaN while nothing is counted; ``map`` and ``gap`` also where no clip has a label.

        Raises:
            DependencyError: torchmetrics is not installed.
        """
        top1 = self.headline()[1]
        if not any(true.any() for true in self._truths):
            return {"top1": top1, "map": float("nan"), "gap": float("nan")}
        scores, truths = np.stack(self._scores), np.stack(self._truths)
        occurring = np.flatnonzero(truths.any(axis=0))
        precisions = [_average_precision(scores[:, index], truths[:, index]) for index in occurring]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :GAP_CLASSES]
        pooled = np.take_along_axis(truths, best, axis=1)
        gap = _average_precision(np.take_along_axis(scores, best, axis=1).ravel(), pooled.ravel())
        # The library divides by the labels in the list; those that no list holds are missed all the same.
        return {
            "top1": top1,
            "map": float(np.mean(precisions)),
            "gap": gap * float(pooled.sum() / truths.sum()),
        }

    def merge(self, other: Score) -> None:
        """Add what another score of the same classes has counted.

        Raises:
            ShapeError: the other score counts other classes.
        """
        same = isinstance(other, ClassificationScore) and _counted(other.spec) == _counted(self.spec)
        if not isinstance(other, ClassificationScore) or not same:
            raise ShapeError("merge: expected a ClassificationScore of the same classes.")
        self._scores += other._scores
        self._truths += other._truths
        self._hits += other._hits

    def reset(self) -> None:
        """Forget everything counted."""
        self._scores, self._truths, self._hits = [], [], 0


def _average_precision(scores: np.ndarray, truths: np.ndarray) -> float:
    """Of one list: ``scores`` (N,) float32 in 0-1 and ``truths`` (N,) bool; 0 where none is true."""
    purpose = "mean average precision and GAP of a classification"
    torch: Any = require("torch", purpose)
    metrics: Any = require("torchmetrics.functional.classification", purpose)
    if not truths.any():
        return 0.0
    found = metrics.binary_average_precision(
        torch.from_numpy(np.ascontiguousarray(scores)), torch.from_numpy(truths.astype(np.int64))
    )
    return float(found)


def _counted(spec: TaskSpec) -> tuple[tuple[str, ...], bool]:
    return spec.classes, spec.multi_label


def _check_count(scores: np.ndarray, spec: TaskSpec) -> None:
    if scores.shape != (len(spec.classes),):
        raise ShapeError(f"scores: expected one a class, ({len(spec.classes)},), got {scores.shape}.")


def _scores_of(prediction: Prediction) -> np.ndarray:
    if not isinstance(prediction, Classification):
        raise ShapeError(f"prediction: expected a Classification, got {type(prediction).__name__}.")
    return prediction.scores
