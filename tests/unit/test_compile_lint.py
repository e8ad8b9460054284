"""The linter: every rule on a graph with that one mistake, and on the same graph repaired."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402

import edge_sdk.compile.lint as package  # noqa: E402
from edge_sdk.cli import app  # noqa: E402
from edge_sdk.compile.lint import lint, lint_pair, lint_path, require_clean  # noqa: E402
from edge_sdk.errors import FileFormatError, LintError, MissingFileError, RecipeError  # noqa: E402
from edge_sdk.manifest import StateForm  # noqa: E402
from tests.graphs import PAIRS as TINY_PAIRS  # noqa: E402
from tests.lint_cases import ERRORS, Case  # noqa: E402
from tests.lint_graphs import F16, F32, I8, float_conv, half, image, node, quantised_conv, spliced  # noqa: E402
from tests.lint_warnings import PAIRS, WARNINGS, PairCase, reads_state, writes_state  # noqa: E402

INT8: dict[str, Any] = {"backend": "tensorrt", "precision": "int8"}


def rules(findings):
    return [finding.rule for finding in findings]


@pytest.mark.parametrize("case", ERRORS + WARNINGS, ids=lambda case: case.name)
def test_a_mistake_is_named_and_the_repaired_graph_is_clean(case: Case):
    meant = {"backend": case.backend, "precision": case.precision, "step": "keyframe"}
    found = [finding for finding in lint(case.bad(), **meant) if finding.rule == case.rule]
    first = next(finding for finding in found if (finding.node or finding.tensor) == case.at)
    assert first.severity == case.severity
    assert case.says in first.message
    assert case.at in first.message
    assert first.message.startswith("keyframe step")
    assert first.repair.endswith((".", ")"))
    assert lint(case.good(), **meant) == []


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_steps_that_disagree_are_named(case: PairCase):
    found = lint_pair(writes_state(**case.keyframe), reads_state(**case.delta), **INT8)
    first = next(finding for finding in found if finding.rule == case.rule)
    assert (first.severity, first.node or first.tensor) == (case.severity, case.at)
    assert case.says in first.message
    assert first.repair != ""


@pytest.mark.parametrize(
    "options",
    [
        ({}, {}),
        ({}, {"rewrites": 0.25}),
        (
            {"zero": np.uint8(7), "kind": onnx.TensorProto.UINT8},
            {"zero": np.uint8(7), "kind": onnx.TensorProto.UINT8},
        ),
        ({"zero": np.float32(0), "kind": F32}, {"kind": F32}),
    ],
)
def test_steps_that_agree_are_clean(options):
    keyframe, delta = options
    assert lint_pair(writes_state(**keyframe), reads_state(**delta), **INT8) == []


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (StateForm(scale=0.25, permutation=(0, 2, 3, 1)), ""),
        (
            StateForm(scale=0.5),
            "the manifest has it with scale 0.5 and zero point 0, the keyframe step writes it with",
        ),
        (StateForm(scale=0.25, zero_point=3), "scale 0.25 and zero point 3,"),
        (None, "the manifest has it with scale 1 and zero point 0"),
    ],
)
def test_the_manifest_must_tell_the_graphs_scale(form, says):
    forms = {} if form is None else {"m": form}
    found = lint_pair(writes_state(), reads_state(), forms=forms, **INT8)
    assert rules(found) == (["state-form"] if says else [])
    assert all(says in finding.message for finding in found)


def test_a_graph_that_onnx_itself_refuses_is_told_as_that():
    graph = quantised_conv()
    del graph.graph.node[0].input[1:]
    (found,) = lint(graph, **INT8)
    assert (found.rule, found.severity) == ("invalid", "error")
    assert "ONNX's checker refuses the graph" in found.message
    assert rules(lint_pair(writes_state(), graph, **INT8)) == ["invalid"]


@given(st.data())
def test_no_damage_to_a_graph_makes_the_linter_fail(data):
    """Whatever is taken out of a graph, it is told in findings."""
    graph = quantised_conv(bias=data.draw(st.sampled_from(["float", "int32"])))
    inner = graph.graph
    part = data.draw(st.sampled_from([inner.node, inner.initializer, inner.input, inner.output]))
    del part[data.draw(st.integers(0, len(part) - 1))]
    if data.draw(st.booleans()):
        spoilt = inner.node[data.draw(st.integers(0, len(inner.node) - 1))]
        del spoilt.input[data.draw(st.integers(0, len(spoilt.input) - 1))]
    for backend in ("tensorrt", "onnxruntime"):
        for precision in ("float32", "float16", "int8"):
            for finding in lint(graph, backend=backend, precision=precision):
                assert finding.message
                assert finding.repair


def test_a_state_that_a_step_hands_on_needs_no_scale():
    delta = reads_state()
    delta.graph.node.append(node("Identity", ["state.m"], ["state.m.next"], name="same"))
    delta.graph.output.append(onnx.helper.make_tensor_value_info("state.m.next", I8, [1, 8, 8, 16]))
    assert lint_pair(writes_state(), delta, **INT8) == []


# Rules that the tables cannot hold: one comes with another, the others have no repaired twin of one graph.
OWN_TESTS = {"dequantise-alone", "float16-backend", "invalid", "state-form"}


def test_every_rule_has_a_case():
    called = set()
    for file in Path(package.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                first = call.args[0] if call.args else None
                if call.func.attr in ("at", "on", "whole") and isinstance(first, ast.Constant):
                    called.add(first.value)
    assert len(called) > 25
    assert {case.rule for case in (*ERRORS, *WARNINGS, *PAIRS)} == called - OWN_TESTS


def test_integers_that_something_computed_are_no_quantised_tensor():
    case = next(case for case in ERRORS if case.name == "pooling of integers")
    found = {finding.rule: finding for finding in lint(case.bad(), **INT8)}
    assert "MaxPool 'pool' computes in integers" in found["dequantise-alone"].message
    assert found["dequantise-alone"].node == "dq_i"


def test_every_error_of_tensorrt_that_it_accepts_says_why_it_stands():
    for case in ERRORS:
        assert (case.tensorrt == "accepts") == bool(case.because), case.name


@given(arrays(np.int8, 16))
def test_any_zero_point_but_zero_is_an_error(zeros):
    found = lint(quantised_conv(zeros_of_weights=zeros), **INT8)
    assert rules(found) == (["zero-point"] if zeros.any() else [])


@given(arrays(np.float32, 16, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_any_scale_that_is_not_finite_and_positive_is_an_error(scales):
    found = lint(quantised_conv(scales_of_weights=scales), **INT8)
    good = bool((np.isfinite(scales) & (scales > 0)).all())
    assert rules(found) == ([] if good else ["scale-value"])


@given(st.floats(2**-20, 2**20, width=32), st.floats(2**-20, 2**20, width=32))
def test_scales_of_a_state_agree_only_bit_for_bit(one, other):
    found = lint_pair(writes_state(scale=one), reads_state(scale=other), **INT8)
    assert rules(found) == ([] if one == other else ["state-scale"])


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime"])
@pytest.mark.parametrize("pair", TINY_PAIRS.values(), ids=TINY_PAIRS)
def test_float32_pairs_are_clean(pair, backend):
    tiny = pair()
    meant = {"backend": backend, "precision": "float32"}
    assert lint(tiny.keyframe, step="keyframe", **meant) == lint(tiny.delta, step="delta", **meant) == []
    assert lint_pair(tiny.keyframe, tiny.delta, **meant) == []


def test_a_graph_is_not_changed_and_a_file_is_read_alike(tmp_path):
    graph = quantised_conv(zero=np.int8(3))
    before = graph.SerializeToString()
    found = lint(graph, **INT8)
    assert graph.SerializeToString() == before
    onnx.save(graph, tmp_path / "graph.onnx")
    assert lint(tmp_path / "graph.onnx", **INT8) == found != []


def test_a_node_without_a_name_is_known_by_what_it_writes():
    graph = quantised_conv(zero=np.int8(3))
    for unnamed in graph.graph.node:
        unnamed.name = ""
    assert [finding.node for finding in lint(graph, **INT8)] == [
        "QuantizeLinear of x_q",
        "DequantizeLinear of x_dq",
    ]


def test_constants_are_read_wherever_a_file_keeps_them():
    """As nodes, behind an Identity, and listed among the inputs as old exporters do."""
    graph = quantised_conv(zero=np.int8(3))
    inner = graph.graph
    held = {tensor.name: tensor for tensor in inner.initializer}
    inner.initializer.remove(held["x_zero"])
    inner.node.insert(0, node("Constant", [], ["kept"], name="constant", value=held["x_zero"]))
    inner.node.insert(1, node("Identity", ["kept"], ["x_zero"], name="same"))
    inner.input.append(onnx.helper.make_tensor_value_info("w", I8, [16, 16, 3, 3]))
    assert [(f.rule, f.node) for f in lint(graph, **INT8)] == [("zero-point", "q_x"), ("zero-point", "dq_x")]


def test_errors_come_first_and_all_are_listed():
    graph = quantised_conv(zero=np.uint8(128), bias="int32", channels=(3, 11))
    found = lint(graph, **INT8)
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities)
    assert {"zero-point", "uint8", "int32-bias", "thin-layer"} == set(rules(found))


def test_float32_nodes_are_listed_as_islands_not_one_by_one():
    up = [node("Cast", ["h"], ["f"], to=F32, name="up"), node("Exp", ["f"], ["a"], name="exp")]
    middle = [node("Cast", ["h"], ["f2"], to=F32, name="up2"), node("Sqrt", ["f2"], ["b"], name="sqrt")]
    down = [node("Add", ["a", "b"], ["c"], name="add"), node("Cast", ["c"], ["r"], to=F16, name="down")]
    apart = [node("Exp", ["x2"], ["y2"], name="alone")]
    graph = half(*up, *middle, *down, *apart)
    graph.graph.input.append(onnx.helper.make_tensor_value_info("x2", *image()))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("y2", *image()))
    found = [f for f in lint(graph, backend="tensorrt", precision="float16") if f.rule == "float32-island"]
    assert [f.message.split(", with ")[1] for f in found] == [
        "3 casts around: exp, sqrt, add.",
        "0 casts around: alone.",
    ]


def test_an_output_that_others_read_too_cannot_melt_and_is_not_complained_of():
    case = next(case for case in WARNINGS if case.name == "both sides quantised")
    graph = case.bad()
    graph.graph.node.append(node("Relu", ["c_dq"], ["other"], name="relu"))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("other", *image()))
    assert lint(graph, **INT8) == []


def test_only_errors_forbid_a_build():
    warned = lint(quantised_conv(groups=16), **INT8)
    assert rules(warned) == ["depthwise"]
    require_clean(warned, "graph.onnx")
    found = lint(quantised_conv(zero=np.int8(3), bias="int32"), **INT8)
    with pytest.raises(
        LintError, match=r"graph.onnx: \[zero-point\] keyframe step, node 'q_x'.*And 2 more"
    ) as error:
        require_clean(found, "graph.onnx")
    assert "symmetric int8" in error.value.hint
    with pytest.raises(LintError) as error:
        require_clean(found[:1], "graph.onnx")
    assert "more" not in str(error.value)


def test_float16_is_no_precision_for_the_cpu():
    found = lint(half(node("Sigmoid", ["h"], ["r"], name="op")), backend="onnxruntime", precision="float16")
    assert [(f.rule, f.severity) for f in found] == [("float16-backend", "warning")]


def test_onnx_runtimes_own_form_is_clean_for_it():
    graph = quantised_conv(zero=np.uint8(128), bias="int32")
    assert lint(graph, backend="onnxruntime", precision="int8") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "tensorflow", "precision": "int8"},
            "backend: expected one of tensorrt, onnxruntime, got 'tensorflow'",
        ),
        (
            {"backend": "tensorrt", "precision": "int4"},
            "precision: expected one of float32, float16, int8, got 'int4'",
        ),
    ],
)
def test_an_unknown_target_is_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        lint(float_conv(), **options)


@pytest.mark.parametrize("content", [b"not a model", b"", b"\x08\x09", None])
def test_a_file_that_is_no_graph_is_refused(content, tmp_path):
    file = tmp_path / "graph.onnx"
    if content is None:  # cut in the middle
        whole = quantised_conv().SerializeToString()
        content = whole[: len(whole) // 2]
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"graph .*graph.onnx: "):
        lint(file, **INT8)


def invoke(*args):
    return CliRunner().invoke(app, ["lint", *map(str, args)])


@pytest.fixture
def folder(tmp_path):
    """A pair's graphs in a folder named as a bundle names it."""
    place = tmp_path / "tensorrt-int8"
    place.mkdir()
    onnx.save(writes_state(), place / "keyframe.onnx")
    onnx.save(reads_state(scale=0.5), place / "delta.onnx")
    return place


