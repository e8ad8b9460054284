"""Online distillation's pair: the teacher as keyframe step, and a student that learns on the stream as delta step.

With join ``replace`` the student answers alone, as published (JITNet, ICCV 2019, arXiv 1812.02699). With ``correct``
it is a telescoped residual of whole networks: the keyframe step keeps by how much the teacher differed from the
student, and the student's later answers are corrected by it where its own answer is still what it was at the keyframe,
see :mod:`edge_sdk.distill.correction`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from edge_sdk.distill.correction import OFFSET, SLOPE, confidence, kept
from edge_sdk.distill.modules import fill_module, load_module, make_module, read_checkpoint, read_weights
from edge_sdk.distill.recipes import ModuleSettings, Preprocess
from edge_sdk.distill.steps import State, StepPair
from edge_sdk.errors import CheckpointError, RecipeError
from edge_sdk.settings import Settings
from edge_sdk.tasks.base import TaskSpec

WEIGHTS_FILE, WEIGHTS_KEY = "online.pt", "pair"
# What the student's own parameters are called in the pair.
STUDENT = "student."
# State is kept at this share of the network's input size.
_STRIDE = 8


class OnlineRecipe(Settings):
    """Teacher and student of one stream.

    Args:
        student: the network that learns, with its weights of before the stream.
        teacher: the network that it learns from; None where the teacher's masks are recorded, then the keyframe step is
            the student as it was before the stream.
        teacher_classes: the teacher's classes, by their ids; empty for those of ``task``.
        groups: by class of ``task`` but the first, the teacher's classes that it is made of; the first class is
            background, all the others of the teacher. None takes the teacher's classes as they are.
        join: ``replace``: the student answers alone; ``correct``: the teacher's last answer corrects it.
        fresh: patterns (``*`` matches anything) over the student's tensors that are not in its checkpoint, or there of
            another size, such as ``logits.*`` for other classes: they begin at random. Nothing else does.
        seed: of what is fresh.
        open: patterns over the student's tensors, and ``offset`` and ``slope`` of the join, that the graphs leave open,
            so that a runner can exchange them alone.
        task: classes of the stream.
        preprocess: of both networks.
    """

    student: ModuleSettings
    teacher: ModuleSettings | None = None
    teacher_classes: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] | None = None
    join: Literal["replace", "correct"] = "replace"
    fresh: tuple[str, ...] = ()
    seed: int = 0
    open: tuple[str, ...] = ()
    task: TaskSpec
    preprocess: Preprocess = Preprocess()

    @model_validator(mode="after")
    def _teacher_known(self) -> OnlineRecipe:
        if self.teacher is None:
            for name in ("teacher_classes", "groups"):
                if getattr(self, name):
                    raise ValueError(f"'{name}' is about the teacher, and there is no 'teacher'")
            if self.join == "correct":
                raise ValueError("join 'correct' needs a 'teacher': its answer is what corrects the student")
        if self.groups is None and self.teacher_classes and self.teacher_classes != self.task.classes:
            raise ValueError(
                "'teacher_classes' are not task.classes: expected 'groups' that say how they map"
            )
        return self

    @model_validator(mode="after")
    def _groups_map(self) -> OnlineRecipe:
        if self.groups is None:
            return self
        known, wanted = self.teacher_classes, self.task.classes[1:]
        if len(set(known)) != len(known) or not known:
            raise ValueError("'groups' need 'teacher_classes', each named once")
        if set(self.groups) != set(wanted):
            raise ValueError(
                f"'groups': expected one for each of {', '.join(wanted)} (task.classes but the first, background), "
                f"got {', '.join(self.groups) or 'none'}"
            )
        members = [name for group in self.groups.values() for name in group]
        for group, names in self.groups.items():
            if not names:
                raise ValueError(f"'groups.{group}': expected at least one of teacher_classes")
        for name in members:
            if name not in known:
                raise ValueError(f"'groups': '{name}' is none of teacher_classes ({', '.join(known)})")
            if members.count(name) > 1:
                raise ValueError(f"'groups': '{name}' is named twice")
        if len(members) == len(known):
            raise ValueError("'groups': no teacher class is left for the background")
        return self

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the teacher's classes of which each class of ``task`` is made; empty without groups."""
        if self.groups is None:
            return ()
        ids = {name: index for index, name in enumerate(self.teacher_classes)}
        groups = [tuple(sorted(ids[name] for name in self.groups[group])) for group in self.task.classes[1:]]
        rest = tuple(index for index in ids.values() if not any(index in group for group in groups))
        return (rest, *groups)


