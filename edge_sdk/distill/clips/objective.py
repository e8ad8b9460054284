"""What is trained where clips are classified: a network alone on the labels, or a student beside its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from edge_sdk.distill.clips.data import ClipSet, FeatureSet
from edge_sdk.distill.clips.losses import label_loss, student_loss
from edge_sdk.distill.clips.network import ClipNetwork, Seen
from edge_sdk.distill.clips.recipes import ClipData, ClipLoss, ClipModel
from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.loop import Batch, Objective
from edge_sdk.distill.recipes import Preprocess
from edge_sdk.sampling import sampled
from edge_sdk.tasks import task_from_spec
from edge_sdk.tasks.base import Classification, TaskSpec

# Of the random stream that draws the frames seen in validation, so that no training step shares it.
_VALIDATION = 0x5EE

Clips = ClipSet | FeatureSet


class Sight(nn.Module):
    """What a network sees of clips: some of their frames, as its input."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.to_input = FrameToInput(preprocess)

    def forward(self, clips: Tensor, frames: Tensor) -> Tensor:
        """Network input (N, T, 3, h, w) of the ``frames`` (T,) int64 of clips (N, length, H, W, 3) uint8 BGR, or
        feature vectors (N, T, D) of (N, length, D) float32."""
        seen = clips[:, frames]
        if seen.ndim == 3:
            return seen
        x = self.to_input(seen.flatten(0, 1))
        # Convolutions of small frames train faster so on CPUs; a network that joins the first two axes keeps it.
        return x.contiguous(memory_format=torch.channels_last).unflatten(0, seen.shape[:2])


class ClipSampler:
    """Draws batches: ``clip``, ``target``, and for each network, by its role, which frames it sees.

    Frames that no network sees are left out, so indices are into those that are there. Networks of the same sampling
    see the same frames.

    Args:
        clips: the data.
        data: how they are changed.
        batch: clips a batch.
        models: the networks by role, such as ``teacher`` and ``student``.
    """

    def __init__(self, clips: Clips, data: ClipData, batch: int, models: dict[str, ClipModel]) -> None:
        self.clips, self.data, self.batch, self.models = clips, data, batch, models

    def __call__(self, rng: np.random.Generator) -> Batch:
        """A batch, drawn by ``rng``."""
        chosen: dict[tuple[str, int], np.ndarray] = {}
        for model in self.models.values():
            key = (model.sampling, model.samples)
            if key not in chosen:
                chosen[key] = sampled(model.sampling, self.clips.length, model.samples, rng)
        needed = np.unique(np.concatenate(list(chosen.values())))
        batch = self.clips.batch(rng, self.batch, self.data, needed)
        for role, model in self.models.items():
            frames = np.searchsorted(needed, chosen[model.sampling, model.samples])
            batch[role] = torch.from_numpy(frames)
        return batch


def clip_figures(
    network: ClipNetwork, clips: Clips, task: TaskSpec, model: ClipModel, *, batch: int, seed: int = 0
) -> dict[str, float]:
    """The task's metrics of a network over clips as they are, such as ``top1``, ``map`` and ``gap``.

    Args:
        network: it is put into evaluation mode meanwhile.
        batch: clips at once.
        seed: of the frames that ``random`` sampling draws.
    """
    score, sight = task_from_spec(task).score(), Sight(model.preprocess)
    device = next(network.parameters()).device
    # Each module's own mode, because a frozen teacher's batch norms may have another than the rest of it.
    modes = {module: module.training for module in network.modules()}
    network.eval()
    sight.to(device)
    with torch.no_grad():
        for start in range(0, len(clips), batch):
            rng = np.random.default_rng([seed, _VALIDATION, start])
            frames = sampled(model.sampling, clips.length, model.samples, rng)
            part = clips.take(range(start, min(start + batch, len(clips))), frames)
            x = sight(part["clip"].to(device), torch.arange(len(frames), device=device))
            scores = scores_of(network(x).logits, task.multi_label).cpu().numpy()
            for one, target in zip(scores, part["target"].numpy(), strict=True):
                score.update(Classification(one), Classification(target))
    for module, training in modes.items():
        module.training = training
    return score.compute()


def scores_of(logits: Tensor, multi_label: bool) -> Tensor:
    """Scores (N, classes) float32 of logits: softmax shares, or sigmoids."""
    return torch.sigmoid(logits.float()) if multi_label else torch.softmax(logits.float(), 1)


class LabelObjective(Objective):
    """A clip network from labels alone.

    Args:
        network: it is trained.
        preprocess: of its frames.
        multi_label: see :func:`~edge_sdk.distill.clips.losses.label_loss`.
        role: under which batches say which frames it sees.
    """

    def __init__(self, network: ClipNetwork, preprocess: Preprocess, multi_label: bool, role: str) -> None:
        super().__init__()
        self.network, self.sight = network, Sight(preprocess)
        self.multi_label, self.role = multi_label, role

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The label loss."""
        seen: Seen = self.network(self.sight(batch["clip"], batch[self.role]))
        return label_loss(seen.logits, batch["target"], self.multi_label), {}


class DistillObjective(Objective):
    """A student and its teacher on the same clips; the student's losses never reach the teacher.

    Args:
        student: it is trained.
        teacher: frozen (serial training), or trained along on the labels (parallel training).
        preprocess: of the frames of the student and of the teacher.
        loss: the student's.
        multi_label: see :func:`~edge_sdk.distill.clips.losses.label_loss`.
        parallel: train the teacher along.
        train_norm: a frozen teacher's batch norms use each batch's own statistics. What they keep stays as it was:
            the released code updates it too, but in this mode nothing reads it.
    """

    def __init__(
        self, student: ClipNetwork, teacher: ClipNetwork, preprocess: tuple[Preprocess, Preprocess],
        loss: ClipLoss, *, multi_label: bool, parallel: bool = False, train_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.loss, self.multi_label, self.parallel = student, loss, multi_label, parallel
        self.student_sight, self.teacher_sight = Sight(preprocess[0]), Sight(preprocess[1])
        if parallel:
            self.trained_teacher = teacher
        else:
            teacher.requires_grad_(False).eval()
            if train_norm:
                _use_batch_statistics(teacher)
        # In a list, so that a frozen teacher is neither trained, saved nor put into training mode.
        self._teacher = [teacher]

    def clipped(self) -> Sequence[nn.Module]:
        """Both apart: one norm over both would let the student's losses scale the teacher's steps."""
        return (self.student, self._teacher[0]) if self.parallel else (self,)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss, with the teacher's own where it is trained along; and every part by name."""
        clips, targets = batch["clip"], batch["target"]
        teacher = self._teacher[0].to(clips.device)
        # The teacher first, so that it draws the same dropout whatever the student is.
        with torch.set_grad_enabled(self.parallel and torch.is_grad_enabled()):
            taught: Seen = teacher(self.teacher_sight(clips, batch["teacher"]))
        seen: Seen = self.student(self.student_sight(clips, batch["student"]))
        classifiers = (self.student.classify, teacher.classify)
        total, parts = student_loss(self.loss, self.multi_label, seen, targets, taught, classifiers)
        if self.parallel:
            own = label_loss(taught.logits, targets, self.multi_label)
            total, parts = total + own, {**parts, "teacher_label": own.detach()}
        return total, parts


def _use_batch_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.momentum = 0.0
