"""Every attribute of TensorRT that the code uses exists in the bindings of 10.3, 10.16 and 11.4."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.tensorrt import api, harness

AGAIN = "a class of TensorRT's is used for the first time? python -m tests.tensorrt.api"


@pytest.fixture(scope="module")
def committed() -> dict[str, dict[str, list[str]]]:
    listing: dict[str, dict[str, list[str]]] = json.loads(api.LISTING.read_text(encoding="utf-8"))
    assert set(listing) == set(api.WHEELS)
    return listing


@pytest.mark.parametrize("version", api.WHEELS)
def test_every_attribute_that_is_used_exists(
    version: str, committed: dict[str, dict[str, list[str]]]
) -> None:
    assert api.missing(api.used(), committed[version]) == [], AGAIN


def test_the_uses_are_found() -> None:
    """A collector that finds nothing would find nothing missing."""
    found = api.used()
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse_from_file",
        "ParserError.node_name",
        "INetworkDefinition.get_layer",
        "ILayer.metadata",
        "IBuilderConfig.can_run_on_DLA",
        "ITimingCache.serialize",
        "LayerType.DEQUANTIZE",
        "EngineInspector.get_engine_information",
    } <= found


@pytest.mark.parametrize(
    ("source", "version", "absent"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "11.4.0.106", ["BuilderFlag.FP16"]),
        ("config.set_flag(trt.BuilderFlag.FP16)", "10.3.0", []),
        ("config.int8_calibrator = 1", "11.4.0.106", ["IBuilderConfig.int8_calibrator"]),
        ("builder.build_engine(network)", "10.3.0", ["Builder.build_engine"]),
        ("trt.LayerType.SQUEEZE", "10.3.0", ["LayerType.SQUEEZE"]),
        ("layer.precision", "11.4.0.106", ["ILayer.precision"]),
        ("trt.NoSuchThing(1)", "10.16.1.11", ["NoSuchThing"]),
        ("trt.__version__", "10.3.0", []),
    ],
)
def test_an_attribute_that_a_version_lacks_is_found(
    source: str, version: str, absent: list[str], committed: dict[str, dict[str, list[str]]]
) -> None:
    assert api.missing(api.used_in(source), committed[version]) == absent


@pytest.fixture(scope="module")
def wheels() -> Path:
    """Where wheels are kept between runs."""
    place = Path(sys.prefix) / "edge-sdk-tensorrt-wheels"
    try:
        place.mkdir(exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp())
    return place


@pytest.mark.parametrize("version", api.WHEELS)
def test_the_listing_is_what_the_real_wheels_say(
    version: str, wheels: Path, committed: dict[str, dict[str, list[str]]]
) -> None:
    try:
        found = api.list_wheel(api.download(version, wheels), committed[version])
    except OSError as error:
        pytest.skip(f"the bindings of TensorRT {version} cannot be looked at here: {error}")
    assert found == committed[version]


def test_the_listing_is_what_the_harness_runs(committed: dict[str, dict[str, list[str]]]) -> None:
    """The bindings that parse and build in these tests are those of the listing."""
    version = harness.BINDINGS[1]
    code = api._LIST.replace("import tensorrt_bindings as trt", "import tensorrt as trt")
    assert harness.run_json(code, *committed[version]) == committed[version]
