"""Plans with other weights, as a trainer builds them beside a stream, by real TensorRT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the trainer learns with torch")
pytest.importorskip("onnx", reason="graphs are patched with onnx")

import onnx

from edge_sdk.adapt.trainer import plans
from edge_sdk.adapt.trainer.plans import StepPlans
from edge_sdk.build.tensorrt import TensorRTSettings, build_plan
from edge_sdk.build.tensorrt.again import open_weights, plan_recipes
from edge_sdk.build.tensorrt.config import leave_open
from edge_sdk.bundle import Bundle, EngineSet, StepsSpec, extend_bundle
from edge_sdk.compile.quantize.float16 import to_float16
from edge_sdk.compile.quantize.nodes import named_copy
from edge_sdk.compile.weights import shut
from edge_sdk.errors import BundleError, DependencyError, EngineError
from edge_sdk.manifest import Precision, StepSpec, Variant
from tests import online_pairs
from tests.tensorrt import harness

CACHE = "timing"


def learner(folder: Path, precision: Precision, **settings: Any) -> Bundle:
    """A bundle whose student can learn, with its delta step's plan in that precision; the other step's is a copy."""
    bundle = online_pairs.bundle(folder)
    name = f"tensorrt-{precision}"
    if precision != "float32":
        bundle = with_variant(bundle, precision)
    pair = bundle.manifest.pair if precision == "float32" else bundle.manifest.variants[name]
    plan = folder / "built" / "delta.plan"
    assert pair.steps.delta is not None
    build_plan(
        bundle.path / pair.steps.delta.graph, plan, step="delta", precision=precision,
        settings=TensorRTSettings(timing_cache=folder / CACHE, optimisation_level=1, **settings),
    )  # fmt: skip
    files: dict[str, Path | bytes] = {}
    specs: dict[str, StepSpec] = {}
    for step, spec in pair.steps.items():
        inside = f"engines/{name}/{step}"
        files |= {f"{inside}.plan": plan, f"{inside}.json": plan.with_suffix(".json")}
        specs[step] = spec.model_copy(update={"graph": f"{inside}.plan"})
    built = EngineSet(
        backend="tensorrt", precision=precision, state=pair.state, forms=pair.forms,
        steps=StepsSpec(keyframe=specs["keyframe"], delta=specs["delta"]),
        identities={"keyframe": f"engines/{name}/keyframe.json", "delta": f"engines/{name}/delta.json"},
    )  # fmt: skip
    return extend_bundle(bundle, files, engines={name: built})


def with_variant(bundle: Bundle, precision: Precision) -> Bundle:
    """The float32 graphs typed as float16, without a calibration."""
    name = f"tensorrt-{precision}"
    files: dict[str, Path | bytes] = {}
    specs: dict[str, StepSpec] = {}
    for step, spec in bundle.manifest.steps.items():
        model = onnx.load(str(bundle.path / spec.graph))
        shut(model)
        inside = f"graphs/{name}/{step}.onnx"
        files[inside] = to_float16(named_copy(model), []).SerializeToString()
        specs[step] = spec.model_copy(update={"graph": inside})
    variant = Variant(
        backend="tensorrt", precision=precision, state=bundle.manifest.state,
        steps=StepsSpec(keyframe=specs["keyframe"], delta=specs["delta"]),
    )  # fmt: skip
    return extend_bundle(bundle, files, variants={name: variant})


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Child processes find TensorRT, this one is told that it is there, and timing caches stay in the tests' folder."""
    found = harness.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):
            patch.setenv(name, found[name])
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("edge_sdk.build.tensorrt.again.find_spec", lambda name: object())
        yield