def test_a_folder_of_two_graphs_is_looked_at_as_a_pair(folder):
    (report,) = lint_path(folder)
    assert (report.backend, report.precision) == ("tensorrt", "int8")
    assert rules(report.findings) == ["state-scale"]


def test_one_graph_tells_its_step_and_precision(tmp_path):
    onnx.save(spliced([node("Identity", ["state.m"], ["m"], name="same")], reads="x",
                      inputs={"state.m": image()}, outputs={"m": image()}), tmp_path / "a.onnx")  # fmt: skip
    (report,) = lint_path(tmp_path / "a.onnx")
    assert (report.backend, report.precision) == ("tensorrt", "int8")
    assert {finding.step for finding in report.findings} == {"delta"}
    onnx.save(float_conv(), tmp_path / "b.onnx")
    assert lint_path(tmp_path / "b.onnx", backend="onnxruntime")[0].precision == "float32"
    onnx.save(half(node("Sigmoid", ["h"], ["r"], name="op")), tmp_path / "c.onnx")
    assert lint_path(tmp_path / "c.onnx")[0].precision == "float16"


def test_a_bundle_is_looked_at_in_every_precision(tmp_path):
    TINY_PAIRS["residual"]().write(tmp_path / "bundle")
    (report,) = lint_path(tmp_path / "bundle")
    assert (report.precision, report.findings) == ("float32", [])
    with pytest.raises(RecipeError, match="it holds no graphs for int8"):
        lint_path(tmp_path / "bundle", precision="int8")


