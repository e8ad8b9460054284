"""A delta step that tells how much of its keyframe holds: real TensorRT takes the scalar output in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
pytest.importorskip("onnx", reason="graphs are made with onnx")

from edge_sdk.build.recipe import Float16Settings, Int8Settings  # noqa: E402
from edge_sdk.bundle import Bundle, extend_bundle  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer, Written  # noqa: E402
from edge_sdk.errors import BundleError  # noqa: E402
from edge_sdk.manifest import TRUST, StepName, Variant, check_manifest  # noqa: E402
from tests import step_pairs, trust_pairs  # noqa: E402
from tests.tensorrt import harness  # noqa: E402

SETTINGS = Int8Settings(passes=None)
# A mean over the frame of 8 bits a place, of an untrained network.
CLOSE = {"float16": 0.005, "int8": 0.05}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return trust_pairs.bundle(tmp_path_factory.mktemp("trust"), schedule={"kind": "every", "interval": 3})


@pytest.fixture(scope="module")
def written(bundle: Bundle) -> dict[str, Written]:
    quantizer = Quantizer(bundle, cast("CalibrationSet", Passes(bundle)))
    return {
        "float16": quantizer.float16(Float16Settings(), SETTINGS),
        "int8": quantizer.int8(SETTINGS, "tensorrt"),
        "int8 cpu": quantizer.int8(SETTINGS, "onnxruntime"),
    }


class Passes(step_pairs.Passes):
    """Frames of this pair's size."""

    def __init__(self, bundle: Bundle) -> None:
        self.given = step_pairs.record(step_pairs.graphs_of(bundle), frames(), bundle.manifest.schedule)


def frames(seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (6, *trust_pairs.HW, 3), np.uint8))


def test_trust_stays_a_float32_scalar(bundle: Bundle, written: dict[str, Written]) -> None:
    for found in written.values():
        assert found.variant.trust == bundle.manifest.pair.trust
        assert TRUST not in {spec.name for spec in found.variant.state}


def test_it_is_no_answer_whose_last_layer_is_kept(tmp_path: Path) -> None:
    made = trust_pairs.bundle(tmp_path, trust_pairs.OwnHead(), schedule={"kind": "every", "interval": 3})
    quantizer = Quantizer(made, cast("CalibrationSet", Passes(made)))
    kept = quantizer.int8(SETTINGS, "tensorrt").variant.provenance["kept"]
    assert isinstance(kept, dict)
    delta = kept["delta"]
    assert isinstance(delta, dict)
    assert [layer for layer, why in delta.items() if why == "last layer"] == ["h"]


def test_the_told_trust_is_close_to_float32s(bundle: Bundle, written: dict[str, Written]) -> None:
    images, schedule = frames(seed=1), bundle.manifest.schedule
    right = step_pairs.record(step_pairs.graphs_of(bundle), images, schedule)["answers"]
    assert [TRUST in answer for answer in right] == [False, True, True] * 2
    for name, found in written.items():
        graphs: dict[StepName, Path | bytes] = {
            step: found.files[spec.graph] for step, spec in found.variant.steps.items()
        }
        answers = step_pairs.record(graphs, images, schedule)["answers"]
        for answer, expected in zip(answers, right, strict=True):
            if TRUST in expected:
                assert answer[TRUST].dtype == np.float32
                assert answer[TRUST].shape == ()
                assert abs(answer[TRUST] - expected[TRUST]) <= CLOSE[name.split()[0]]


def test_tensorrt_builds_it_in_every_precision(
    bundle: Bundle, written: dict[str, Written], tmp_path: Path
) -> None:
    harness.require()
    graphs = [bundle.graph_path("delta")]
    for name in CLOSE:
        spec = written[name].variant.steps.delta
        assert spec is not None
        graphs.append(tmp_path / f"{name}.onnx")
        graphs[-1].write_bytes(written[name].files[spec.graph])
    for graph, built in zip(graphs, harness.parse_and_build_all(graphs), strict=True):
        assert (built.ok, built.error) == (True, ""), graph


def test_a_variant_that_does_not_tell_is_refused(bundle: Bundle, written: dict[str, Written]) -> None:
    good = written["int8 cpu"]
    extend_bundle(bundle, good.files, variants={good.name: good.variant})
    data = good.variant.model_dump()
    outputs = data["steps"]["delta"]["outputs"]
    data["steps"]["delta"]["outputs"] = [spec for spec in outputs if spec["name"] != TRUST]
    silent = bundle.manifest.model_copy(update={"variants": {good.name: Variant.model_validate(data)}})
    with pytest.raises(BundleError, match=r"variant 'onnxruntime-int8': the output 'trust' is not in both"):
        check_manifest(silent)
