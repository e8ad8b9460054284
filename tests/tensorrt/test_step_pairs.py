"""Clip networks, gated networks and students of smaller frames: each runs from nothing but its bundle, and real
TensorRT builds both of its steps in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
pytest.importorskip("onnx", reason="graphs are made with onnx")

import onnx  # noqa: E402

from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer, Written  # noqa: E402
from edge_sdk.manifest import TRUST, StepName, state_input  # noqa: E402
from edge_sdk.runtime.result import StepKind  # noqa: E402
from edge_sdk.runtime.runner import EdgeRunner  # noqa: E402
from tests import clip_nets, step_pairs  # noqa: E402
from tests.tensorrt import precisions  # noqa: E402

# By how much a score may differ from that of float32: of untrained networks of eight channels.
CLOSE = {"float16": 0.01, "int8": 0.12}


@pytest.fixture(scope="module", params=step_pairs.BUILT)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return step_pairs.bundle(tmp_path_factory.mktemp(name), name)


@pytest.fixture(scope="module")
def quantizer(bundle: Bundle) -> Quantizer:
    return Quantizer(bundle, cast("CalibrationSet", step_pairs.Passes(bundle)))


@pytest.fixture(scope="module")
def written(quantizer: Quantizer) -> dict[str, Written]:
    return precisions.written_by(quantizer)


def test_the_runner_needs_nothing_but_the_bundle(bundle: Bundle) -> None:
    images = clip_nets.frames(clip_nets.LENGTH + 2)
    by_hand = step_pairs.record(step_pairs.graphs_of(bundle), images, bundle.manifest.schedule)["answers"]
    with EdgeRunner(bundle) as runner:
        for image, expected in zip(images, by_hand, strict=True):
            result = runner(image)
            answer = bundle.task.encode(result.prediction)
            assert set(answer) == set(expected) - {TRUST}
            for key, value in answer.items():
                assert np.array_equal(expected[key], value)
            if TRUST in expected:
                assert result.trust == pytest.approx(float(expected[TRUST]), rel=1e-6)
            assert result.kind in (StepKind.KEYFRAME, StepKind.DELTA, StepKind.SKIP)


def test_what_is_added_up_stays_in_float32(
    quantizer: Quantizer, written: dict[str, Written], name: str
) -> None:
    wide = quantizer.accumulators.state
    # Of whole networks, what is added up is motion, or an answer that is carried on.
    expected = {"cross_follow": {"moved", "seen"}, "cross_blend": {"answer", "seen"}}.get(name, set())
    assert wide == expected if name in step_pairs.CROSSES else wide
    for precision, found in written.items():
        kinds = {spec.name: spec.dtype for spec in found.variant.state}
        assert all((kinds[key] == "float32") == (key in wide) for key in kinds)
        assert not wide & set(found.variant.forms)
        delta = onnx.load_from_string(found.files[found.variant.steps.delta.graph])  # type: ignore[union-attr]
        casts = {node.input[0] for node in delta.graph.node if node.op_type == "Cast"}
        readers = {node.input[0] for node in delta.graph.node if node.op_type == "QuantizeLinear"}
        # Not by way of float16 and back.
        if name in ("mean", "netvlad"):
            assert not {state_input(key) for key in wide} & (casts | readers), precision


def test_answers_are_close_to_float32s(bundle: Bundle, written: dict[str, Written]) -> None:
    images = clip_nets.frames(clip_nets.LENGTH, seed=1)
    schedule = bundle.manifest.schedule
    right = step_pairs.record(step_pairs.graphs_of(bundle), images, schedule)["answers"][-1]
    for precision, found in written.items():
        graphs: dict[StepName, Path | bytes] = {
            step: found.files[spec.graph] for step, spec in found.variant.steps.items()
        }
        answer = step_pairs.record(graphs, images, schedule)["answers"][-1]
        if "scores" in right:
            assert answer["scores"].dtype == np.float32
            assert np.abs(answer["scores"] - right["scores"]).max() <= CLOSE[precision]
        else:
            assert (answer["mask"] == right["mask"]).mean() >= 1 - CLOSE[precision]


def test_both_steps_build_in_every_precision(
    bundle: Bundle, written: dict[str, Written], tmp_path: Path
) -> None:
    precisions.check_builds(bundle, written, tmp_path)


def test_the_linter_knows_nothing_against_the_pair(bundle: Bundle, written: dict[str, Written]) -> None:
    precisions.check_lint(bundle, written)
