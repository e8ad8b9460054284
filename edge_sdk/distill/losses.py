"""Losses on class logits."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.recipes import TaskLoss


class SegmentationLoss(nn.Module):
    """Cross entropy with optional hard-pixel mining, and KL divergence from a teacher.

    Args:
        settings: what the loss is made of.
        ignore_label: label that counts for nothing.
        class_share: share of each class among the training labels, needed for ``class_weights: log``.
    """

    weights: Tensor | None

    def __init__(self, settings: TaskLoss, ignore_label: int, class_share: np.ndarray | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.ignore_label = ignore_label
        weights = None
        if settings.class_weights == "log" and class_share is not None:
            # ENet's bounded class weights (Paszke et al. 2016, section 5.2).
            weights = torch.tensor(1 / np.log(1.02 + class_share), dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor | None, teacher_logits: Tensor | None) -> Tensor:
        """Loss of ``logits`` (N, C, h, w) against labels (N, H, W) int64 and teacher logits (N, C, any, any)."""
        total = logits.new_zeros(())
        if self.settings.source != "teacher" and labels is not None:
            total = total + self._cross_entropy(logits, labels)
        if self.settings.source != "labels" and teacher_logits is not None:
            total = total + self.settings.teacher_weight * self._divergence(logits, teacher_logits)
        return total

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        full = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(full, labels, self.weights, ignore_index=self.ignore_label, reduction="none")
        valid = labels != self.ignore_label
        if self.settings.ohem_prob is None:
            weight = (
                valid.float()
                if self.weights is None
                else self.weights[labels.clamp(max=len(self.weights) - 1)] * valid
            )
            return loss.sum() / weight.sum().clamp(min=1)
        return self._hard_pixels(full, labels, loss, valid)

    def _hard_pixels(self, full: Tensor, labels: Tensor, loss: Tensor, valid: Tensor) -> Tensor:
        """Mean loss of the pixels whose true class got too little, or of the hardest ``ohem_keep``."""
        truth = full.detach().softmax(1).gather(1, labels.where(valid, 0)[:, None])[:, 0][valid]
        keep = min(self.settings.ohem_keep, truth.numel())
        if keep == 0:
            return loss.sum()
        threshold = max(float(truth.kthvalue(keep).values), self.settings.ohem_prob or 0.0)
        return loss[valid][truth <= threshold].mean()

    def _divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if teacher_logits.shape[-2:] != logits.shape[-2:]:
            size = logits.shape[-2:]
            teacher_logits = F.interpolate(
                teacher_logits.float(), size=size, mode="bilinear", align_corners=False
            )
        heat = self.settings.temperature
        student = F.log_softmax(logits.float() / heat, 1)
        teacher = F.log_softmax(teacher_logits.float() / heat, 1)
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean() * heat**2
