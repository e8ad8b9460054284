"""What the trainer does with each message, without the messages: lessons in, graphs or open weights out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from edge_sdk.adapt.memory import pack_weights
from edge_sdk.adapt.messages import OPEN_WEIGHTS, Learned, Start
from edge_sdk.adapt.trainer.graphs import StepGraphs, online_of
from edge_sdk.adapt.trainer.kept import read_version, write_version
from edge_sdk.adapt.trainer.learner import Learner
from edge_sdk.adapt.trainer.plans import StepPlans
from edge_sdk.bundle import Bundle
from edge_sdk.distill.online import OnlinePair, OnlineRecipe, make_pair
from edge_sdk.manifest import FLOAT32, Manifest
from edge_sdk.settings import parse_settings


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What came of a lesson.

    Args:
        learned: for the runner; sizes and SHA-256 are not filled in.
        mask: (H, W) uint8, the student's answer with what it learned.
        graphs: the new graphs, or plans, by step; empty where nothing was updated, and with ``swap="refit"``.
        weights: the open weights by name in the graph; empty but for ``swap="refit"``.
    """

    learned: Learned
    mask: np.ndarray
    graphs: Mapping[str, bytes] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)


class Session:
    """A learner on a bundle's student, with the version of its weights.

    Args:
        start: what is to be learned; the bundle's files have been checked.

    Attributes:
        version: number of the weights now.

    Raises:
        BundleError: the bundle cannot learn.
        RecipeError: its networks cannot be made, or not without being allowed.
        CheckpointError: weights do not fit.
    """

    def __init__(self, start: Start) -> None:
        self._settings, self.version = start.settings, start.version
        self._bundle = Bundle.open(start.bundle, verify=False)
        spec = online_of(self._bundle)
        self._graphs = StepGraphs(self._bundle)
        self._plans: StepPlans | None = None
        if start.engine != FLOAT32 and start.settings.swap == "engine":
            self._plans = StepPlans(self._bundle, start.engine)
        self._engine = start.engine
        recipe = parse_settings(spec.recipe, OnlineRecipe, "manifest: online.recipe")
        pair = make_pair(recipe, self._bundle.path / spec.weights, allowed=start.settings.factories)
        if pair.join == "replace":
            pair.teacher = nn.Identity()  # the bundle has it; here it would only take memory
        self._learner = Learner(
            pair, recipe.preprocess, recipe.task, start.settings, self._trained(pair, spec.open),
            decode_stride=decode_stride(self._bundle.manifest),
        )  # fmt: skip
        if start.resume is not None:
            kept = read_version(Path(start.resume), start.version, self._bundle.manifest_sha256)
            self._learner.load_state_dict(kept)

    def lesson(self, seq: int, image: np.ndarray, label: np.ndarray) -> Report:
        """Learn from a teacher frame.

        Weights that are no numbers do not stay: those of before come back at once.

        Args:
            seq: the frame's number.
            image: (H, W, 3) uint8 BGR.
            label: (H, W) uint8, the teacher's.

        Raises:
            ShapeError: an array is of another shape or dtype, or the label holds what is no class.
        """
        began = time.perf_counter()
        taught = self._learner.learn(image, label)
        graphs: Mapping[str, bytes] = {}
        weights: Mapping[str, np.ndarray] = {}
        if not taught.finite:
            self._learner.undo()
        elif taught.updates:
            self.version += 1
            if self._settings.swap == "refit":
                weights = self._graphs.open_weights(self._learner.weights())
            else:
                graphs = (self._plans or self._graphs).patched(self._learner.weights())
        learned = Learned(
            seq=seq, version=self.version, before=taught.before, after=taught.after, updates=taught.updates,
            losses=taught.losses, took_ms=(time.perf_counter() - began) * 1e3, finite=taught.finite,
        )  # fmt: skip
        return Report(learned, taught.mask, graphs, weights)

    def undo(self, version: int) -> None:
        """Back to the weights and momentum of before the last lesson, whose number is ``version``."""
        self._learner.undo()
        self.version = version

    def keep(self, folder: Path) -> None:
        """Write the weights to ``folder``, see :class:`edge_sdk.adapt.messages.Keep`.

        Raises:
            OutputError: it cannot be written.
        """
        weights = self._learner.weights()
        files = {self._graphs.files[step]: data for step, data in self._graphs.patched(weights).items()}
        if self._plans is not None:
            files |= {self._plans.files[step]: data for step, data in self._plans.patched(weights).items()}
        elif self._engine != FLOAT32:
            files[OPEN_WEIGHTS] = pack_weights(self._graphs.open_weights(weights))
        write_version(
            folder, self.version, self._bundle.manifest_sha256, self._learner.state_dict(), files,
            durable=self._settings.state is not None,
        )  # fmt: skip

    def _trained(self, pair: OnlinePair, opened: tuple[str, ...]) -> list[str] | None:
        """Names of what learns; None for all. Statistics may be open too, but nothing here changes them."""
        if self._settings.swap != "refit":
            return None
        statistics = set(pair.learned()) - set(pair.learnable())
        return [name for name in opened if name not in statistics]


def decode_stride(manifest: Manifest) -> int:
    """Of how many pixels each way the bundle's graphs decide one, as its export says; 1 where it does not."""
    export = manifest.provenance.get("export")
    found = export.get("decode_stride") if isinstance(export, dict) else None
    return found if isinstance(found, int) and found >= 1 else 1
