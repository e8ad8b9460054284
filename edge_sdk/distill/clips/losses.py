"""What a clip student learns from: the labels, and what its teacher makes of the same clip.

All are computed in float32, and nothing here lets a gradient reach the teacher.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sdk.distill.clips.network import Seen
from edge_sdk.distill.clips.recipes import ClipLoss
from edge_sdk.errors import ShapeError

Classifier = Callable[[Tensor], Tensor]


def label_loss(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Cross entropy with the labels, mean over the batch, in which a clip without labels counts as zero.

    Args:
        logits: (N, classes).
        targets: (N, classes) float32, 1 where a clip is of a class; NaN where its labels are not known.
        multi_label: class by class, summed over the classes (arXiv 1902.10640, L_CE); else over a softmax.
    """
    logits, known = logits.float(), ~targets.isnan()
    wanted = targets.where(known, 0)
    if multi_label:
        parts = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    else:
        parts = -wanted * F.log_softmax(logits, 1)
    return (parts * known).sum(1).mean()


def representation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of two (N, R), summed over the vector, mean over the batch (arXiv 1902.10640, L_rep)."""
    return (student.float() - teacher.detach().float()).square().sum(1).mean()


def log_shares(logits: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """Logarithm of class shares (N, classes) that add up to 1.

    With ``multi_label`` they are the classes' own probabilities, divided by their sum, as the code released with
    arXiv 1902.10640 has it.
    """
    heated = logits.float() / temperature
    return F.log_softmax(F.logsigmoid(heated) if multi_label else heated, 1)


def prediction_loss(student: Tensor, teacher: Tensor, temperature: float, multi_label: bool) -> Tensor:
    """KL(teacher || student) of the class shares of two logits (N, classes), mean over the batch, times the squared
    temperature (arXiv 1902.10640, L_pred)."""
    wanted = log_shares(teacher.detach(), temperature, multi_label)
    got = log_shares(student, temperature, multi_label)
    return F.kl_div(got, wanted, log_target=True, reduction="batchmean") * temperature**2


def _drawn(maps: Tensor, like: Tensor) -> Tensor:
    """Maps (N, T, C, h, w) as (N*T, C, H, W), drawn bilinearly to the size of ``like``."""
    flat = maps.flatten(0, 1).float()
    if flat.shape[-2:] == like.shape[-2:]:
        return flat
    return F.interpolate(flat, size=like.shape[-2:], mode="bilinear", align_corners=False)


def features_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the frames' maps (N, T, C, h, w), the student's drawn to the teacher's size, mean
    over all elements (arXiv 2209.12797)."""
    teacher = teacher.detach()
    return F.mse_loss(_drawn(student, teacher), teacher.flatten(0, 1).float())


def places_loss(
    student: Tensor, teacher: Tensor, classify: Classifier, teach: Classifier, temperature: float
) -> Tensor:
    """KL(teacher || student) of what each classifier says at every place of its maps (N, T, C, h, w), over a softmax.

    The mean is over all elements, places and classes alike, times the squared temperature, as the code released with
    arXiv 2209.12797 has it: far smaller than a mean over places.

    Args:
        classify, teach: the student's and the teacher's classifier, see ``ClipNetwork.classify``.
    """
    with torch.no_grad():
        wanted = F.log_softmax(teach(teacher.flatten(0, 1)).float() / temperature, 1)
    got = F.log_softmax(classify(_drawn(student, teacher)).float() / temperature, 1)
    return F.kl_div(got, wanted, log_target=True, reduction="none").mean() * temperature**2


def student_loss(
    settings: ClipLoss,
    multi_label: bool,
    student: Seen,
    targets: Tensor,
    teacher: Seen,
    classifiers: tuple[Classifier, Classifier],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of a student's losses, and each of them unweighted and detached.

    Args:
        settings: weights; a loss whose weight is 0 is not computed.
        multi_label: see :func:`label_loss`.
        student: what the student makes of the clips.
        targets: (N, classes) float32.
        teacher: what the teacher makes of them.
        classifiers: the student's and the teacher's, for ``places``.

    Raises:
        ShapeError: a loss compares maps, and there are none.
    """
    heat, parts = settings.temperature, {}
    if settings.label:
        parts["label"] = label_loss(student.logits, targets, multi_label)
    if settings.representation:
        parts["representation"] = representation_loss(student.representation, teacher.representation)
    if settings.prediction:
        parts["prediction"] = prediction_loss(student.logits, teacher.logits, heat, multi_label)
    if settings.features:
        parts["features"] = features_loss(maps_of(student), maps_of(teacher))
    if settings.places:
        parts["places"] = places_loss(maps_of(student), maps_of(teacher), *classifiers, heat)
    total = sum((getattr(settings, name) * value for name, value in parts.items()), targets.new_zeros(()))
    return total, {name: value.detach() for name, value in parts.items()}


def maps_of(seen: Seen) -> Tensor:
    """The maps of each frame (N, T, C, h, w).

    Raises:
        ShapeError: there are none, because the frames came as feature vectors.
    """
    if seen.maps is None:
        raise ShapeError(
            "'loss.features' and 'loss.places': the network gives no feature maps.",
            hint="Compare 'representation' or 'prediction', or use a network that sees pictures.",
        )
    return seen.maps
