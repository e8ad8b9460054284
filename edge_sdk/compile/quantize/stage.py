"""The part of ``edge-sdk build`` that makes graphs."""

from __future__ import annotations

from collections.abc import Sequence

from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import Bundle, extend_bundle, set_name
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.compile.quantize.sensitivity import facts_of, meet_budget
from edge_sdk.compile.quantize.variants import Quantizer, Written, graph_digests, require_calibration
from edge_sdk.manifest import BackendName, Precision, Variant
from edge_sdk.progress import Progress


def make_variants(
    bundle: Bundle, recipe: BuildRecipe, wanted: Sequence[tuple[BackendName, Precision]], progress: Progress
) -> Bundle:
    """The bundle with every variant of ``wanted``; those made from the same origin with the same settings are kept.

    Raises:
        RecipeError: the recipe names no calibration set.
        LintError, EngineError: a backend would refuse a graph, or the accuracy budget cannot be met.
    """
    if recipe.calibration is None and all(set_name(*pair) in bundle.manifest.variants for pair in wanted):
        return bundle
    calibration = require_calibration(recipe.calibration, bundle)
    stale = [pair for pair in wanted if not _fresh(bundle, recipe, calibration, *pair)]
    if not stale:
        return bundle
    quantizer = Quantizer(bundle, calibration)
    for index, (backend, precision) in enumerate(stale):
        progress.update("graphs", index, len(stale))
        written = _make(quantizer, recipe, backend, precision, progress)
        bundle = extend_bundle(bundle, written.files, variants={written.name: written.variant})
        quantizer.bundle = bundle
    progress.update("graphs", len(stale), len(stale))
    return bundle


def _make(
    quantizer: Quantizer, recipe: BuildRecipe, backend: BackendName, precision: Precision, progress: Progress
) -> Written:
    if precision == "float16":
        return quantizer.float16(recipe.float16, recipe.int8, _asked_of(recipe, precision))
    settings, facts = recipe.int8, _asked_of(recipe, precision)
    if recipe.accuracy is not None:
        found = meet_budget(quantizer, settings, recipe.accuracy, backend, progress.update)
        settings = found.settings
        facts |= facts_of(found)
    return quantizer.int8(settings, backend, facts)


def _asked_of(recipe: BuildRecipe, precision: Precision) -> dict[str, object]:
    """The recipe's part that a variant depends on."""
    part: dict[str, object] = {"int8": recipe.int8.model_dump(mode="json")}
    if precision == "float16":
        part["float16"] = recipe.float16.model_dump(mode="json")
    elif recipe.accuracy is not None:
        part["accuracy"] = recipe.accuracy.model_dump(mode="json")
    return {"recipe": part}


def _fresh(
    bundle: Bundle,
    recipe: BuildRecipe,
    calibration: CalibrationSet,
    backend: BackendName,
    precision: Precision,
) -> bool:
    there: Variant | None = bundle.manifest.variants.get(set_name(backend, precision))
    if there is None:
        return False
    origin = {"calibration_sha256": calibration.sha256, "float32": graph_digests(bundle)}
    wanted = {**origin, **_asked_of(recipe, precision)}
    return all(there.provenance.get(key) == value for key, value in wanted.items())
