"""Typed settings: every stage is one frozen pydantic model, read from a YAML recipe."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from edge_sdk.errors import FileFormatError, RecipeError
from edge_sdk.files import require_file, write_text

# Of a value quoted in a message, which stays one readable line.
_LONGEST = 80


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


S = TypeVar("S", bound=Settings)
N = TypeVar("N", bound=Named)
R = TypeVar("R", bound="Result")


class Result(Settings):
    """What a stage found, kept as JSON."""

    # How messages name it.
    _what: ClassVar[str]
    # Keys that are written for other readers and left aside here.
    _computed: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> str:
        """Everything, as indented JSON."""
        return self.model_dump_json(indent=1) + "\n"

    def row_named(self, rows: Sequence[N], name: str) -> N:
        """The row of that name.

        Raises:
            RecipeError: there is none.
        """
        for row in rows:
            if row.name == name:
                return row
        what = self._what.split()[0]  # its kind is no matter here
        raise RecipeError(f"row: no '{name}' in this {what}, only {', '.join(row.name for row in rows)}.")

    def write_beside(self, folder: str | Path, html: str, *, report: str, json_name: str) -> Path:
        """Write the JSON and the HTML report into ``folder``.

        Returns:
            The HTML file.

        Raises:
            OutputError: nothing can be written there.
        """
        target = Path(folder)
        write_text(target / json_name, self.to_json())
        write_text(target / report, html)
        return target / report

    @classmethod
    def from_json(cls: type[R], text: str, where: str | None = None) -> R:
        """What ``to_json()`` wrote.

        Args:
            text: the JSON.
            where: begins the error message.

        Raises:
            FileFormatError: not JSON, or of a schema version that is not known here.
        """
        wrong = f"{cls._what if where is None else where}: not a readable {cls._what}"
        try:
            data = json.loads(text)
            if isinstance(data, dict):
                data = {key: value for key, value in data.items() if key not in cls._computed}
            return parse_settings(data, cls, wrong)
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{wrong}: {error}.") from error
        except RecipeError as error:
            raise FileFormatError(str(error)) from error

    @classmethod
    def load(cls: type[R], path: str | Path) -> R:
        """Read a file of it.

        Raises:
            MissingFileError: no file there.
            FileFormatError: it cannot be read as what it should be.
        """
        file = require_file(path, cls._what)
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{file}: not text: {error}.") from error
        return cls.from_json(text, str(file))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML recipe as they are written, unchecked.

    Raises:
        MissingFileError: no recipe there.
        FileFormatError: not YAML, or not a mapping.
    """
    file = require_file(path, "recipe")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FileFormatError(f"recipe {file}: not readable as YAML: {_one_line(error)}.") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"recipe {file}: expected keys and values, got {type(data).__name__}.")
    return data


def load_recipe(path: str | Path, kind: type[S], **overrides: Any) -> S:
    """Read a YAML recipe as settings of type ``kind``.

    Paths inside a recipe are relative to the working directory, as on the command line.

    Args:
        path: the recipe.
        kind: the settings model of the stage.
        overrides: top-level keys that replace the recipe's; ``None`` leaves the recipe's value.

    Raises:
        MissingFileError: no recipe there.
        FileFormatError: not YAML, or not a mapping.
        RecipeError: an unknown key or a bad value; each is named with what was expected and what came.
    """
    data = read_recipe(path)
    data.update({key: value for key, value in overrides.items() if value is not None})
    return parse_settings(data, kind, f"recipe {Path(path)}")


def parse_settings(data: Any, kind: type[S], where: str) -> S:
    """``data`` as settings of type ``kind``; ``where`` begins the error message.

    Raises:
        RecipeError: naming every bad key, what was expected and what came.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {'; '.join(_describe(e, kind) for e in error.errors())}.") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _describe(error: Any, kind: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _all_keys(kind), n=1)
        meant = f", did you mean '{near[0]}'?" if near else ""
        return f"unknown key '{key}'{meant}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    what = error["msg"].removeprefix("Value error, ")
    if not error["loc"] and isinstance(
        error["input"], dict
    ):  # a rule over several keys; it names them itself
        return what
    got = repr(error["input"])
    return f"'{key}': {what}, got {got if len(got) <= _LONGEST else got[: _LONGEST - 3] + '...'}"


def _all_keys(kind: type[BaseModel], seen: frozenset[type] = frozenset()) -> list[str]:
    keys: list[str] = []
    for name, field in kind.model_fields.items():
        keys.append(name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner not in seen:
                keys += _all_keys(inner, seen | {inner})
    return keys
