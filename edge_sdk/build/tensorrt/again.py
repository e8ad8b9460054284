"""How an engine set was built, for building it again with other weights while a stream runs.

Nothing here imports TensorRT, ONNX or torch: a runner asks before it opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from edge_sdk.build.tensorrt.settings import TensorRTSettings
from edge_sdk.bundle import Bundle, EngineSet
from edge_sdk.errors import BundleError, DependencyError
from edge_sdk.identity import read_identity
from edge_sdk.manifest import PairSpec, Precision, StepName
from edge_sdk.settings import parse_settings

_NEEDED = ("onnx", "polygraphy")
# A stream that learns waits long for nothing: with a timing cache a student's plan takes seconds.
_LIMIT_S = 1800.0


@dataclass(frozen=True)
class PlanRecipe:
    """How one plan of a set was built.

    Attributes:
        graph: the graph that it was built from, relative to the bundle.
        plan: the plan, relative to the bundle.
        precision: of the set.
        settings: as its identity records them, for the same runtime.
        open_weights: names in the graph of the only weights that the plan leaves open.
        calibration_sha256: of the set's calibration.
    """

    graph: str
    plan: str
    precision: Precision
    settings: TensorRTSettings
    open_weights: tuple[str, ...]
    calibration_sha256: str | None


def plan_recipes(bundle: Bundle, engine: str, *, refit: bool = False) -> Mapping[StepName, PlanRecipe]:
    """How to build those plans of an engine set again that hold weights which learn.

    Args:
        bundle: with ``manifest.online``.
        engine: name of the engine set in use.
        refit: the weights alone are to be exchanged, so the plans have to leave them open.

    Raises:
        BundleError: the bundle cannot learn, or this is no set for TensorRT, one in INT8, or one without open weights.
        DependencyError: a package that builds plans is not installed.
        MissingFileError, FileFormatError, ChecksumError: an identity is not there, or damaged.
    """
    online = bundle.manifest.online
    pair = bundle.manifest.engines.get(engine)
    if online is None or pair is None or pair.backend != "tensorrt":
        raise BundleError(
            f"adapt: '{engine}' of bundle {bundle.path} is no engine set for TensorRT whose student can learn.",
            hint="Build one from a bundle with an 'online' recipe: edge-sdk build RECIPE",
        )
    if pair.precision == "int8":
        raise BundleError(
            f"adapt: '{engine}' is in INT8, whose scales hold only for the weights that were calibrated.",
            hint="Give engine='tensorrt-float16' or engine='tensorrt-float32'.",
        )
    steps = [step for step, _ in pair.steps.items() if step in online.tensors]
    recipes = {step: _recipe(bundle, pair, step) for step in steps}
    runtimes = {recipe.settings.runtime for recipe in recipes.values()}
    for package in () if refit else (*_NEEDED, *runtimes):
        if find_spec(package) is None:
            raise DependencyError(
                f"adapt: new engines for TensorRT are built beside the stream, which needs {package}.",
                hint="Install it, see 'edge-sdk doctor', or give AdaptSettings(swap='refit').",
            )
    if refit and not all(recipe.settings.refittable for recipe in recipes.values()):
        raise BundleError(
            f"adapt: the plans of '{engine}' leave no weights open.",
            hint="Build with 'tensorrt: {refittable: true}', or give AdaptSettings(swap='engine').",
        )
    return recipes


def open_weights(bundle: Bundle, step: StepName) -> tuple[str, ...]:
    """Names in a step's graph of the weights that the bundle leaves open; the same in every precision."""
    online = bundle.manifest.online
    if online is None:
        return ()
    tensors = online.tensors.get(step, {})
    return tuple(tensors[name] for name in online.open if name in tensors)


def _recipe(bundle: Bundle, pair: EngineSet, step: StepName) -> PlanRecipe:
    origin: PairSpec | None = bundle.manifest.pair
    if pair.precision != "float32":
        origin = bundle.manifest.variants.get(f"{pair.backend}-{pair.precision}")
    if origin is None:
        raise BundleError(
            f"adapt: bundle {bundle.path} has no {pair.precision} graphs that plans could be built from again.",
            hint="Build it again: edge-sdk build RECIPE",
        )
    graph, plan = dict(origin.steps.items())[step].graph, dict(pair.steps.items())[step].graph
    path = bundle.path / plan
    identity = read_identity(path, "edge-sdk build RECIPE")
    known = {
        name: value for name, value in identity.settings.items() if name in TensorRTSettings.model_fields
    }
    settings = parse_settings(
        {**known, "runtime": identity.runtime.split()[0], "timeout_s": _LIMIT_S}, TensorRTSettings, str(path)
    )
    return PlanRecipe(
        graph, plan, pair.precision, settings, open_weights(bundle, step) if settings.refittable else (),
        identity.calibration_sha256,
    )  # fmt: skip
