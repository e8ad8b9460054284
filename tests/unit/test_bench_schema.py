"""The JSON schema of bench.json is current, and what is written keeps to it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edge_sdk.bench.schema import json_schema, schema_text
from tests.bench_world import make_document

FILE = Path(__file__).parents[2] / "docs" / "bench.schema.json"
TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


def breaks(value, schema, whole, where="$"):
    """Every place where ``value`` does not keep to ``schema``: as much of JSON Schema as pydantic writes here."""
    if "$ref" in schema:
        return breaks(value, whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole, where)
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            found = [breaks(value, one, whole, where) for one in schema[choice]]
            return [] if [] in found else [f"{where}: none of {len(found)}: {found}"]
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where}: {type(value).__name__} is no {kind}"]
    problems = []
    if "const" in schema and value != schema["const"]:
        problems.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        problems.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        problems.append(f"{where}: {value} is below {schema['minimum']}")
    if isinstance(value, dict):
        problems += [f"{where}: lacks {key}" for key in schema.get("required", ()) if key not in value]
        for key, inner in value.items():
            of = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            if of is False:
                problems.append(f"{where}: {key} is not known")
            elif of is not True:
                problems += breaks(inner, of, whole, f"{where}.{key}")
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for place, inner in enumerate(value):
            problems += breaks(inner, schema["items"], whole, f"{where}[{place}]")
    return problems


@pytest.fixture(scope="module")
def schema():
    return json_schema()


def written(**made):
    return json.loads(make_document(periods=3, **made).to_json())


def test_the_committed_schema_is_current():
    assert FILE.read_text(encoding="utf-8") == schema_text(), (
        "docs/bench.schema.json is out of date; write it anew with: "
        "python -m edge_sdk.bench.schema > docs/bench.schema.json"
    )


@pytest.mark.parametrize(
    "made", [{}, {"rows": ("subject",)}, {"rounds": 1}, {"throttled": ("gpu: thermal",)}]
)
def test_what_is_written_keeps_to_the_schema(schema, made):
    assert breaks(written(**made), schema, schema) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("schema_version",), 2, "2 is not 1"),
        (("unknown",), 1, "unknown is not known"),
        (("rows", 0, "variant"), "magic", "'magic' is none of"),
        (("blocks", 0, "frames", "step_ms", 0), "8", r"step_ms\[0\]: str is no number"),
        (("verdict", "grade"), "fine", "'fine' is none of"),
        (("source", "fps"), True, "bool is no number"),
        (("blocks", 0, "round"), -1, "-1 is below 0"),
    ],
)
def test_what_is_wrong_breaks_the_schema(schema, path, value, problem):
    data = written()
    *way, last = path
    inner = data
    for step in way:
        inner = inner[step]
    inner[last] = value
    found = breaks(data, schema, schema)
    assert len(found) == 1
    assert re.search(problem, found[0])


def test_every_part_of_a_document_is_in_the_schema(schema):
    assert set(schema["properties"]) == set(schema["required"]) == set(written())
    assert {"figures", "verdict"} <= set(schema["properties"])


def test_properties_say_what_they_mean(schema):
    frames = schema["$defs"]["FrameColumns"]["properties"]
    assert "when the camera had the frame ready" in frames["due_ms"]["description"]
    assert (
        "null where fewer than two rounds" in schema["$defs"]["Estimate"]["properties"]["low"]["description"]
    )
    assert "`" not in schema_text()
