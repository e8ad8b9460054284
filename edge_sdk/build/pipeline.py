"""``edge-sdk build``: graphs in every precision asked, then engines for this machine, then the choice between them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from edge_sdk.build.choose import Choice, choose
from edge_sdk.build.onnxruntime import build_session
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.build.start import start_bundle
from edge_sdk.build.tensorrt import build_plan
from edge_sdk.build.tensorrt.again import open_weights
from edge_sdk.bundle import Bundle, EngineSet, Variant, extend_bundle, set_name
from edge_sdk.errors import DependencyError, EdgeSdkError, RecipeError
from edge_sdk.identity import EngineIdentity, installed_runtime, open_engine
from edge_sdk.manifest import SIGNATURE, BackendName, PairSpec, Precision, StepName, StepSpec, StepsSpec
from edge_sdk.progress import Progress, Silent

_ENDINGS: dict[BackendName, str] = {"onnxruntime": ".onnx", "tensorrt": ".plan"}
_PACKAGES: dict[BackendName, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
}
REBUILD = "edge-sdk build RECIPE"


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of the result.

    Attributes:
        name: of its engine set.
        path: its file.
        identity: what it is.
        reused: it was there already, built from the same graph with the same settings for this machine.
    """

    name: str
    path: Path
    identity: EngineIdentity
    reused: bool


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        bundle: with graphs and engines.
        engines: every engine that was asked for.
        notes: what was left out, and why.
        choices: by backend, where accuracy settings were given and engines can run here.
        signature_dropped: a signature was there and is gone, since it did not cover what was built.
    """

    bundle: Bundle
    engines: tuple[BuiltEngine, ...]
    notes: tuple[str, ...]
    choices: dict[BackendName, Choice] = field(default_factory=dict)
    signature_dropped: bool = False


def build(recipe: BuildRecipe, *, graphs_only: bool = False, progress: Progress | None = None) -> BuildReport:
    """Build what a recipe asks for; what is there already and still fits is kept, so a stopped build goes on.

    Args:
        recipe: what.
        graphs_only: make the graphs and stop; a device without the onnx package then builds engines from them.
        progress: told of each stage.

    Raises:
        MissingFileError, FileFormatError, BundleError: the bundle or calibration set is not whole or does not fit.
        DependencyError: a backend's package is missing, or onnx where graphs have to be made.
        LintError, EngineError: a backend refuses a graph, or builds something else than was asked.
        RecipeError: no backend is installed, or nothing of what is asked can be built.
    """
    progress = progress or Silent()
    notes: list[str] = []
    wanted = list(_wanted(recipe, notes, graphs_only))
    signed = any(_is_signed(place) for place in (recipe.bundle, recipe.out) if place is not None)
    bundle = start_bundle(recipe, wanted, notes)
    bundle = _with_graphs(bundle, recipe, wanted, progress)
    if graphs_only:
        dropped = signed and not _is_signed(bundle.path)
        return BuildReport(bundle, (), tuple(notes), signature_dropped=dropped)
    engines: list[BuiltEngine] = []
    for backend, precision in wanted:
        bundle, built = _with_engines(bundle, recipe, backend, precision, progress)
        engines += built
    choices: dict[BackendName, Choice] = {}
    if recipe.accuracy is not None:
        for backend in dict.fromkeys(backend for backend, _ in wanted):
            choice = choose(bundle, backend, recipe.accuracy, recipe.onnxruntime.threads, notes, progress)
            if choice is not None:
                choices[backend] = choice
        bundle = _with_choices(bundle, choices)
    else:
        notes.append("nothing was timed or chosen: the recipe has no 'accuracy'")
    dropped = signed and not _is_signed(bundle.path)
    return BuildReport(bundle, tuple(engines), tuple(notes), choices, dropped)


def _is_signed(folder: Path) -> bool:
    return (folder / SIGNATURE).is_file()


def _wanted(
    recipe: BuildRecipe, notes: list[str], graphs_only: bool
) -> Iterator[tuple[BackendName, Precision]]:
    """Every pair of backend and precision to make; notes say what was left out."""
    backends = tuple(_PACKAGES) if recipe.backends == "auto" else recipe.backends
    found = 0
    for backend in backends:
        installed = any(find_spec(package) is not None for package in _PACKAGES[backend])
        if not installed and not graphs_only:
            names = " or ".join(_PACKAGES[backend])
            if recipe.backends != "auto":
                raise DependencyError(
                    f"backends: {backend} is asked for, and {names} is not installed here.",
                    hint="Run edge-sdk doctor, which says how to install it on this machine.",
                )
            notes.append(f"{backend}: left out, {names} is not installed here")
            continue
        for precision in recipe.precisions:
            if (backend, precision) == ("onnxruntime", "float16"):
                notes.append("onnxruntime-float16: left out, its CPU kernels compute float16 in float32")
                continue
            found += 1
            yield backend, precision
    if not found:
        raise RecipeError(
            f"precisions: nothing of {', '.join(recipe.precisions)} can be built here ({'; '.join(notes)}).",
            hint="Run edge-sdk doctor, or widen 'precisions' and 'backends'.",
        )


def _with_graphs(
    bundle: Bundle, recipe: BuildRecipe, wanted: list[tuple[BackendName, Precision]], progress: Progress
) -> Bundle:
    """The bundle with every variant that is asked for, made anew where settings or origin changed."""
    typed = [pair for pair in wanted if pair[1] != "float32"]
    if not typed:
        return bundle
    missing = [set_name(*pair) for pair in typed if set_name(*pair) not in bundle.manifest.variants]
    if find_spec("onnx") is None:
        if missing:
            raise DependencyError(
                f"bundle {bundle.path}: it has no graphs {missing[0]}, and making them needs the onnx package.",
                hint="On the workstation run: edge-sdk build RECIPE --graphs-only, and copy the bundle here again.",
            )
        return bundle
    from edge_sdk.compile.quantize.stage import make_variants

    return make_variants(bundle, recipe, typed, progress)


def _with_engines(
    bundle: Bundle, recipe: BuildRecipe, backend: BackendName, precision: Precision, progress: Progress
) -> tuple[Bundle, list[BuiltEngine]]:
    """The bundle with one engine set, built or still fitting."""
    name = set_name(backend, precision)
    pair: PairSpec = bundle.manifest.pair if precision == "float32" else bundle.manifest.variants[name]
    still = _still_fitting(bundle, recipe, name, pair)
    if still is not None:
        return bundle, still
    with tempfile.TemporaryDirectory(prefix="edge-sdk-build-") as folder:
        files: dict[str, Path | bytes] = {}
        specs: dict[str, StepSpec] = {}
        identities: dict[StepName, str] = {}
        found: list[EngineIdentity] = []
        for step, spec in pair.steps.items():
            inside = f"engines/{name}/{step}{_ENDINGS[backend]}"
            engine = Path(folder) / inside
            engine.parent.mkdir(parents=True, exist_ok=True)
            found.append(_build_step(bundle, recipe, pair, backend, precision, step, spec, engine, progress))
            identities[step] = f"engines/{name}/{step}.json"
            files[inside] = engine
            files[identities[step]] = engine.with_suffix(".json")
            specs[step] = spec.model_copy(update={"graph": inside})
        built = EngineSet(
            backend=backend,
            precision=precision,
            steps=StepsSpec(keyframe=specs["keyframe"], delta=specs.get("delta")),
            state=pair.state,
            forms=pair.forms,
            provenance=pair.provenance if isinstance(pair, Variant) else {},
            identities=identities,
        )
        bundle = extend_bundle(bundle, files, engines={name: built})
    steps = bundle.manifest.engines[name].steps.items()
    return bundle, [
        BuiltEngine(name, bundle.path / spec.graph, identity, reused=False)
        for (_, spec), identity in zip(steps, found, strict=True)
    ]


def _build_step(
    bundle: Bundle, recipe: BuildRecipe, pair: PairSpec, backend: BackendName, precision: Precision,
    step: StepName, spec: StepSpec, engine: Path, progress: Progress,
) -> EngineIdentity:  # fmt: skip
    provenance = pair.provenance if isinstance(pair, Variant) else {}
    digest = provenance.get("calibration_sha256")
    calibration = digest if isinstance(digest, str) else None
    graph = bundle.path / spec.graph
    if backend == "tensorrt":
        return build_plan(
            graph, engine, step=step, precision=precision, settings=recipe.tensorrt,
            calibration_sha256=calibration, open_weights=open_weights(bundle, step), progress=progress,
        )  # fmt: skip
    progress.update(f"build {step} {precision}", 0, 1)
    identity = build_session(
        graph,
        engine,
        step=step,
        precision=precision,
        asked=_asked(pair, step),
        calibration_sha256=calibration,
    )
    progress.update(f"build {step} {precision}", 1, 1)
    return identity


def _asked(pair: PairSpec, step: StepName) -> dict[str, float]:
    """Share of the convolutions by precision that a variant's graphs ask for."""
    asked = pair.provenance.get("asked") if isinstance(pair, Variant) else None
    shares = asked.get(step) if isinstance(asked, dict) else None
    if not isinstance(shares, dict):
        return {"float32": 1.0}
    return {str(key): float(value) for key, value in shares.items() if isinstance(value, (int, float))}


