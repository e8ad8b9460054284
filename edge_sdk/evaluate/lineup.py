"""The bundles that an evaluation compares, checked against each other before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_sdk.bundle import Bundle
from edge_sdk.errors import BundleError
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.evaluate.recipe import EvaluateRecipe
from edge_sdk.tasks import TaskSpec


@dataclass(frozen=True)
class Lineup:
    """Who takes part.

    Args:
        pair: keyframe and delta step; the subject.
        teacher: per-frame bundle of the same teacher, or None.
        rival: another per-frame bundle, or None.
    """

    pair: Bundle
    teacher: Bundle | None
    rival: Bundle | None

    @property
    def keyframes(self) -> Bundle:
        """The bundle whose keyframe step is the teacher: the plain one where there is one."""
        return self.pair if self.teacher is None else self.teacher

    def facts(self) -> tuple[BundleFacts, ...]:
        """Identity and provenance of each bundle, the pair first."""
        roles = (("pair", self.pair), ("teacher", self.teacher), ("rival", self.rival))
        return tuple(BundleFacts.of(role, bundle) for role, bundle in roles if bundle is not None)


def open_lineup(recipe: EvaluateRecipe) -> Lineup:
    """Open and check the bundles of a recipe.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, is of the wrong kind for its part, or
            takes other frames or has other classes than the pair.
    """
    pair = Bundle.open(recipe.bundle)
    require_delta(pair, "bundle", others="`rival` or `teacher`")
    for engine in recipe.engines:
        pair.engine_for("onnxruntime", engine)
    return Lineup(
        pair, open_per_frame(recipe.teacher, "teacher", pair), open_per_frame(recipe.rival, "rival", pair)
    )


def require_delta(bundle: Bundle, role: str, *, others: str) -> None:
    """Refuse, as ``role``, a bundle without a delta step; ``others`` are the roles that it could have.

    Raises:
        BundleError: it has none.
    """
    if bundle.manifest.steps.delta is None:
        raise BundleError(
            f"{role} {bundle.path}: expected a keyframe and a delta step, it has a keyframe step only.",
            hint=f"Name it as {others}, and as `{role}` one that was distilled to keyframe and delta.",
        )


def open_per_frame(path: Path | None, role: str, pair: Bundle) -> Bundle | None:
    """A per-frame bundle to compare ``pair`` with; None where ``path`` is.

    Raises:
        MissingFileError, FileFormatError, BundleError: those of :func:`per_frame_bundle`.
    """
    return None if path is None else per_frame_bundle(path, role, pair)


def per_frame_bundle(path: Path, role: str, pair: Bundle) -> Bundle:
    """A per-frame bundle to compare ``pair`` with.

    A classifier of clips may have a delta step, and sees a clip's frames under its own schedule.

    Raises:
        MissingFileError, FileFormatError, BundleError: it is not whole, has a delta step, or takes other frames or has
            other classes than the pair.
    """
    bundle = Bundle.open(path)
    if bundle.manifest.steps.delta is not None and pair.manifest.task.kind != "classification":
        raise BundleError(
            f"{role} {path}: expected a per-frame bundle, it has a delta step.",
            hint="Export the network as a per-frame bundle and name that.",
        )
    require_alike(bundle, role, pair)
    return bundle


def require_alike(bundle: Bundle, role: str, pair: Bundle) -> None:
    """Refuse, as ``role``, a bundle whose frames or classes are not those of ``pair``.

    Raises:
        BundleError: it takes other frames or has other classes.
    """
    if bundle.size_hw != pair.size_hw:
        raise BundleError(
            f"{role} {bundle.path}: it takes frames of {_by(bundle.size_hw)} (height x width), "
            f"bundle {pair.path} takes {_by(pair.size_hw)}.",
            hint="Export both for the same frame size.",
        )
    ours, theirs = pair.manifest.task, bundle.manifest.task
    if _compared(ours) != _compared(theirs):
        raise BundleError(
            f"{role} {bundle.path}: its task is {_task(theirs)}, that of bundle {pair.path} is {_task(ours)}.",
            hint="Compare networks that were trained for the same classes.",
        )


def _by(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[0]} x {size_hw[1]}"


def _compared(spec: TaskSpec) -> tuple[object, ...]:
    """What of two tasks has to be the same, so that their answers can be compared."""
    return spec.kind, spec.classes, spec.multi_label if spec.kind == "classification" else spec.ignore_label


def _task(spec: TaskSpec) -> str:
    if spec.kind == "classification":
        several = ", several a clip" if spec.multi_label else ""
        return f"{spec.kind} of {', '.join(spec.classes)}{several}"
    return f"{spec.kind} of {', '.join(spec.classes)} (ignored: {spec.ignore_label})"
