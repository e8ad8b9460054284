"""Ranges from calibration passes, what is chosen and kept, and that the same input gives the same graphs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="quantising needs onnx")
ort = pytest.importorskip("onnxruntime", reason="quantising needs ONNX Runtime")

import onnx  # noqa: E402

from edge_sdk.build.recipe import Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.quantize.int8 import convolutions  # noqa: E402
from edge_sdk.compile.quantize.nodes import layer_of  # noqa: E402
from edge_sdk.compile.quantize.ranges import measure_ranges, share_state  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer, require_calibration  # noqa: E402
from edge_sdk.errors import BundleError, ChecksumError, EngineError, MissingFileError, RecipeError  # noqa: E402
from tests import quantised_pairs as pairs  # noqa: E402


@pytest.fixture(scope="module")
def quantizer() -> Quantizer:
    return pairs.quantizer("recurrent")


def graph_of(step: str = "delta") -> Path:
    return pairs.origin("recurrent") / "bundle" / f"{step}.onnx"


def passes(count: int, seed: int = 0, gain: float = 1.0) -> list[dict[str, np.ndarray]]:
    """What the delta step might receive, each pass larger than the one before."""
    rng = np.random.default_rng(seed)
    return [
        {
            "frame": rng.integers(0, 256, (*pairs.SIZE, 3), np.uint8),
            "state.memory": (gain * rng.normal(size=(1, 8, 16, 24)) * (index + 1)).astype(np.float32),
            "state.context": rng.normal(size=(1, 8)).astype(np.float32),
        }
        for index in range(count)
    ]


def outputs(given: list[dict[str, np.ndarray]], names: list[str]) -> dict[str, np.ndarray]:
    """Values of inner tensors over all passes, by a session of our own."""
    model = onnx.load(str(graph_of()))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(names, feeds) for feeds in given]
    return {name: np.stack([values[index] for values in found]) for index, name in enumerate(names)}


# ONNX Runtime's calibrator forgets what came before each multiple of a limit, if it is given one.
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("order", [1, -1])
def test_every_pass_counts(count: int, order: int) -> None:
    given = passes(count)[::order]
    found = measure_ranges(graph_of(), given, Int8Settings())
    for name, values in outputs(given, ["mixed", "recalled", "summed"]).items():
        assert found[name] == pytest.approx((values.min(), values.max()), rel=1e-5)
    states = np.stack([feeds["state.memory"] for feeds in given])
    assert found["state.memory"] == pytest.approx((states.min(), states.max()))


def test_every_float_tensor_has_a_range(quantizer: Quantizer) -> None:
    for step, ranges in quantizer.ranges(Int8Settings()).items():
        model = quantizer.graphs[step]
        made = [name for node in model.graph.node for name in node.output]
        floats = [name for name in made if name not in ("classes", "chosen", "small", "mask")]
        assert set(ranges) >= set(floats)
        assert all(low <= high for low, high in ranges.values())


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_method_cuts_off_outliers_and_writes_nothing(
    method: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    given = passes(3, gain=0.2)
    given[1]["state.memory"][0, 0, 0, 0] = 40
    settings = {"method": method, "percentile": 99.9}
    whole = measure_ranges(graph_of(), given, Int8Settings())
    found = measure_ranges(graph_of(), given, Int8Settings(**settings), whole)
    assert whole["state.memory"][1] == 40
    assert 0.3 < found["state.memory"][1] < 20
    assert set(found) == set(whole)
    for name, (low, high) in found.items():
        assert whole[name][0] - 1e-5 <= low <= high <= whole[name][1] + 1e-5
    assert capfd.readouterr() == ("", "")


def test_methods_give_pairs_that_answer_alike(quantizer: Quantizer) -> None:
    frames = pairs.images(8, pairs.SCENE)
    right = [found["mask"] for found in pairs.stream(quantizer.graphs, frames)]
    for method in ("percentile", "entropy"):
        done = quantizer.int8(Int8Settings(method=method, passes=4), "onnxruntime")
        models = {Path(path).stem: onnx.load_from_string(content) for path, content in done.files.items()}
        found = [found["mask"] for found in pairs.stream(models, frames)]
        assert np.mean([a == b for a, b in zip(right, found, strict=True)]) > 0.95


def test_no_pass_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match=r"no pass of delta was given.*edge-sdk calibrate RECIPE"):
        measure_ranges(graph_of(), [], Int8Settings())


def test_memory_is_that_of_one_pass() -> None:
    """Passes are read as they are wanted, not listed first."""
    alive, most = 0, 0

    class Counted(dict[str, np.ndarray]):
        def __init__(self, feeds: dict[str, np.ndarray]) -> None:
            nonlocal alive, most
            super().__init__(feeds)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def given() -> Iterable[dict[str, np.ndarray]]:
        return (Counted(feeds) for feeds in passes(6))

    for method in ("minmax", "percentile"):
        measure_ranges(graph_of(), given(), Int8Settings(method=method))
    assert most <= 2


finite = st.floats(-1e6, 1e6, allow_nan=False)
limits = st.tuples(finite, finite).map(lambda pair: (min(pair), max(pair)))


@given(written=limits, rewritten=st.none() | limits, read=limits, other=limits)
def test_both_ends_of_a_state_tensor_get_the_widest_range(
    written: tuple[float, float],
    rewritten: tuple[float, float] | None,
    read: tuple[float, float],
    other: tuple[float, float],
) -> None:
    keyframe = {"state.x.next": written, "inner": other}
    delta = {"state.x": read, "inner": other, **({"state.x.next": rewritten} if rewritten else {})}
    share_state(keyframe, delta, ["x"])
    ends = [keyframe["state.x.next"], delta["state.x"], delta["state.x.next"]]
    given = [written, read, *([rewritten] if rewritten else [])]
    assert set(ends) == {(min(low for low, _ in given), max(high for _, high in given))}
    assert keyframe["inner"] == delta["inner"] == other


@pytest.mark.parametrize("most", [1, 2, 3, 5, 11, 12, 13, None])
def test_passes_are_chosen_evenly(quantizer: Quantizer, most: int | None) -> None:
    every = [one.distance for one in quantizer.calibration.passes("delta")]
    assert len(every) == 12
    found = [(one.clip, one.distance) for one in quantizer.chosen("delta", most)]
    assert len(found) == min(most or 12, 12)
    assert found == sorted(set(found)), "each once, in order"
    if most is not None and 2 <= most <= 12:
        assert (found[0], found[-1]) == ((0, 1), (3, 3)), "from the first to the last"


def test_fewer_passes_than_there_are(quantizer: Quantizer) -> None:
    few, all_of_them = (quantizer.ranges(Int8Settings(passes=most)) for most in (2, None))
    assert all(all_of_them["delta"][k][1] >= few["delta"][k][1] - 1e-6 for k in few["delta"])
    assert few["delta"] != all_of_them["delta"]


# What stays in higher precision


def kept_layers(quantizer: Quantizer, backend: Any, **settings: Any) -> dict[str, dict[str, str]]:
    """Layers whose convolutions are float in the finished graphs, checked against what the manifest says."""
    done = quantizer.int8(Int8Settings(**settings), backend)
    said: Any = done.variant.provenance["kept"]
    for step, asked in done.variant.provenance["asked"].items():  # type: ignore[union-attr]
        model = onnx.load_from_string(done.files[f"graphs/{done.name}/{step}.onnx"])
        assert {layer_of(node) for node in convolutions(model)} == set(said[step]), (
            "weights that are still float"
        )
        layers = convolutions(quantizer.graphs[step])
        share = sum(layer_of(node) not in said[step] for node in layers) / len(layers)
        assert asked["int8"] == pytest.approx(share)  # type: ignore[index,call-overload]
    return said


LAST = {"up": "last layer"}
KEPT: list[tuple[str, dict[str, Any], dict[str, str], dict[str, str]]] = [
    ("the last layer", {}, LAST, LAST),
    ("nothing", {"keep_last": False}, {}, {}),
    ("a layer", {"keep": ["mix"]}, {"mix": "kept", **LAST}, {"mix": "kept", **LAST}),
    ("the first layer", {"keep": ["first"]}, {"first": "kept", **LAST}, {"first": "kept", **LAST}),
    ("a pattern", {"keep": ["re*"]}, LAST, {"recall": "kept", **LAST}),
    ("a node's name", {"keep": ["node_mixed"]}, {"mix": "kept", **LAST}, {"mix": "kept", **LAST}),
    ("what is not there", {"keep": ["nothing*"]}, LAST, LAST),
]


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    ("settings", "keyframe", "delta"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT]
)
def test_what_stays_in_higher_precision(
    quantizer: Quantizer,
    backend: Any,
    settings: dict[str, Any],
    keyframe: dict[str, str],
    delta: dict[str, str],
) -> None:
    found = kept_layers(quantizer, backend, **settings)
    assert found == {"keyframe": keyframe, "delta": delta}


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_nothing_left_to_quantise_is_an_error(quantizer: Quantizer, backend: Any) -> None:
    with pytest.raises(EngineError, match=r"keyframe step: no convolution is left to quantise.*int8\.keep"):
        quantizer.int8(Int8Settings(keep=("*",)), backend)


# Provenance


def test_a_set_of_another_pair_is_refused(tmp_path: Path) -> None:
    other = pairs.recurrent(tmp_path / "other", seed=1)
    with pytest.raises(BundleError, match=r"calibration set .*edge-sdk calibrate RECIPE"):
        Quantizer(other, CalibrationSet.open(pairs.origin("recurrent") / "set.npz"))


def test_calibration_sets_that_a_recipe_may_not_name(tmp_path: Path) -> None:
    bundle = Bundle.open(pairs.origin("recurrent") / "bundle")
    whole = (pairs.origin("recurrent") / "set.npz").read_bytes()
    (tmp_path / "changed.npz").write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(RecipeError, match=r"'calibration': .*names no calibration set.*edge-sdk calibrate"):
        require_calibration(None, bundle)
    with pytest.raises(MissingFileError, match=r"none\.npz.*edge-sdk calibrate"):
        require_calibration(tmp_path / "none.npz", bundle)
    with pytest.raises(ChecksumError, match=r"changed\.npz.*edge-sdk calibrate"):
        require_calibration(tmp_path / "changed.npz", bundle)


DIGEST = """
import hashlib, sys
from edge_sdk.build.recipe import Float16Settings, Int8Settings
from edge_sdk.bundle import Bundle
from edge_sdk.compile.calibration_set import CalibrationSet
from edge_sdk.compile.quantize.variants import Quantizer

