"""Pairs of whole networks: a smaller student under keyframes of the teacher at full resolution.

The student sees every frame at a share of its size (arXiv 2209.12797 resizes inside the network too, bilinearly and
without smoothing first), so its cost falls with the square of that share; or it is a narrower network. The keyframe
step keeps what the student missed of the teacher's answer, and later answers are corrected by it, see
:mod:`edge_sdk.distill.correction`:

    z_t = up(s(down(x_t))) + m * r,    r = z_0 - up(s(down(x_0)))

or, blended, it carries its own last answer on, which the keyframe begins:

    z_t = s_t + m * (z_{t-1} - s_t),    s_t = up(s(down(x_t)))

The confidence m is a sigmoid of how far the student's class shares moved since the keyframe, and of what a small
convolution makes of both of them, class by class; blended, of how far they are from those of z_{t-1}. With motion, what
was kept is first fetched from where its places were, see :mod:`edge_sdk.distill.motion`; training is in
:mod:`edge_sdk.distill.cross_training`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sdk.distill.correction import BLEND_OFFSET, BLEND_SLOPE, OFFSET, SLOPE, Confidence, kept, shares_of
from edge_sdk.distill.cross_recipe import CrossRecipe, Join, MotionSettings
from edge_sdk.distill.frames import shrunk
from edge_sdk.distill.modules import fill_module, keep_norm, load_module, make_module, read_checkpoint
from edge_sdk.distill.motion import Motion, fetched, rows_at, size_of_table, table_of
from edge_sdk.distill.recipes import ModuleSettings
from edge_sdk.distill.steps import TRUST, State, StepPair
from edge_sdk.distill.taps import drawn_to, map_shape, noted, size_of
from edge_sdk.errors import CheckpointError, RecipeError
from edge_sdk.settings import parse_settings

KIND = "cross"
# What the frozen teacher's tensors are called in the pair.
TEACHER = "teacher."


class SmallInput(nn.Module):
    """A network run on its input drawn down: (N, 3, h, w) to class logits.

    The logits are of the smaller input's size. Where their last cells reach beyond it, as 23 cells of 8 rows do beyond
    180, they are drawn up to cells of as many pixels of the whole input, and what lies beyond it is cut off: drawn up
    as if they ended with the input, they would lie askew.

    Args:
        network: gives class logits.
        scale: share of each side that it sees; below 1 the sides are rounded up to multiples of ``multiple``.
    """

    def __init__(self, network: nn.Module, scale: float, multiple: int) -> None:
        super().__init__()
        self.network, self.scale, self.multiple = network, scale, multiple

    def size_of(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Height and width that the network sees of an input of ``size_hw``."""
        if self.scale == 1:
            return size_hw
        # A little less before rounding up: 0.7 * 80 is a trifle more than 56.
        height, width = (
            max(1, -int(-(side * self.scale - 1e-6) // self.multiple)) * self.multiple for side in size_hw
        )
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ``x``."""
        given = size_of(x)
        seen = self.size_of(given)
        logits: Tensor = self.network(shrunk(x, seen))
        if seen == given:
            return logits
        sides = [_reach(*sides) for sides in zip(given, seen, size_of(logits), strict=True)]
        if all(within == drawn for drawn, within in sides):
            return logits
        (height, rows), (width, columns) = sides
        return drawn_to(logits, (height, width))[..., :rows, :columns]


def _reach(given: int, seen: int, cells: int) -> tuple[int, int]:
    """To how many cells, each of as many pixels of the input as it was of what was seen, one side is drawn up, and how
    many of them the input reaches."""
    # Strides are powers of two; another is taken for one that ends with the input.
    stride = 1 << (-(-seen // cells) - 1).bit_length()
    if not 0 <= stride * cells - seen < stride:
        return cells, cells
    return round(cells * given / seen), -(-given // stride)


def small_input(network: ModuleSettings, scale: float, multiple: int = 1) -> SmallInput:
    """A network for every frame that sees a share of each side, such as the student of a pair by itself.

    Args:
        network: its factory and arguments, as in a recipe.
        scale, multiple: see :class:`SmallInput`.
    """
    return SmallInput(make_module(ModuleSettings.model_validate(network)), scale, multiple)


@dataclass(frozen=True)
class Answer:
    """The student's part of a step.

    Attributes:
        logits: its class logits (N, C, H, W).
        seen: what motion is seen by, (N, D, h, w); None where nobody looks.
        features_hw: height and width of the maps that this was made of.
    """

    logits: Tensor
    seen: Tensor | None = None
    features_hw: tuple[int, int] = (1, 1)


class CrossPair(StepPair):
    """The two steps, over network inputs (N, 3, h, w) at full resolution.

    In training mode the teacher stays as it is: it neither learns nor gathers statistics.

    Args:
        teacher: gives class logits of the whole input.
        student: gives class logits of the drawn-down input, of the same classes.
        join: see :class:`CrossRecipe`; ``replace`` has no state.
        confidence: weighs the correction; None corrects in full.
        motion: where the correction is fetched; None from the same place.
        motion_at: the student's module whose maps show motion; empty for its class logits.
        follow: whether motion is looked for since the frame before, and added up.

    Attributes:
        fixed: whether the student stays as it is in training mode too.
        keeps_norm: whether its batch norm at least does, and goes by the statistics that it has.
    """

    method = "cross_resolution"
    has_delta = True
    fixed = False
    keeps_norm = False

    def __init__(
        self, teacher: nn.Module, student: SmallInput, join: Join, confidence: Confidence | None = None,
        motion: Motion | None = None, motion_at: str = "", follow: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.teacher, self.student = teacher.requires_grad_(False).eval(), student
        self.join, self.confidence, self.motion, self.motion_at = join, confidence, motion, motion_at
        self.follow = follow

    def fix_student(self) -> None:
        """Let the join learn alone."""
        self.fixed = True
        self.student.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CrossPair:
        """Training mode of the student, as far as it is not fixed, and of the join."""
        super().train(mode)
        self.teacher.eval()
        if self.fixed:
            self.student.eval()
        if self.keeps_norm:
            keep_norm(self.student)
        return self

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's logits (N, C, H, W), and the state of :meth:`delta` unless it is to ``replace`` them.

        Blended, ``answer``; else ``residual``, and where there is a confidence the class shares ``student``. They are
        maps of that size, or with motion tables of them; ``seen`` is what motion is found by, and ``moved`` a table of
        motion so far.
        """
        target = self.teacher(x)
        if self.join == "replace":
            return target, {}
        own = self.answer(x)
        if self.join == "blend":
            state = {"answer": target}
        else:
            state = kept(target, drawn_to(own.logits, size_of(target)))
        if self.confidence is None:
            del state["student"]
        if self.motion is not None and own.seen is not None:
            state = {name: table_of(maps) for name, maps in state.items()}
            state["seen"] = self.motion.kept(own.seen)
            if self.follow and self.join == "correct":
                state["moved"] = table_of(torch.zeros_like(target[:, :2]))
        return target, state

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's logits, corrected by ``state`` where there is one.

        A pair that follows rewrites ``seen`` and ``moved``, a table of where places were at the keyframe; one that
        blends ``seen`` and ``answer``; others rewrite nothing. Where there is a confidence, its mean is told as
        :data:`~edge_sdk.distill.steps.TRUST`.
        """
        own = self.answer(x)
        if self.join == "replace":
            return own.logits, {}
        if self.join == "blend":
            return self._blended(own, state)
        rewritten: State = {}
        if self.motion is None or own.seen is None:
            maps, size_hw = state, size_of(state["residual"])
        else:
            size_hw = size_of_table(state["residual"])
            where = self.where(own, state["seen"], size_hw)
            if self.follow:
                where = where + fetched(state["moved"], rows_at(where))
                rewritten = {"seen": self.motion.kept(own.seen), "moved": table_of(where)}
            rows = rows_at(where)
            tables = {name: table for name, table in state.items() if name in ("residual", "student")}
            maps = {name: fetched(table, rows) for name, table in tables.items()}
        answer, confidence = self.corrected(drawn_to(own.logits, size_hw), maps)
        return answer, rewritten if confidence is None else {**rewritten, TRUST: confidence.mean()}

    def _blended(self, own: Answer, state: State) -> tuple[Tensor, State]:
        """:meth:`delta` where the last answer is carried on."""
        if self.motion is None or own.seen is None:
            before = state["answer"]
            size_hw, rewritten = size_of(before), dict[str, Tensor]()
        else:
            size_hw = size_of_table(state["answer"])
            before = fetched(state["answer"], rows_at(self.where(own, state["seen"], size_hw)))
            rewritten = {"seen": self.motion.kept(own.seen)}
        blended, confidence = self.blended(drawn_to(own.logits, size_hw), before)
        rewritten["answer"] = blended if self.motion is None else table_of(blended)
        return blended, rewritten if confidence is None else {**rewritten, TRUST: confidence.mean()}

    def blended(self, own: Tensor, before: Tensor) -> tuple[Tensor, Tensor | None]:
        """The student's logits (N, C, H, W) with as much of the last answer as is trusted, and the confidence in it.

        Args:
            own: the logits.
            before: the last answer, each place where it is now; of the same size.
        """
        return self.corrected(own, {"residual": before - own, "student": shares_of(before)})

    def answer(self, x: Tensor) -> Answer:
        """The student's own, and what it sees motion by."""
        name = self.motion_at or None
        with noted(self.student.network, name, "motion.feature_at") as found:
            logits = self.student(x)
        if self.motion is None:
            return Answer(logits)
        features = found[0] if found else logits
        return Answer(logits, self.motion.seen(features).float(), size_of(features))

    def where(self, own: Answer, before: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """How far away the keyframe saw what is seen now, (N, 2, H, W) in cells of maps of ``size_hw``.

        Args:
            own: of now.
            before: ``seen`` of the keyframe's state.
            size_hw: height and width.
        """
        if self.motion is None or own.seen is None:
            raise TypeError("the pair does not look for motion")
        return self.motion.where(own.seen, before, self.motion.cell(own.features_hw, size_hw), size_hw)

    def corrected(self, own: Tensor, maps: State) -> tuple[Tensor, Tensor | None]:
        """The student's logits (N, C, H, W) with the keyframe's correction, and the confidence in it.

        Args:
            own: the logits, of the maps' size.
            maps: what was kept, each place where it is now.
        """
        if self.confidence is None:
            return own + maps["residual"], None
        confidence = self.confidence(shares_of(own), maps["student"])
        return own + confidence * maps["residual"], confidence


def make_cross(recipe: CrossRecipe, example_hw: tuple[int, int]) -> CrossPair:
    """The pair before it is trained, in evaluation mode: both networks with the weights of their checkpoints.

    Args:
        recipe: what it is made of.
        example_hw: height and width of a network input; the student's maps there say how motion is looked for.

    Raises:
        RecipeError: a factory does not work, a network has no checkpoint, or ``motion`` cannot be seen.
        CheckpointError: weights do not fit.
    """
    return _assembled(recipe, load_module, example_hw)


def _assembled(
    recipe: CrossRecipe, make: Callable[[ModuleSettings], nn.Module], example_hw: tuple[int, int]
) -> CrossPair:
    # Factories draw initial weights: from a seed of ours, and from nobody else's draws.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.loop.seed)
        teacher = make(recipe.teacher)
        student = copy.deepcopy(teacher) if recipe.student is None else make(recipe.student)
        small = SmallInput(student.eval(), recipe.scale, recipe.multiple)
        classes, confidence, motion = len(recipe.task.classes), None, None
        if recipe.join != "replace" and recipe.confidence != "none":
            begin = (BLEND_OFFSET, BLEND_SLOPE) if recipe.join == "blend" else (OFFSET, SLOPE)
            confidence = Confidence(classes, recipe.confidence, begin)
        if recipe.motion is not None:
            motion = _motion(recipe.motion, small, example_hw)
    at, follow = ("", False) if recipe.motion is None else (recipe.motion.feature_at, recipe.motion.follow)
    return CrossPair(teacher, small, recipe.join, confidence, motion, at, follow).eval()


def _motion(settings: MotionSettings, student: SmallInput, example_hw: tuple[int, int]) -> Motion:
    """What looks for motion in the student's maps, which say how many of their cells a block is."""
    seen_hw = student.size_of(example_hw)
    named = (student.network, settings.feature_at, "motion.feature_at", seen_hw)
    shape = map_shape(*named) if settings.feature_at else map_shape(student, "", "", example_hw)
    given = example_hw[0] / shape[2] if len(shape) == 4 else 0.0
    pool = round(settings.stride / given) if given else 0
    if pool < 1 or min(shape[2:]) < pool:
        raise RecipeError(
            f"'motion.feature_at': expected maps (N, C, h, w) of at least 1/{settings.stride} of the input's "
            f"{example_hw[0]} x {example_hw[1]}, got {shape} of '{settings.feature_at}'.",
            hint="Name an earlier module of the student, or raise motion.stride.",
        )
    return Motion(shape[1], pool, settings.radius, settings.channels)


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
    # Files from before there was motion do not say it, and do without.
    height, width = meta.get("example_hw", (1, 1))
    pair = _assembled(recipe, make_module, (height, width))
    fill_module(pair, weights, path)
    return pair, recipe, meta
