"""A pair in the precisions that TensorRT runs, and what must hold of its graphs in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from edge_sdk.build.recipe import Float16Settings, Int8Settings
from edge_sdk.bundle import Bundle
from edge_sdk.compile.lint import lint_pair
from edge_sdk.compile.quantize.variants import Quantizer, Written
from tests.tensorrt import harness

_SETTINGS = Int8Settings(passes=None)


def written_by(quantizer: Quantizer) -> dict[str, Written]:
    """The pair in float16 and INT8."""
    return {
        "float16": quantizer.float16(Float16Settings(), _SETTINGS),
        "int8": quantizer.int8(_SETTINGS, "tensorrt"),
    }


def check_builds(bundle: Bundle, written: Mapping[str, Written], folder: Path) -> None:
    """Real TensorRT parses and builds both steps in every precision."""
    harness.require()
    graphs = [bundle.graph_path(step) for step, _ in bundle.manifest.steps.items()]
    graphs += _files(written, folder)
    assert len(graphs) == 6
    for graph, built in zip(graphs, harness.parse_and_build_all(graphs), strict=True):
        assert (built.ok, built.error) == (True, ""), graph


def check_lint(bundle: Bundle, written: Mapping[str, Written]) -> None:
    """The linter knows nothing against the pair in any precision."""
    float32 = [bundle.graph_path(step) for step, _ in bundle.manifest.steps.items()]
    assert lint_pair(*float32, backend="tensorrt", precision="float32") == []
    for precision, found in written.items():
        models = [onnx.load_from_string(found.files[spec.graph]) for _, spec in found.variant.steps.items()]
        forms = found.variant.forms
        assert lint_pair(*models, backend="tensorrt", precision=precision, forms=forms) == []


def _files(written: Mapping[str, Written], folder: Path) -> Iterator[Path]:
    for precision, found in written.items():
        for path, content in found.files.items():
            target = folder / precision / Path(path).name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            yield target