class OnlinePair(StepPair):
    """The two steps, over network inputs (N, 3, h, w) and logits of the stream's classes.

    In training mode the teacher stays as it is: it neither learns nor gathers statistics.

    Args:
        student: gives class logits.
        teacher: gives class logits, of its own classes where there are groups.
        members: see :attr:`OnlineRecipe.members`.
        join: see :class:`OnlineRecipe`.
    """

    method = "online"
    has_delta = True

    def __init__(
        self, student: nn.Module, teacher: nn.Module, *, members: Sequence[Sequence[int]] = (),
        join: Literal["replace", "correct"] = "replace",
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.members, self.join = tuple(map(tuple, members)), join
        if join == "correct":
            self.offset, self.slope = (nn.Parameter(torch.tensor([value])) for value in (OFFSET, SLOPE))

    def train(self, mode: bool = True) -> OnlinePair:
        """Training mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def keyframe(self, x: Tensor) -> tuple[Tensor, State]:
        """The teacher's logits and, with join ``correct``, the state of :meth:`delta`, both (N, C, h / 8, w / 8).

        State: ``residual``, teacher's less student's logits, and ``student``, the student's class shares.
        """
        target = self.target(x)
        return target, self.state(x, target) if self.join == "correct" else {}

    def target(self, x: Tensor) -> Tensor:
        """The teacher's logits of the stream's classes."""
        return self._grouped(self.teacher(x))

    def state(self, x: Tensor, target: Tensor) -> State:
        """What the keyframe step keeps of ``x``, given :meth:`target` of it: for who has that already."""
        return kept(_pooled(target, x), _pooled(self.student(x), x))

    def delta(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The student's logits, corrected by ``state`` where there is one; nothing is rewritten."""
        logits = self.student(x)
        if self.join == "replace":
            return logits, {}
        shares = _pooled(logits, x).softmax(1)
        trust = confidence(shares, state["student"], self.offset, self.slope)
        correction = F.interpolate(
            trust * state["residual"], size=logits.shape[-2:], mode="bilinear", align_corners=False
        )
        return logits + correction, {}

    def learnable(self) -> dict[str, nn.Parameter]:
        """Every parameter that learning may change, by name: the student's and the join's."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("teacher.")}

    def learned(self) -> dict[str, Tensor]:
        """Every tensor that learning may change, by name: :meth:`learnable` and statistics that the student gathers.

        These are what a bundle's graphs keep exchangeable, see :attr:`edge_sdk.manifest.OnlineSpec.tensors`.
        """
        kept = self.state_dict()
        statistics = {
            name: value
            for name, value in self.named_buffers()
            if name.startswith(STUDENT) and name in kept and value.is_floating_point()
        }
        return {**self.learnable(), **statistics}

    def _grouped(self, logits: Tensor) -> Tensor:
        """A group's logit is its largest member's: the group of the teacher's winning class wins."""
        if not self.members:
            return logits
        order = [index for group in self.members for index in group]
        sizes = [len(group) for group in self.members]
        parts = logits.index_select(1, torch.tensor(order, device=logits.device)).split(sizes, 1)
        return torch.cat([part if part.shape[1] == 1 else part.amax(1, keepdim=True) for part in parts], 1)


def _pooled(logits: Tensor, image: Tensor) -> Tensor:
    """Logits (N, C, ., .) averaged down to 1/8 of the image, sizes rounded up."""
    height, width = (-(-int(side) // _STRIDE) for side in image.shape[-2:])
    by = [-(-int(side) // out) for side, out in zip(logits.shape[-2:], (height, width), strict=True)]
    pooled = logits
    if max(by) > 1:
        pooled = F.avg_pool2d(logits, by, ceil_mode=True, count_include_pad=False)
    if tuple(pooled.shape[-2:]) != (height, width):  # a network of another stride
        pooled = F.interpolate(pooled, size=(height, width), mode="bilinear", align_corners=False)
    return pooled


def make_pair(
    recipe: OnlineRecipe, weights: Path | None = None, *, allowed: Sequence[str] | None = None
) -> OnlinePair:
    """The pair, in evaluation mode.

    Args:
        recipe: what it is made of.
        weights: file with the weights of the whole pair, as a bundle has it; None takes those of the two checkpoints.
        allowed: prefixes of the factories that may be called; None allows any, as on a workstation where the user wrote
            the recipe.

    Raises:
        RecipeError: a factory is not allowed or does not work, or a pattern of ``fresh`` matches nothing.
        CheckpointError: weights do not fit.
    """
    _check_allowed(recipe, allowed)
    # Factories draw initial weights: from a seed of ours, and from nobody else's draws.
    with torch.random.fork_rng(devices=[]):
        student = _student(recipe) if weights is None else make_module(recipe.student)
        if recipe.teacher is None:
            teacher = copy.deepcopy(student)
        else:
            teacher = load_module(recipe.teacher) if weights is None else make_module(recipe.teacher)
    pair = OnlinePair(student, teacher, members=recipe.members, join=recipe.join)
    if weights is not None:
        found = read_checkpoint(weights).get(WEIGHTS_KEY)
        if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
            raise CheckpointError(
                f"checkpoint {weights}: expected a pair's weights under '{WEIGHTS_KEY}', found none.",
                hint="Export the bundle again.",
            )
        fill_module(pair, found, weights)
    return pair.eval()


def _check_allowed(recipe: OnlineRecipe, allowed: Sequence[str] | None) -> None:
    for module in (recipe.student, recipe.teacher):
        if module is None or allowed is None or any(module.factory.startswith(prefix) for prefix in allowed):
            continue
        raise RecipeError(
            f"'factory': this bundle would run {module.factory}, allowed are only factories that begin with "
            f"{', '.join(allowed) or 'nothing'}.",
            hint=f"Where you trust that code, add '{module.factory.partition(':')[0]}:' to AdaptSettings.factories.",
        )


def _student(recipe: OnlineRecipe) -> nn.Module:
    """The student with its checkpoint's weights but for what is fresh."""
    torch.manual_seed(recipe.seed)
    module = make_module(recipe.student)
    own = module.state_dict()
    fresh = {name for pattern in recipe.fresh for name in matching(pattern, own, "'fresh'")}
    given: dict[str, Tensor] = {}
    if recipe.student.checkpoint is not None:
        given = read_weights(recipe.student.checkpoint)
    elif fresh != set(own):
        raise RecipeError(
            f"'checkpoint' of {recipe.student.factory}: expected a file with trained weights, got none.",
            hint="Train one with: edge-sdk train RECIPE. To begin at random, say so with fresh: ['*'].",
        )
    wanted = {name: value for name, value in given.items() if name not in fresh}
    try:
        fill_module(
            module, {**wanted, **{name: own[name] for name in fresh}}, recipe.student.checkpoint or ""
        )
    except CheckpointError as error:
        raise CheckpointError(
            str(error),
            hint="What another number of classes changes belongs under 'fresh', such as 'logits.*'.",
        ) from error
    return module


def matching(pattern: str, names: Mapping[str, Tensor], what: str) -> list[str]:
    """The names that ``pattern`` matches.

    Raises:
        RecipeError: there is none; ``what`` begins the message.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise RecipeError(
            f"{what}: the pattern '{pattern}' matches no tensor.",
            hint=f"The names are like {', '.join(list(names)[-3:])}.",
        )
    return found


def open_names(recipe: OnlineRecipe, pair: OnlinePair) -> tuple[str, ...]:
    """Names in the pair of the tensors that ``recipe.open`` leaves open, in the pair's order.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    learned = {name.removeprefix(STUDENT): value for name, value in pair.learned().items()}
    chosen = {name for pattern in recipe.open for name in matching(pattern, learned, "'open'")}
    return tuple(name for name in pair.learned() if name.removeprefix(STUDENT) in chosen)