@pytest.fixture(scope="module")
def half(tensorrt: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With plans in float16."""
    return learner(tmp_path_factory.mktemp("half"), "float16", tf32=True)


def weights(bundle: Bundle, seed: int = 0, largest: float = 1.0) -> dict[str, np.ndarray]:
    """Other values for everything that learns in the delta step."""
    assert bundle.manifest.online is not None
    model = onnx.load(str(bundle.graph_path("delta")))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(-largest, largest, shapes[place]).astype(np.float32)
        for name, place in bundle.manifest.online.tensors["delta"].items()
    }


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_plans_are_built_with_new_weights(
    precision: Precision, half: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = half if precision == "float16" else learner(tmp_path, precision, tf32=True)
    name = f"tensorrt-{precision}"
    made: list[tuple[onnx.ModelProto, dict[str, Any]]] = []

    def watched(graph: Path, plan: Path, **how: Any) -> Any:
        made.append((onnx.load(str(graph)), how))
        return build_plan(graph, plan, **how)

    monkeypatch.setattr(plans, "build_plan", watched)
    built = StepPlans(bundle, name)
    assert built.files == {"delta": f"engines/{name}/delta.plan"}
    first, second = (built.patched(weights(bundle, seed)) for seed in (1, 2))
    assert first["delta"] != second["delta"]
    assert built.patched(weights(bundle, 2)) == second
    assert len(made) == 2, "the same weights again cost nothing"
    graph, how = made[1]
    assert (how["step"], how["precision"]) == ("delta", precision)
    settings = how["settings"]
    assert (settings.tf32, settings.optimisation_level, settings.runtime) == (True, 1, "tensorrt")
    assert bundle.manifest.online is not None
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for parameter, place in bundle.manifest.online.tensors["delta"].items():
        assert found[place].dtype == precision
        np.testing.assert_array_equal(found[place], weights(bundle, 2)[parameter].astype(precision))


def test_what_cannot_be_built(half: Bundle) -> None:
    bundle = half
    built = StepPlans(bundle, "tensorrt-float16")
    with pytest.raises(BundleError, match="beyond what float16 holds"):
        built.patched(weights(bundle, largest=1e6))
    with pytest.raises(BundleError, match="missing"):
        built.patched({})
    with pytest.raises(EngineError, match="TensorRT cannot read it"):
        built.build("delta", b"no graph")
    with pytest.raises(BundleError, match=r"'float32' of bundle .* is no engine set for TensorRT"):
        StepPlans(bundle, "float32")
    with pytest.raises(BundleError, match=r"leave no weights open.*refittable: true"):
        plan_recipes(bundle, "tensorrt-float16", refit=True)
    int8 = bundle.manifest.engines["tensorrt-float16"].model_copy(update={"precision": "int8"})
    manifest = bundle.manifest.model_copy(update={"engines": {"tensorrt-int8": int8}})
    with pytest.raises(BundleError, match=r"in INT8, whose scales.*tensorrt-float16"):
        plan_recipes(Bundle(bundle.path, manifest, bundle.manifest_sha256), "tensorrt-int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "edge_sdk.build.tensorrt.again.find_spec", lambda name: None if name == "polygraphy" else name
        )
        with pytest.raises(DependencyError, match=r"beside the stream, which needs polygraphy.*swap='refit'"):
            plan_recipes(bundle, "tensorrt-float16")


def test_the_open_weights_are_those_that_the_bundle_names(half: Bundle) -> None:
    assert half.manifest.online is not None
    names = tuple(half.manifest.online.tensors["delta"])[:2]
    online = half.manifest.online.model_copy(update={"open": names})
    bundle = Bundle(half.path, half.manifest.model_copy(update={"online": online}), half.manifest_sha256)
    assert set(open_weights(bundle, "delta")) == {online.tensors["delta"][name] for name in online.open}
    assert open_weights(bundle, "keyframe") == ()


class Network:
    """What TensorRT's says when weights are marked."""

    def __init__(self, known: set[str]) -> None:
        self.known, self.marked, self.flags = known, list[str](), list[str]()

    def mark_weights_refittable(self, name: str) -> bool:
        self.marked.append(name)
        return name in self.known

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)


def test_single_weights_are_left_open() -> None:
    """Of the harness's two halves the one has this function where the other has another: it cannot be called there."""
    trt = SimpleNamespace(__version__="10.3.0", BuilderFlag=SimpleNamespace(REFIT_INDIVIDUAL="individual"))
    network = Network({"a", "b"})
    leave_open(trt, network, network, ["a", "b"])
    assert (network.marked, network.flags) == (["a", "b"], ["individual"])
    with pytest.raises(EngineError, match=r"knows no weights 'c' in this network.*swap='engine'"):
        leave_open(trt, network, network, ["a", "c"])
    trt.BuilderFlag = SimpleNamespace(REFIT="all")
    with pytest.raises(EngineError, match=r"10.3.0: it cannot leave open the weights of single layers"):
        leave_open(trt, network, network, ["a"])
