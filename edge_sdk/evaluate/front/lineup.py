"""Who takes part in a front, under which names, and the rows that they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_sdk.bundle import FLOAT32, Bundle
from edge_sdk.errors import BundleError
from edge_sdk.evaluate.facts import BundleFacts
from edge_sdk.evaluate.front.recipe import FrontRecipe
from edge_sdk.evaluate.lineup import per_frame_bundle, require_alike, require_delta
from edge_sdk.manifest import EngineSet

Kind = Literal["teacher", "copy", "flow", "net", "pair"]
# Rows of these names exist whatever the bundles are called.
_TAKEN = ("teacher", "copy", "flow")


@dataclass(frozen=True)
class Entrant:
    """A bundle and the name of its rows."""

    name: str
    bundle: Bundle


@dataclass(frozen=True)
class FrontLineup:
    """The bundles of a front."""

    teacher: Entrant
    nets: tuple[Entrant, ...]
    pairs: tuple[Entrant, ...]

    def facts(self) -> tuple[BundleFacts, ...]:
        """Identity and provenance of each bundle, the teacher first."""
        roles = [("teacher", self.teacher), *(("rival", net) for net in self.nets)]
        return tuple(
            BundleFacts.of(role, entrant.bundle)
            for role, entrant in (*roles, *(("pair", pair) for pair in self.pairs))
        )


@dataclass(frozen=True)
class Seat:
    """A row before it has numbers.

    Args:
        kind: what makes the frames between keyframes.
        entrant: whose steps run; of copying and flow the teacher.
        engine: ``"float32"`` or an engine set of the bundle.
        interval: frames from keyframe to keyframe; 1 for what runs on every frame.
    """

    kind: Kind
    entrant: Entrant
    engine: str = FLOAT32
    interval: int = 1

    @property
    def who(self) -> str:
        """The row's name without interval and engine."""
        return self.kind if self.kind in _TAKEN else self.entrant.name

    @property
    def name(self) -> str:
        """Name of the row, unique in its front."""
        every = "" if self.interval == 1 else f" K={self.interval}"
        return f"{self.who}{every}" + ("" if self.engine == FLOAT32 else f" {self.engine}")

    @property
    def backend(self) -> str:
        """Runtime that computes: the exported graphs run on ONNX Runtime, engines where they were built for."""
        found = self.entrant.bundle.pair(self.engine)
        return found.backend if isinstance(found, EngineSet) else "onnxruntime"


def open_front(recipe: FrontRecipe) -> FrontLineup:
    """Open and check the bundles of a recipe.

    Raises:
        MissingFileError, FileFormatError, BundleError: a bundle is not whole, is of the wrong kind for its part, takes
            other frames or has other classes than the first pair, or lacks engines that are asked for.
    """
    names = names_of((recipe.teacher, *recipe.nets, *recipe.pairs))
    pairs = tuple(_open_pair(path, names[path]) for path in recipe.pairs)
    first = pairs[0].bundle
    for pair in pairs[1:]:
        require_alike(pair.bundle, "pairs", first)
    teacher, *nets = (
        Entrant(names[path], per_frame_bundle(path, role, first))
        for role, path in (("teacher", recipe.teacher), *(("nets", path) for path in recipe.nets))
    )
    for entrant in (teacher, *nets, *pairs):
        for engine in recipe.engines:
            entrant.bundle.pair(engine)  # refuses, naming the bundle and how to build
    return FrontLineup(teacher, tuple(nets), pairs)


def _open_pair(path: Path, name: str) -> Entrant:
    bundle = Bundle.open(path)
    kind = bundle.manifest.task.kind
    if kind != "segmentation":
        raise BundleError(
            f"pairs {path}: expected a segmentation of frames, its task is {kind}.",
            hint="Compare clip classifiers with: edge-sdk evaluate BUNDLE SOURCE --rival OTHER",
        )
    require_delta(bundle, "pairs", others="`teacher` or one of `nets`")
    return Entrant(name, bundle)


def names_of(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each of several folders: the end of its path, as much of it as tells it from the others."""
    parts = {path: path.resolve().parts for path in paths}
    found = {}
    for path, own in parts.items():
        others = [other for key, other in parts.items() if key != path]
        found[path] = next(
            name
            for length in range(1, len(own) + 1)
            if (name := "/".join(own[-length:]).lstrip("/")) not in _TAKEN
            and all(other[-length:] != own[-length:] for other in others)
        )
    return found


def seats_of(recipe: FrontRecipe, lineup: FrontLineup) -> list[Seat]:
    """The rows: precision by precision, what runs on every frame first, then interval by interval."""
    seats = []
    for engine in recipe.precisions:
        seats.append(Seat("teacher", lineup.teacher, engine))
        seats += [Seat("net", net, engine) for net in lineup.nets]
        for interval in recipe.intervals:
            seats.append(Seat("copy", lineup.teacher, engine, interval))
            seats.append(Seat("flow", lineup.teacher, engine, interval))
            seats += [Seat("pair", pair, engine, interval) for pair in lineup.pairs]
    return seats
