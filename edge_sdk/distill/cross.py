"""Cross-resolution pairs: a student of smaller frames under keyframes of the teacher at full resolution.

The student sees every frame at a share of its size (arXiv 2209.12797 resizes inside the network too, bilinearly and
without smoothing first), so its cost falls with the square of that share. The keyframe step keeps what the student
missed of the teacher's answer, and later answers are corrected by it, see :mod:`edge_sdk.distill.correction`:

    z_t = up(s(down(x_t))) + m * r,    r = z_0 - up(s(down(x_0)))

The confidence m is a sigmoid of how far the student's class shares moved since the keyframe, and of what a small
convolution makes of both of them, class by class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sdk.distill.correction import OFFSET, SLOPE, kept, shift_of_shares
from edge_sdk.distill.cross_recipe import CrossLoss, CrossRecipe, Join
from edge_sdk.distill.distil import DistillReport, stream_miou
from edge_sdk.distill.frames import FrameSet, FrameToInput, shrunk
from edge_sdk.distill.loop import FREE, Batch, Objective, fit, is_writer
from edge_sdk.distill.losses import SegmentationLoss
from edge_sdk.distill.modules import fill_module, load_module, make_module, read_checkpoint, save_checkpoint
from edge_sdk.distill.pairs import PairSampler
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.distill.train import check_logits, frame_miou
from edge_sdk.errors import CheckpointError, RecipeError
from edge_sdk.progress import Progress
from edge_sdk.revision import commit_of_sources
from edge_sdk.settings import parse_settings

KIND = "cross"
# What the frozen teacher's tensors are called in the pair.
_TEACHER = "teacher."


class SmallInput(nn.Module):
    """A network run on its input drawn down: (N, 3, h, w) to class logits of the smaller input's size.

    Args:
        network: gives class logits.
        scale: share of each side that it sees; the sides are rounded up to multiples of ``multiple``.
    """

    def __init__(self, network: nn.Module, scale: float, multiple: int) -> None:
        super().__init__()
        self.network, self.scale, self.multiple = network, scale, multiple

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the network sees of an input of ``size_hw``."""
        height, width = (
            # A little less before rounding up: 0.7 * 80 is a trifle more than 56.
            max(1, -int(-(side * self.scale - 1e-6) // self.multiple)) * self.multiple
            for side in size_hw
        )
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        height, width = int(x.shape[-2]), int(x.shape[-1])
        return self.network(shrunk(x, self.size_of((height, width))))


class Confidence(nn.Module):
    """m: how far a keyframe's residual still holds, class by class and place by place.

    It begins as the sigmoid of a line in the shares' shift alone, and learns to see more.

    Args:
        classes: number of classes.
        width: channels of the small convolution; 0 leaves the line alone, one confidence for all classes.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.offset, self.slope = (nn.Parameter(torch.tensor([value])) for value in (OFFSET, SLOPE))
        self.more: nn.Sequential | None = None
        if width:
            last = nn.Conv2d(width, classes, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # it has a bias
            first = nn.Conv2d(2 * classes + 1, width, 3, padding=1)
            self.more = nn.Sequential(first, nn.ReLU(inplace=True), last)

    def forward(self, shares: Tensor, before: Tensor) -> Tensor:
        """Of class shares (N, C, h, w) now and at the keyframe: (N, C or 1, h, w), 0 to 1."""
        shift = shift_of_shares(shares, before)
        line = self.offset - self.slope * shift
        if self.more is None:
            return torch.sigmoid(line)
        return torch.sigmoid(line + self.more(torch.cat([shares, before, shift], 1)))


class CrossPair(StepPair):
    """The two steps, over network inputs (N, 3, h, w) at full resolution.

    In training mode the teacher stays as it is: it neither learns nor gathers statistics.

    Args:
        teacher: gives class logits of the whole input.
        student: gives class logits of the drawn-down input, of the same classes.
        join: see :class:`CrossRecipe`; ``replace`` has no state.
        confidence: weighs the correction; None with ``replace``.
    """

    method = "cross_resolution"
    has_delta = True

    def __init__(
        self, teacher: nn.Module, student: SmallInput, join: Join, confidence: Confidence | None
    ) -> None:
        super().__init__()
        self.teacher, self.student = teacher.requires_grad_(False).eval(), student
        self.join, self.confidence = join, confidence

    def train(self, mode: bool = True) -> CrossPair:
        """Training mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's logits (N, C, H, W), and with join ``correct`` the state of :meth:`delta`, of that size too."""
        target = self.teacher(x)
        if self.join == "replace":
            return target, {}
        return target, kept(target, _sized(self.student(x), target))

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's logits, corrected by ``state`` where there is one; nothing is rewritten."""
        own = self.student(x)
        if self.join == "replace":
            return own, {}
        return self.corrected(_sized(own, state["residual"]), state), {}

    def corrected(self, own: Tensor, state: State) -> Tensor:
        """The student's logits (N, C, H, W), of the state's size, with the keyframe's correction."""
        if self.confidence is None:
            return own
        return own + self.confidence(own.softmax(1), state["student"]) * state["residual"]


def _sized(logits: Tensor, like: Tensor) -> Tensor:
    """Logits drawn up, or down, to the height and width of ``like``."""
    if logits.shape[-2:] == like.shape[-2:]:
        return logits
    return F.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)


class CrossObjective(Objective):
    """Losses of one batch of pairs: the pair's answer, the student's own, and its features against the teacher's."""

    def __init__(
        self, pair: CrossPair, to_input: FrameToInput, loss: CrossLoss, task_loss: SegmentationLoss
    ) -> None:
        super().__init__()
        self.pair, self.to_input, self.settings, self.task_loss = pair, to_input, loss, task_loss

    def weights(self) -> dict[str, Tensor]:
        """All but the teacher, which stays as it is."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(f"pair.{_TEACHER}")}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts; both networks see both frames of every pair in one pass each.

        Where nothing is kept of the earlier frame, they see the later one alone.
        """
        correct = self.pair.join == "correct"
        frames = torch.cat([batch["first"], batch["frame"]]) if correct else batch["frame"]
        x = self.to_input(frames).contiguous(memory_format=torch.channels_last)
        at = self.settings.feature_at if self.settings.features else None
        with torch.no_grad(), _noted(self.pair.teacher, at) as taught:
            target = self.pair.teacher(x)
        with _noted(self.pair.student.network, at) as learnt:
            own = _sized(self.pair.student(x), target).float()
        labels = batch["mask"].long()
        count = len(labels)
        now, later = own[-count:], target[-count:].float()
        answer = self.pair.corrected(now, kept(target[:count].float(), own[:count])) if correct else now
        task = self.task_loss(answer, labels, later)
        alone = feature = task.new_zeros(())
        if correct and self.settings.alone:
            alone = self.task_loss(now, labels, later)
        if at is not None:
            feature = feature_loss(learnt[0].float(), taught[0].float())
        total = task + self.settings.alone * alone + self.settings.features * feature
        return total, {"task": task.detach(), "alone": alone.detach(), "feature": feature.detach()}


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of feature maps, the student's drawn up to the teacher's size (arXiv 2209.12797)."""
    return F.mse_loss(_sized(student, teacher), teacher)


@contextmanager
def _noted(network: nn.Module, name: str | None) -> Iterator[list[Tensor]]:
    """What the module of that name gives while this is open."""
    found: list[Tensor] = []
    if name is None:
        yield found
        return

    def note(_module: nn.Module, _given: Any, out: Any) -> None:
        found.append(out.clone())  # layers that follow may work in place

    handle = _module_at(network, name).register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _module_at(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        names = [name for name, _ in network.named_modules() if name]
        raise RecipeError(
            f"'loss.feature_at': {type(network).__name__} has no module '{name}'.",
            hint=f"Name one such as {', '.join(names[-3:])}.",
        ) from error


def check_features(pair: CrossPair, name: str, size_hw: tuple[int, int]) -> None:
    """Refuse a module whose features cannot be compared.

    Raises:
        RecipeError: a network has no such module, or it gives no maps, or maps of unlike channels.
    """
    shapes = []
    for network in (pair.teacher, pair.student.network):
        with torch.no_grad(), _noted(network, name) as found:
            network(torch.zeros(1, 3, *size_hw))
        shapes.append(tuple(found[0].shape) if found else ())
    if any(len(shape) != 4 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise RecipeError(
            f"'loss.feature_at': expected maps (N, C, h, w) of as many channels in both networks at '{name}', got "
            f"{shapes[0]} in the teacher and {shapes[1]} in the student.",
            hint="Name a module where both are equally wide, or set loss.features to 0.",
        )


def make_cross(recipe: CrossRecipe) -> CrossPair:
    """The pair before it is trained, in evaluation mode: both networks with the weights of their checkpoints.

    Raises:
        RecipeError: a factory does not work, or a network has no checkpoint.
        CheckpointError: weights do not fit.
    """
    return _assembled(recipe, load_module)


def _assembled(recipe: CrossRecipe, make: Callable[[ModuleSettings], nn.Module]) -> CrossPair:
    # Factories draw initial weights: from a seed of ours, and from nobody else's draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        teacher = make(recipe.teacher)
        student = copy.deepcopy(teacher) if recipe.student is None else make(recipe.student)
        small = SmallInput(student, recipe.scale, recipe.multiple)
        confidence = None
        if recipe.join == "correct":
            confidence = Confidence(len(recipe.task.classes), recipe.confidence)
    return CrossPair(teacher, small, recipe.join, confidence).eval()


def distill_cross(
    recipe: CrossRecipe, *, progress: Progress | None = None, resume: bool = True
) -> DistillReport:
    """Distil a student of smaller frames and write ``student.pt``, which holds the teacher too.

    Raises:
        RecipeError: data, factory or checkpoint cannot be used, or ``loss.feature_at`` names nothing comparable.
        ShapeError: a network's output is not class logits.
    """
    task, labelled = recipe.task, recipe.loss.task.source == "labels"
    commit = commit_of_sources()
    sampler = PairSampler(recipe.data, recipe.augment, task, recipe.loop.batch, labelled=labelled)
    held_out = FrameSet.read(recipe.validation, labelled=True, task=task) if recipe.validation else None
    pair = make_cross(recipe)
    crop_hw = recipe.preprocess.size_hw or recipe.augment.crop_hw or sampler.frames.size_hw
    check_logits(pair.teacher, crop_hw, len(task.classes), recipe.teacher.factory)
    named = recipe.student or recipe.teacher
    check_logits(pair.student, crop_hw, len(task.classes), named.factory)
    if recipe.loss.features:
        check_features(pair, recipe.loss.feature_at, crop_hw)
    # Convolutions train a fifth faster so on CPUs.
    pair = pair.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    to_input = FrameToInput(recipe.preprocess)
    share = sampler.frames.class_share(len(task.classes))
    task_loss = SegmentationLoss(recipe.loss.task, task.ignore_label, share)
    objective = CrossObjective(pair, to_input, recipe.loss, task_loss)
    figures = fit(
        objective, sampler, loop=recipe.loop, optimiser=recipe.optimiser, out=recipe.out, stage="distill",
        identity=recipe.model_dump(mode="json", exclude=FREE),
        validate=(lambda: _table(objective, recipe, held_out)) if held_out else None, progress=progress,
        resume=resume,
    )  # fmt: skip
    path = recipe.out / "student.pt"
    meta = {"kind": KIND, "recipe": recipe.model_dump(mode="json"), "figures": figures, "commit": commit}
    if is_writer():
        weights = {name: value.contiguous() for name, value in pair.state_dict().items()}
        save_checkpoint(path, {"state_dict": weights, "meta": meta})
    return DistillReport(str(path), figures, ())


def _table(objective: CrossObjective, recipe: CrossRecipe, held_out: FrameSet) -> dict[str, float]:
    """mIoU by keyframe interval, and of the student by itself on every frame."""
    pair, to_input, task = objective.pair, objective.to_input, recipe.task
    figures = {f"miou_k{k}": stream_miou(pair, to_input, held_out, task, k) for k in (1, *recipe.intervals)}
    return {**figures, "miou_alone": frame_miou(pair.student, to_input, held_out, task)}


def load_cross(path: str | Path) -> tuple[CrossPair, CrossRecipe, dict[str, Any]]:
    """The pair in a ``student.pt``, its recipe, and the checkpoint's meta data; the file holds both networks.

    Raises:
        CheckpointError: the file is no student of a cross-resolution distillation, or its weights do not fit.
    """
    content = read_checkpoint(path)
    meta = content.get("meta")
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise CheckpointError(
            f"checkpoint {path}: expected a student of a cross-resolution distillation, found none.",
            hint=f"Give the student.pt of an edge-sdk distill with kind: {KIND}.",
        )
    recipe = parse_settings(meta["recipe"], CrossRecipe, f"recipe in {path}")
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"checkpoint {path}: expected the weights of a pair under 'state_dict', found none.",
            hint="Distil again, or copy the file again.",
        )
    pair = _assembled(recipe, make_module)
    fill_module(pair, weights, path)
    return pair, recipe, meta