found = Quantizer(Bundle.open(sys.argv[1] + "/bundle"), CalibrationSet.open(sys.argv[1] + "/set.npz"))
every = [found.int8(Int8Settings(), backend) for backend in ("onnxruntime", "tensorrt")]
every.append(found.float16(Float16Settings(), Int8Settings()))
for done in every:
    for path, content in sorted(done.files.items()):
        print(path, hashlib.sha256(content).hexdigest())
"""


def test_the_same_input_gives_the_same_bytes(quantizer: Quantizer) -> None:
    """In another process too, whose sets of names are in another order."""
    found = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST, str(pairs.origin("recurrent"))],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines())
    assert found[0] == found[1]
    assert len(found[0]) == 6
    here = quantizer.int8(Int8Settings(), "onnxruntime")
    for path, content in here.files.items():
        assert f"{path} {hashlib.sha256(content).hexdigest()}" in found[0]


def test_the_float32_graphs_are_left_as_they_were(quantizer: Quantizer) -> None:
    before = {step: model.SerializeToString() for step, model in quantizer.graphs.items()}
    quantizer.int8(Int8Settings(), "onnxruntime")
    quantizer.int8(Int8Settings(), "tensorrt")
    assert {step: model.SerializeToString() for step, model in quantizer.graphs.items()} == before


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_layers_keep_their_names(quantizer: Quantizer, backend: Any) -> None:
    """What a report says of a layer is found in every graph by the same name."""
    done = quantizer.int8(Int8Settings(), backend)
    for step, model in quantizer.graphs.items():
        quantised = onnx.load_from_string(done.files[f"graphs/{done.name}/{step}.onnx"])
        wanted = {node.name: layer_of(node) for node in convolutions(model)}
        found = {node.name for node in quantised.graph.node}
        assert set(wanted) <= found
        assert len(found) == len(quantised.graph.node), "every node has a name of its own"
        weights = {tensor.name for tensor in quantised.graph.initializer if len(tensor.dims) == 4}
        assert all(any(name.startswith(layer) for name in weights) for layer in wanted.values())
