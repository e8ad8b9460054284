"""The JSON schema of ``bench.json``, for those who read it without edge_sdk.

Written anew with ``python -m edge_sdk.bench.schema > docs/bench.schema.json``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from edge_sdk.bench.document import BenchDocument
from edge_sdk.bench.figures import Figures
from edge_sdk.bench.verdict import Verdict

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# How docstrings name code and each other.
_MARKED = re.compile(r"``(.+?)``|:\w+:`~?(?:[\w.]*\.)?(\w+)`")
_ARGUMENT = re.compile(r"^    ((?:\w+)(?:, \w+)*): ")
_MODE: JsonSchemaMode = "serialization"


def json_schema() -> dict[str, Any]:
    """The schema of what :meth:`BenchDocument.to_json` writes: samples, figures and verdict.

    Returns:
        JSON Schema, draft 2020-12.
    """
    models = (BenchDocument, Figures, Verdict)
    references, found = models_json_schema([(model, _MODE) for model in models])
    definitions = {name: _described(definition) for name, definition in found["$defs"].items()}
    whole = definitions.pop(BenchDocument.__name__)
    computed = {"figures": references[Figures, _MODE], "verdict": references[Verdict, _MODE]}
    properties = whole["properties"] | computed
    return {
        "$schema": _DIALECT,
        **whole,
        "title": "bench.json of edge_sdk",
        "properties": properties,
        "required": list(properties),
        "$defs": {name: definitions[name] for name in sorted(definitions)},
    }


def schema_text() -> str:
    """The schema as it is kept in ``docs/bench.schema.json``."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _described(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition where every property is required, as all are written, and has what the docstring says of it."""
    if "properties" not in definition:
        return definition
    text, _, arguments = inspect.cleandoc(definition.get("description", "")).partition("\nArgs:\n")
    properties = {name: dict(value) for name, value in definition["properties"].items()}
    for names, meaning in _arguments(arguments):
        for name in names:
            if name in properties:
                properties[name]["description"] = meaning
    return definition | {
        "description": _plain(text),
        "properties": properties,
        "required": list(properties),
    }


def _arguments(text: str) -> list[tuple[list[str], str]]:
    """Names and meaning of each argument in a docstring's section; what follows the section is left out."""
    found: list[tuple[list[str], str]] = []
    for line in text.split("\n"):
        if line and not line.startswith("    "):
            break
        match = _ARGUMENT.match(line)
        if match:
            found.append((match[1].split(", "), line[match.end() :]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return [(names, _plain(meaning)) for names, meaning in found]


def _plain(text: str) -> str:
    """Without the marks of a docstring, on one line; Python's None is null in JSON."""
    text = _MARKED.sub(lambda match: match[1] or match[2], text)
    return " ".join(re.sub(r"\bNone\b", "null", text).split())


if __name__ == "__main__":
    sys.stdout.write(schema_text())
