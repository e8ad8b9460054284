"""Every kind of student, of a convolution and of a block: real TensorRT parses and builds the pair in FP16 and INT8."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pairs are exported with torch")
pytest.importorskip("onnx", reason="graphs are made with onnx")


from edge_sdk.bundle import Bundle  # noqa: E402
from edge_sdk.compile.calibration_set import CalibrationSet  # noqa: E402
from edge_sdk.compile.quantize.variants import Quantizer, Written  # noqa: E402
from edge_sdk.manifest import StepName  # noqa: E402
from tests import candidate_pairs, step_pairs  # noqa: E402
from tests.tensorrt import precisions  # noqa: E402


@pytest.fixture(scope="module", params=candidate_pairs.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return candidate_pairs.of_kind(tmp_path_factory.mktemp("pair"), kind)


@pytest.fixture(scope="module")
def written(bundle: Bundle) -> dict[str, Written]:
    quantizer = Quantizer(bundle, cast("CalibrationSet", candidate_pairs.Passes(bundle)))
    return precisions.written_by(quantizer)


def test_both_steps_build_in_every_precision(
    bundle: Bundle, written: dict[str, Written], tmp_path: Path
) -> None:
    precisions.check_builds(bundle, written, tmp_path)


def test_the_linter_knows_nothing_against_the_pair(bundle: Bundle, written: dict[str, Written]) -> None:
    precisions.check_lint(bundle, written)


def test_answers_are_close_to_float32s(bundle: Bundle, written: dict[str, Written]) -> None:
    images = candidate_pairs.frames(6)
    schedule = bundle.manifest.schedule
    right = step_pairs.record(step_pairs.graphs_of(bundle), images, schedule)["answers"]
    for precision, found in written.items():
        graphs: dict[StepName, Path | bytes] = {
            step: found.files[spec.graph] for step, spec in found.variant.steps.items()
        }
        answers = step_pairs.record(graphs, images, schedule)["answers"]
        same = [np.mean(mine["mask"] == theirs["mask"]) for mine, theirs in zip(answers, right, strict=True)]
        # Share of pixels with the same class, of untrained networks of sixteen channels.
        assert np.mean(same) >= {"float16": 0.99, "int8": 0.85}[precision]
