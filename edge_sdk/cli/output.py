"""What a verb prints: tables or JSON on stdout, and on no rank but the first."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any


def is_first_rank() -> bool:
    """Whether this process may print: false in all but one process of a ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def plain(value: Any) -> Any:
    """``value`` as dictionaries, lists, strings and numbers.

    Understands settings, dataclasses, enums, paths, numpy arrays and numbers, and objects with ``to_json()``.

    Raises:
        TypeError: for anything else; results must not turn into their ``repr`` unnoticed.
    """
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str | Path):
        return str(value)
    if hasattr(value, "to_json"):
        written = value.to_json()
        return json.loads(written) if isinstance(written, str) else plain(written)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def emit_json(value: Any) -> None:
    """Write ``value`` to stdout as one JSON document."""
    if is_first_rank():
        sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def show(*renderables: Any) -> None:
    """Print text or rich tables on stdout."""
    if is_first_rank():
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for renderable in renderables:
            # Paths and messages hold square brackets; only what we build as Text or Table is styled.
            console.print(renderable, markup=False)


def figures_table(title: str, figures: Mapping[str, Any]) -> Any:
    """A rich table with one figure a row."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