def test_the_command_exits_with_1_where_there_are_errors(folder):
    result = invoke(folder)
    assert result.exit_code == 1
    for part in ("state-scale", "error", "1 error, 0 warnings.", "for tensorrt in int8"):
        assert part in " ".join(result.stdout.split())
    report = json.loads(invoke(folder, "--json").stdout)
    assert (report["errors"], report["warnings"]) == (1, 0)
    (finding,) = report["graphs"][0]["findings"]
    assert (finding["rule"], finding["node"], finding["step"]) == ("state-scale", "read", "delta")


def test_the_command_exits_with_0_where_there_are_only_warnings(tmp_path):
    onnx.save(quantised_conv(groups=16), tmp_path / "graph.onnx")
    result = invoke(tmp_path / "graph.onnx")
    assert result.exit_code == 0
    assert "0 errors, 1 warning." in result.stdout
    onnx.save(quantised_conv(), tmp_path / "graph.onnx")
    result = invoke(tmp_path / "graph.onnx", "--backend", "tensorrt", "--precision", "int8")
    assert result.exit_code == 0
    assert "graph.onnx: clean for tensorrt in int8." in " ".join(result.stdout.split())


def test_no_graph_is_one_line_that_says_where(tmp_path):
    for path, part in ((tmp_path / "no.onnx", "expected a file at"), (tmp_path, "found neither")):
        result = invoke(path)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert part in line
    with pytest.raises(MissingFileError, match=r"keyframe\.onnx or delta\.onnx"):
        lint_path(tmp_path)
