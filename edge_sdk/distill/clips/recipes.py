"""Settings of training and distilling clip networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edge_sdk.distill.recipes import LoopSettings, ModuleSettings, Optimiser, Positive, Preprocess, Share
from edge_sdk.sampling import Sampling
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

Weight = Annotated[float, Field(ge=0)]


class ClipModel(Settings):
    """A clip network and what it sees of a clip.

    Args:
        module: its factory returns a :class:`~edge_sdk.distill.clips.network.ClipNetwork`.
        samples: frames of a clip that it sees.
        sampling: which frames: ``uniform`` (i * length // samples, what the device does), ``random`` (in order, drawn
            anew for every batch, in validation from a seed), the ``first``, ``middle`` or ``last`` ones in a row, or a
            third of each in a row.
        preprocess: how its frames become its input; a smaller ``size_hw`` is a smaller network input from the same
            camera frame, because the resize is part of the exported graph.
    """

    module: ModuleSettings
    samples: Positive
    sampling: Sampling = "uniform"
    preprocess: Preprocess = Preprocess()


class ClipData(Settings):
    """Labelled clips.

    Args:
        train, validation: URIs of clip lists, see :func:`edge_sdk.video.labelled.open_clips`: a folder of class
            folders, a CSV file, ``synthetic:motions?clips=N&seed=S``, or TFRecord files of features.
        length: frames kept of each clip, spread evenly over it; a shorter clip is an error. Of features, the first
            ones are kept and a shorter clip is filled up with zeros, as published.
        size_hw: height and width that frames are brought to as they are read, so that they fit into memory or have one
            size; None keeps them.
        flip: chance of a mirrored clip; 0 where left and right are classes.
        colour: largest relative change of brightness and of each channel, the same for a whole clip.
        shift: largest translation, as a share of the side, the same for a whole clip.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    length: Positive
    size_hw: tuple[Positive, Positive] | None = None
    flip: Share = 0.0
    colour: Share = 0.2
    shift: Share = 0.1


class ClipLoss(Settings):
    """Weights of a student's losses; 0 leaves one out, and at least one must be there.

    Args:
        label: cross entropy with the labels (over a softmax, or class by class with ``multi_label``).
        representation: squared difference of the representations, summed over the vector, mean over the batch
            (arXiv 1902.10640, L_rep).
        prediction: KL divergence from the teacher's class shares, renormalised to add up to 1 with ``multi_label``,
            mean over the batch (arXiv 1902.10640, L_pred; the released code sums over the batch).
        features: mean squared difference of the last feature maps of each frame, the student's drawn up to the
            teacher's size (arXiv 2209.12797; 100 as published). Needs equal channels and the same frames.
        places: KL divergence of the classifiers applied at every place of the maps, times the temperature squared, for
            networks of unlike width (arXiv 2209.12797; 200 as published, mean over all elements).
        temperature: of ``prediction`` and ``places``.
    """

    label: Weight = 1.0
    representation: Weight = 0.0
    prediction: Weight = 0.0
    features: Weight = 0.0
    places: Weight = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _some(self) -> ClipLoss:
        if not any((self.label, self.representation, self.prediction, self.features, self.places)):
            raise ValueError("expected at least one loss with a weight above 0")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether any part compares with a teacher."""
        return any((self.representation, self.prediction, self.features, self.places))


class ClipTrainRecipe(Settings):
    """``edge-sdk train`` with ``kind: clips``: a clip network from labels, such as a teacher or an undistilled rival.

    Args:
        out: folder for checkpoints and the result, ``model.pt``.
    """

    kind: Literal["clips"]
    out: Path
    model: ClipModel
    task: TaskSpec
    data: ClipData
    optimiser: Optimiser = Optimiser()
    loop: LoopSettings


class ClipDistillRecipe(Settings):
    """``edge-sdk distill`` with ``kind: clips``: a student that sees fewer or smaller frames than its teacher.

    Args:
        out: folder for checkpoints and the result, ``student.pt``.
        teacher: its ``module.checkpoint`` is a ``model.pt`` (serial training), or None to train it along with the
            student on the labels (parallel training); the student's losses never reach it.
        student: begins with fresh weights, or with those of ``module.checkpoint``.
        unlabelled: URIs of further lists of clips, whose labels, if any, are not looked at: of these the student learns
            what its teacher makes of them. Batches are drawn from all clips alike.
        train_norm: leave the frozen teacher's batch norm in training mode, as released for cross-resolution
            distillation.
        finetune: steps after the distillation in which the student learns from the labels alone.
        finetune_lr: learning rate there, as a share of the optimiser's.
    """

    kind: Literal["clips"]
    out: Path
    teacher: ClipModel
    student: ClipModel
    task: TaskSpec
    data: ClipData
    unlabelled: tuple[str, ...] = ()
    loss: ClipLoss
    train_norm: bool = False
    finetune: Annotated[int, Field(ge=0)] = 0
    finetune_lr: Annotated[float, Field(gt=0, le=1)] = 0.1
    optimiser: Optimiser = Optimiser()
    loop: LoopSettings

    @model_validator(mode="after")
    def _consistent(self) -> ClipDistillRecipe:
        if not self.loss.needs_teacher:
            raise ValueError("'loss': nothing in it needs the teacher; use edge-sdk train")
        per_frame = self.loss.features or self.loss.places
        same = (self.teacher.samples, self.teacher.sampling) == (self.student.samples, self.student.sampling)
        if per_frame and not same:
            raise ValueError(
                "'loss.features' and 'loss.places' compare frame by frame: give both the same samples"
            )
        return self
