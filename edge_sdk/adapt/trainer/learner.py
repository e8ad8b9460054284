"""The published loop: on one teacher frame, update the student until it agrees with the teacher.

JITNet, ICCV 2019, arXiv 1812.02699; where sources differ, :class:`edge_sdk.adapt.settings.AdaptSettings` names both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sdk.adapt.agreement import agreement
from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.adapt.trainer.boxes import box_weights
from edge_sdk.adapt.trainer.loss import online_loss
from edge_sdk.adapt.trainer.recall import Memory, TeacherFrame, frame_from, frame_state
from edge_sdk.distill.channels_last import channels_last
from edge_sdk.distill.frames import FrameToInput
from edge_sdk.distill.online import OnlinePair
from edge_sdk.distill.recipes import Preprocess
from edge_sdk.errors import BundleError, CheckpointError, ShapeError
from edge_sdk.tasks.base import TaskSpec

_AGAIN = "Begin again with resume=False, or with the bundle that these weights were learned from."


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """What a teacher frame has brought.

    Args:
        before, after: agreement before the first and after the last update.
        updates: optimiser steps made.
        losses: of each update, and of one that was not made because its loss was no number.
        mask: (H, W) uint8, the student's answer after the last update.
        finite: whether every weight and loss is a finite number.
    """

    before: float
    after: float
    updates: int
    losses: tuple[float, ...]
    mask: np.ndarray
    finite: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    """A teacher frame as the loss wants it: network inputs (1, 3, h, w), label (1, H, W) int64, weights (1, H, W)."""

    x: Tensor
    label: Tensor
    weights: Tensor
    before: Tensor | None
    target: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Snapshot:
    weights: list[Tensor]
    momentum: list[Tensor | None]


class Learner:
    """Teaches a pair's student, one frame after the other.

    Every frame passes the network alone, so that the student meets it as its engine does: a :class:`FrameNorm` uses the
    statistics of that frame, and a batch norm with gathered statistics keeps those that it came with.

    Args:
        pair: teacher and student; its student's weights are changed in place.
        preprocess: from frame to network input.
        task: classes of the stream and the label that is ignored.
        settings: of the adaptation.
        trained: names in ``pair.learnable()`` of what learns; None for all.
        decode_stride: of the bundle's graphs, so that masks are decoded as the engines do.

    Raises:
        BundleError: ``trained`` names what does not learn, or nothing.
    """

    def __init__(
        self, pair: OnlinePair, preprocess: Preprocess, task: TaskSpec, settings: AdaptSettings,
        trained: Iterable[str] | None = None, *, decode_stride: int = 1,
    ) -> None:  # fmt: skip
        self.pair, self.task, self.settings = pair.eval(), task, settings
        # In this order of axes an update takes three quarters of the time.
        channels_last(self.pair)
        self._to_input, self._stride = FrameToInput(preprocess), decode_stride
        self._trained = _chosen(pair, trained)
        self._parameters = list(self._trained.values())
        optimiser = settings.optimiser
        self._sgd = torch.optim.SGD(
            self._parameters, lr=optimiser.lr, momentum=optimiser.momentum, nesterov=optimiser.nesterov,
            weight_decay=optimiser.weight_decay, foreach=True,
        )  # fmt: skip
        self._memory = Memory(settings.memory, settings.seed)
        self._last: TeacherFrame | None = None
        self._snapshot: _Snapshot | None = None

    def learn(self, image: np.ndarray, label: np.ndarray) -> Taught:
        """Learn from one teacher frame.

        Where a loss is no number, no update follows, and the weights may be none either: :meth:`undo` brings back those
        of before.

        Args:
            image: (H, W, 3) uint8 BGR; copied where it is kept.
            label: (H, W) uint8, the teacher's answer: class ids and the ignored label.

        Raises:
            ShapeError: image or label has another shape or dtype, or the label an id that is no class.
        """
        _check(image, label)
        frame = self._teacher_frame(image, label)
        self._snapshot = self._taken()
        taught = self._taught(frame)
        # A fact of the stream, whatever becomes of the weights.
        if self.settings.memory is not None:
            self._memory.add(frame)
        self._last = frame
        return taught

    def undo(self) -> None:
        """Weights and momentum of before the last lesson; without one, and a second time, nothing happens."""
        if self._snapshot is None:
            return
        with torch.no_grad():
            kept = zip(self._parameters, self._snapshot.weights, self._snapshot.momentum, strict=True)
            for parameter, weight, momentum in kept:
                parameter.copy_(weight)
                self._set_momentum(parameter, momentum)

    def weights(self) -> dict[str, np.ndarray]:
        """Every tensor that the graphs keep exchangeable, by name in the pair: float32, C-contiguous copies."""
        return {
            name: np.array(value.detach().numpy(), order="C") for name, value in self.pair.learned().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum, memory and what draws depend on, as tensors and plain values."""
        momentum = {name: self._momentum(parameter) for name, parameter in self._trained.items()}
        return {
            "weights": {name: value.detach().contiguous() for name, value in self.pair.learned().items()},
            "momentum": {name: value.contiguous() for name, value in momentum.items() if value is not None},
            "memory": self._memory.state_dict(),
            # Only what corrects the student has to be known later.
            "last": None if self._last is None or self.pair.join == "replace" else frame_state(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` gave; there is nothing to undo then.

        Raises:
            CheckpointError: it is of another pair, or no such state.
        """
        own = self.pair.learned()
        weights, momentum = state.get("weights"), state.get("momentum")
        if not isinstance(weights, Mapping) or not isinstance(momentum, Mapping):
            raise CheckpointError(
                "kept weights: expected those of a trainer, found something else.", hint=_AGAIN
            )
        _fits("kept weights", weights, own, complete=True)
        _fits("kept momentum", momentum, self._trained, complete=False)
        try:
            last = None if state["last"] is None else frame_from(state["last"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"kept teacher frame: cannot be read ({error!r}).", hint=_AGAIN) from error
        self._memory.load_state_dict(state.get("memory", {}))
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(weights[name])
            for name, parameter in self._trained.items():
                self._set_momentum(parameter, momentum.get(name))
        self._last, self._snapshot = last, None

    def _teacher_frame(self, image: np.ndarray, label: np.ndarray) -> TeacherFrame:
        """The frame, with the one before it where that corrects the student; the first corrects itself."""
        image, label = image.copy(), label.copy()
        if self.pair.join == "replace":
            return TeacherFrame(image, label)
        before = image if self._last is None or self._last.image.shape != image.shape else self._last.image
        with torch.no_grad():
            target = self.pair.target(self._input(before))
        return TeacherFrame(image, label, before, target)

    def _taught(self, frame: TeacherFrame) -> Taught:
        settings, newest = self.settings, self._example(frame)
        losses: list[float] = []
        measured: list[float] = []
        finite = True
        while True:
            more = len(losses) < settings.max_updates and finite
            with torch.set_grad_enabled(more):
                logits = self._logits(newest)
                full = _resized(logits, frame.label.shape)
            mask = self._mask(logits, full)
            measured.append(self._agreement(mask, frame.label))
            if not more or not self._wants_update(measured):
                break
            losses.append(self._update(newest, full))
            finite = math.isfinite(losses[-1])
        updates = len(losses) if finite else len(losses) - 1
        finite = finite and all(bool(p.isfinite().all()) for p in self._parameters)
        return Taught(measured[0], measured[-1], updates, tuple(losses), mask, finite)

    def _wants_update(self, measured: list[float]) -> bool:
        """Both comparisons are strict, as published."""
        if self.settings.order == "test_first":
            return measured[-1] < self.settings.threshold
        # The authors' loop ends after the update whose own forward pass was good enough.
        return len(measured) == 1 or not measured[-2] > self.settings.threshold

    def _update(self, newest: _Example, full: Tensor) -> float:
        """One optimiser step on the newest frame and the memory's, none where the loss is no number; the loss."""
        past = [self._example(frame) for frame in self._memory.draw()]
        share = 1 / (1 + len(past))
        self._sgd.zero_grad()
        loss = self._loss(full, newest) * share
        loss.backward()
        total = float(loss.detach())
        for example in past:  # one after the other: no more memory than for one
            full = _resized(self._logits(example), example.label.shape[-2:])
            loss = self._loss(full, example) * share
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            return total
        if self.settings.optimiser.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.optimiser.clip_norm)
        self._sgd.step()
        return total

    def _logits(self, example: _Example) -> Tensor:
        """The student's logits (1, C, h, w), as the delta step gives them."""
        state = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            if example.before is not None and example.target is not None:
                state = self.pair.state(example.before, example.target)
            logits = self.pair.delta(example.x, state)[0]
        # Few channels are resized and compared several times faster one after the other.
        return logits.float().contiguous()

    def _loss(self, full: Tensor, example: _Example) -> Tensor:
        return online_loss(full, example.label, example.weights, self.task.ignore_label, self.settings.loss)

    def _mask(self, logits: Tensor, full: Tensor) -> np.ndarray:
        """The answer (H, W) uint8 as the graphs decode it, from logits and what they are at frame size."""
        height, width = full.shape[-2:]
        step = self._stride
        with torch.no_grad():
            small = full if step == 1 else _resized(logits, (-(-height // step), -(-width // step)))
            # Ten times faster than argmax over an axis that is not the last.
            mask: np.ndarray = small.max(1).indices[0].to(torch.uint8).numpy()
        return mask if step == 1 else mask.repeat(step, 0).repeat(step, 1)[:height, :width].copy()

    def _agreement(self, mask: np.ndarray, label: np.ndarray) -> float:
        settings, task = self.settings.agreement, self.task
        return agreement(mask, label, len(task.classes), task.ignore_label, settings)

    def _example(self, frame: TeacherFrame) -> _Example:
        classes = len(self.task.classes)
        return _Example(
            x=self._input(frame.image),
            label=torch.from_numpy(frame.label).long()[None],
            weights=torch.from_numpy(box_weights(frame.label, classes, self.settings.loss))[None],
            before=None if frame.before is None else self._input(frame.before),
            target=frame.target,
        )

    def _input(self, image: np.ndarray) -> Tensor:
        with torch.no_grad():
            x: Tensor = self._to_input(torch.from_numpy(image)[None])
        return x.contiguous(memory_format=torch.channels_last)

    def _taken(self) -> _Snapshot:
        weights = [parameter.detach().clone() for parameter in self._parameters]
        momentum = [self._momentum(parameter) for parameter in self._parameters]
        return _Snapshot(weights, [None if value is None else value.clone() for value in momentum])

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        value: Tensor | None = self._sgd.state.get(parameter, {}).get("momentum_buffer")
        return value

    def _set_momentum(self, parameter: Tensor, value: Tensor | None) -> None:
        self._sgd.state.pop(parameter, None)
        if value is not None:
            self._sgd.state[parameter] = {"momentum_buffer": torch.empty_like(parameter).copy_(value)}


def _resized(logits: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)


def _chosen(pair: OnlinePair, trained: Iterable[str] | None) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, in the pair's order; the others are frozen, which also saves their gradients."""
    every = pair.learnable()
    wanted = set(every) if trained is None else set(trained)
    if odd := sorted(wanted - set(every)):
        raise BundleError(
            f"open layers: '{odd[0]}' is none of the student's parameters.", hint="Export the bundle again."
        )
    if not wanted:
        raise BundleError(
            "open layers: none of the student's parameters is open, nothing could learn.",
            hint="Export the bundle again with 'open' patterns, or use swap='engine'.",
        )
    for name, parameter in every.items():
        parameter.requires_grad_(name in wanted)
    return {name: parameter for name, parameter in every.items() if name in wanted}


def _check(image: np.ndarray, label: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}.")
    if label.shape != image.shape[:2] or label.dtype != np.uint8:
        raise ShapeError(
            f"label: expected {image.shape[:2]} uint8 as the image, got {label.shape} {label.dtype}."
        )


def _fits(what: str, given: Mapping[str, Any], own: Mapping[str, Tensor], *, complete: bool) -> None:
    odd = sorted(set(given) - set(own)) or (sorted(set(own) - set(given)) if complete else [])
    if odd:
        raise CheckpointError(
            f"{what}: '{odd[0]}' is not in both, they and this bundle's student.", hint=_AGAIN
        )
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.shape != own[name].shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(
                f"{what}: '{name}': expected {tuple(own[name].shape)}, got {got}.", hint=_AGAIN
            )
