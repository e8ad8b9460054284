"""The parts of the TensorRT builder that need no TensorRT: settings, memory, progress, shares, DLA."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.build.tensorrt import TensorRTSettings, memory
from edge_sdk.build.tensorrt.config import set_timing_cache, use_dla
from edge_sdk.build.tensorrt.memory import spendable_bytes, workspace_limit
from edge_sdk.build.tensorrt.monitor import Fraction
from edge_sdk.build.tensorrt.network import check_request, onnx_nodes
from edge_sdk.build.tensorrt.shares import check_realised, realised_precisions, shares_of, type_of
from edge_sdk.errors import EngineError, RecipeError
from edge_sdk.gpu import Gpu
from edge_sdk.settings import parse_settings

GIB = 1 << 30


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"optimisation_level": 6}, "'optimisation_level'.*less than or equal to 5, got 6"),
        ({"workspace_bytes": 1000}, "'workspace_bytes'.*1048576"),
        ({"runtime": "onnxruntime"}, "'runtime'.*'auto', 'tensorrt' or 'tensorrt_rtx'"),
        ({"fp16": True}, "unknown key 'fp16'"),
        ({"calibrator": "entropy"}, "unknown key 'calibrator'"),
        ({"exclude_lean_runtime": True}, "'exclude_lean_runtime' needs 'version_compatible'"),
        ({"dla_core": 0, "runtime": "tensorrt_rtx"}, "tensorrt_rtx knows no DLA"),
        ({"timeout_s": 0}, "'timeout_s'.*greater than 0"),
        ({"precision_tolerance": 1.5}, "'precision_tolerance'.*less than or equal to 1"),
    ],
)
def test_bad_settings(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_settings(given_, TensorRTSettings, "recipe")


def test_timing_caches_are_the_users_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert TensorRTSettings().cache_folder == Path("/somewhere/edge_sdk/tensorrt")
    assert TensorRTSettings(timing_cache=Path("here")).cache_folder == Path("here")


# Memory


@pytest.mark.parametrize(
    ("asked", "spendable", "limit", "note"),
    [
        (None, None, None, ""),
        (GIB, None, GIB, ""),
        (None, 3 * GIB, 3 * GIB, ""),
        (GIB, 3 * GIB, GIB, ""),
        (3 * GIB, 3 * GIB, 3 * GIB, ""),
        (
            4 * GIB,
            3 * GIB,
            3 * GIB,
            "workspace: 4096 MiB were asked for, 3072 MiB are free to spend and were set",
        ),
    ],
)
def test_workspace_is_never_more_than_is_free(
    asked: int | None, spendable: int | None, limit: int | None, note: str
) -> None:
    assert workspace_limit(asked, spendable) == (limit, note)


@pytest.mark.parametrize(
    ("integrated", "free", "expected"),
    [(False, 8 * GIB, 6 * GIB), (False, None, None), (True, 8 * GIB, 2 * GIB), (None, None, 2 * GIB)],
)
def test_what_a_build_may_spend(
    integrated: bool | None,
    free: int | None,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own memory on a card; on a Jetson half of what Linux can give, whatever the driver says is free."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(f"MemAvailable: {4 * GIB // 1024} kB\n", encoding="ascii")
    gpu = None if integrated is None else Gpu("GPU", "8.7", 16 * GIB, "12.6", integrated)
    monkeypatch.setattr(memory, "find_gpu", lambda: gpu)
    monkeypatch.setattr(memory, "free_gpu_memory", lambda: free)
    assert spendable_bytes(tmp_path) == expected


def test_nobody_knows_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_gpu", lambda: None)
    assert spendable_bytes(tmp_path) is None


# Progress


def test_progress_of_nested_phases() -> None:
    fraction = Fraction()
    assert fraction.start("build", None, 4) == 0.0
    assert fraction.start("inner", "build", 2) == 0.0
    assert fraction.step("inner", 0) == pytest.approx(1 / 8)
    assert fraction.start("innermost", "inner", 10) == pytest.approx(1 / 8)
    assert fraction.step("innermost", 4) == pytest.approx(1 / 8 + 1 / 16)
    fraction.finish("innermost")
    assert fraction.step("inner", 1) == pytest.approx(1 / 4)
    fraction.finish("inner")
    assert fraction.step("build", 0) == pytest.approx(1 / 4)
    assert fraction.step("build", 3) == 1.0
    assert fraction.finish("build") == 1.0


def test_a_phase_may_end_early_and_strangers_do_no_harm() -> None:
    fraction = Fraction()
    assert fraction.step("never began", 3) == 0.0
    assert fraction.finish("never began") == 0.0
    fraction.start("build", None, 4)
    assert fraction.start("orphan", "never began", 2) == 0.0
    assert fraction.finish("build") == 1.0
    assert fraction.start("build", None, 0) == 1.0


events = st.lists(
    st.tuples(st.sampled_from("srf"), st.integers(0, 4), st.integers(-1, 4), st.integers(0, 5)), max_size=60
)


@settings(max_examples=200)
@given(events)
def test_progress_never_goes_back(list_of_events: list[tuple[str, int, int, int]]) -> None:
    fraction, last = Fraction(), 0.0
    for kind, phase, parent, number in list_of_events:
        if kind == "s" and phase != parent:
            now = fraction.start(str(phase), None if parent < 0 else str(parent), number)
        elif kind == "r":
            now = fraction.step(str(phase), number)
        else:
            now = fraction.finish(str(phase))
        assert last <= now <= 1.0
        last = now


# What was asked for, and what was built


def test_a_graph_of_another_precision_is_refused_before_the_build() -> None:
    graph = Path("delta.onnx")
    check_request({"a": "int8", "b": "float16"}, "int8", graph)
    check_request({"a": "float16", "b": "float32"}, "float16", graph)
    check_request({"a": "float32"}, "float32", graph)
    with pytest.raises(
        EngineError, match=r"an engine in int8 was asked for, but none of the 2 layers .* is int8"
    ):
        check_request({"a": "float32", "b": "float16"}, "int8", graph)
    with pytest.raises(EngineError, match=r"an engine in float16 .* none of the 1 layers .* is float16"):
        check_request({"a": "float32"}, "float16", graph)
    with pytest.raises(
        EngineError, match=r"float32 .* 1 of 2 layers are of another type, first 'b' \(int8\)"
    ):
        check_request({"a": "float32", "b": "int8"}, "float32", graph)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Int8", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Half", "float16"),
        ("Row major linear FP16 format", "float16"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Float", "float32"),
        ("Row major linear FP32", "float32"),
        ("BFloat16", "bfloat16"),
        ("Row major linear BF16 format", "bfloat16"),
        ("FP8", "fp8"),
        ("Int32", ""),
        ("Bool", ""),
        ("N/A due to dynamic shapes", ""),
        ("", ""),
    ],
)
def test_types_in_the_words_of_the_inspector(text: str, kind: str) -> None:
    assert type_of(text) == kind


def test_onnx_nodes_of_a_fused_layer() -> None:
    assert onnx_nodes("[ONNX Layer: /a/Conv]\x1f[ONNX Layer: /a/Relu]\x1e[ONNX Layer: x[0]]") == [
        "/a/Conv",
        "/a/Relu",
        "x[0]",
    ]
    assert onnx_nodes("[ONNX Layer: one][ONNX Layer: two]") == ["one", "two"]
    assert onnx_nodes("") == []


def a_layer(name: str, inputs: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": inputs}], **more}


LAYERS: dict[str, tuple[list[Any], dict[str, str]]] = {
    "by metadata": (
        [a_layer("fused_1", "Int8", Metadata="[ONNX Layer: conv1]\x1f[ONNX Layer: relu1]")],
        {"conv1": "int8"},
    ),
    "by name": ([a_layer("conv1 + relu1", "Row major linear FP16 format")], {"conv1": "float16"}),
    "a copy before it carries its name too": (
        [
            {**a_layer("move", "Float", Metadata="[ONNX Layer: conv1]"), "LayerType": "kgen"},
            a_layer("conv", "Int8", Metadata="[ONNX Layer: conv1]"),
            {**a_layer("move", "Half", Metadata="[ONNX Layer: conv1]"), "LayerType": "kgen"},
        ],
        {"conv1": "int8"},
    ),
    "precision in a field of its own": (
        [{"Name": "conv1", "LayerType": "gemm", "Precision": "Int8", "Inputs": []}],
        {"conv1": "int8"},
    ),
    "datatype beside format": (
        [{"Name": "conv1", "LayerType": "conv", "Inputs": [{"Format": "NHWC", "Datatype": "Half"}]}],
        {"conv1": "float16"},
    ),
    "a whole part of the graph in one": (
        [a_layer("{ForeignNode[conv1...last]}", "Half", Metadata="[ONNX Layer: conv1]")],
        {"conv1": ""},
    ),
    "names alone": (["conv1 + relu1"], {"conv1": ""}),
    "not there": ([a_layer("other", "Int8")], {"conv1": ""}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_the_inspector_says(name: str) -> None:
    layers, expected = LAYERS[name]
    assert realised_precisions(json.dumps({"Layers": layers}), {"conv1": "int8"}) == expected


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"Bindings": []}'])
def test_an_inspector_that_says_something_else(text: str) -> None:
    with pytest.raises(EngineError, match="engine inspector: expected JSON with 'Layers'"):
        realised_precisions(text, {"conv1": "int8"})


def test_a_request_not_met_is_a_failure() -> None:
    asked = {f"conv{i}": "int8" for i in range(10)} | {"head": "float16", "first": "float32"}
    assert check_realised(asked, dict(asked), 0.0, "delta") == ()
    assert check_realised(asked, {**asked, "conv0": "", "first": "float16"}, 0.0, "delta") == ()
    one = {**asked, "conv3": "float16"}
    assert check_realised(asked, one, 0.1, "delta") == (
        "runs in higher precision than asked: 'conv3' (int8 asked, float16 built)",
    )
    with pytest.raises(EngineError, match=r"delta: 1 of 11 layers .* 'conv3' \(int8 asked, float16 built\)"):
        check_realised(asked, one, 0.05, "delta")
    with pytest.raises(EngineError, match=r"11 of 11 .*'conv4' \(int8 asked, float32 built\) and 6 more"):
        check_realised(asked, dict.fromkeys(asked, "float32"), 0.5, "delta")


def test_shares() -> None:
    assert shares_of({"a": "int8", "b": "int8", "c": "float16", "d": ""}) == {
        "float16": 0.25,
        "int8": 0.5,
        "unknown": 0.25,
    }
    assert shares_of({}) == {}


# DLA and timing cache, with a TensorRT of our own


class Layer(SimpleNamespace):
    def __init__(self, name: str, kind: str, dla: bool) -> None:
        super().__init__(name=name, metadata="", type=SimpleNamespace(name=kind), dla=dla)


def a_network(*layers: Layer) -> Any:
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])


class Config:
    def __init__(self) -> None:
        self.flags: list[str] = []
        self.default_device_type = "GPU"
        self.DLA_core = -1

    def can_run_on_DLA(self, layer: Layer) -> bool:
        return layer.dla

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)


TRT = SimpleNamespace(
    __version__="11.4.1",
    DeviceType=SimpleNamespace(DLA="DLA"),
    BuilderFlag=SimpleNamespace(GPU_FALLBACK="GPU_FALLBACK"),
)
CONV, SOFTMAX, CONSTANT = (
    Layer("conv", "CONVOLUTION", True),
    Layer("softmax", "SOFTMAX", False),
    Layer("w", "CONSTANT", False),
)


def test_layers_that_fall_back_from_the_dla_are_named() -> None:
    builder, config = SimpleNamespace(num_DLA_cores=2), Config()
    notes = use_dla(TRT, builder, a_network(CONV, SOFTMAX, CONSTANT), config, TensorRTSettings(dla_core=1))
    assert notes == ("DLA: 1 of 2 layers fall back to the GPU: softmax",)
    assert (config.default_device_type, config.DLA_core, config.flags) == ("DLA", 1, ["GPU_FALLBACK"])
    config = Config()
    assert use_dla(TRT, builder, a_network(CONV, CONSTANT), config, TensorRTSettings(dla_core=0)) == ()
    assert config.flags == []
    config = Config()
    assert use_dla(TRT, builder, a_network(CONV), config, TensorRTSettings()) == ()
    assert config.default_device_type == "GPU"


@pytest.mark.parametrize(
    ("cores", "layers", "fallback", "words"),
    [
        (1, (CONV,), True, "1 was asked for, TensorRT 11.4.1 sees 1 DLA cores here"),
        (2, (SOFTMAX, CONSTANT), True, "the DLA can run none of the graph's 1 layers"),
        (2, (CONV, SOFTMAX), False, "cannot run 1 of the graph's 2 layers, first 'softmax'"),
    ],
)
def test_a_dla_that_cannot(cores: int, layers: tuple[Layer, ...], fallback: bool, words: str) -> None:
    settings_ = TensorRTSettings(dla_core=1, dla_fallback=fallback)
    with pytest.raises(EngineError, match=words):
        use_dla(TRT, SimpleNamespace(num_DLA_cores=cores), a_network(*layers), Config(), settings_)


@pytest.mark.parametrize(
    ("made", "taken", "expected"),
    [("cache", True, True), ("cache", False, False), (None, True, False), (RuntimeError("bad"), True, False)],
)
def test_tensorrts_answer_to_a_timing_cache_is_read(made: Any, taken: bool, expected: bool) -> None:
    def create(data: bytes) -> Any:
        assert data == b"known"
        if isinstance(made, Exception):
            raise made
        return made

    def accept(cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return taken

    config = SimpleNamespace(create_timing_cache=create, set_timing_cache=accept)
    assert set_timing_cache(config, b"known") is expected