def _still_fitting(
    bundle: Bundle, recipe: BuildRecipe, name: str, pair: PairSpec
) -> list[BuiltEngine] | None:
    """The engines of a set that is there, whole, built from the same graphs with the same settings for this machine."""
    there = bundle.manifest.engines.get(name)
    if there is None:
        return None
    found = []
    for step, spec in pair.steps.items():
        built = there.steps.keyframe if step == "keyframe" else there.steps.delta
        if built is None:
            return None
        path = bundle.path / built.graph
        try:
            _, identity = open_engine(
                path, backend=there.backend, rebuild=REBUILD, step=step, precision=there.precision,
                graph_sha256=bundle.manifest.files[spec.graph].sha256,
            )  # fmt: skip
        except EdgeSdkError:  # whatever it is, the engine is built again
            return None
        if there.backend == "tensorrt" and not _same_settings(recipe, identity):
            return None
        found.append(BuiltEngine(name, path, identity, reused=True))
    return found


def _same_settings(recipe: BuildRecipe, identity: EngineIdentity) -> bool:
    """Whether an engine was built with the recipe's settings, as far as its identity records them."""
    asked = recipe.tensorrt.model_dump(mode="json")
    module = identity.runtime.split()[0]
    wanted = recipe.tensorrt.runtime
    if wanted not in ("auto", module) or installed_runtime(module) is None:
        return False
    ignored = {"workspace_bytes"}  # limited to what was free
    return all(
        identity.settings[key] == value
        for key, value in asked.items()
        if key in identity.settings and key not in ignored
    )


def _with_choices(bundle: Bundle, choices: dict[BackendName, Choice]) -> Bundle:
    """The bundle with what was measured and chosen."""
    if not choices:
        return bundle
    engines = bundle.manifest.engines
    measured = {
        name: engines[name].model_copy(update={"measured": facts})
        for choice in choices.values()
        for name, facts in choice.measured().items()
        if name in engines
    }
    chosen = {backend: choice.name for backend, choice in choices.items()}
    return extend_bundle(bundle, {}, measured=measured, chosen=chosen)
