"""What a source URI says: which kind of source, of what, with which settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from edge_sdk.errors import RecipeError

KINDS = "a path, file://PATH, camera:INDEX or synthetic:SCENE"

# Two letters at least, so that a Windows drive is no scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True, slots=True)
class SourceUri:
    """A URI in parts: ``scheme`` is ``path``, ``camera`` or ``synthetic``; ``target`` is what follows it."""

    text: str
    scheme: str
    target: str
    query: dict[str, str]


def parse_source_uri(uri: str) -> SourceUri:
    """Take ``uri`` apart. An existing path is taken as it stands, even where its name holds ``?`` or ``:``.

    Raises:
        RecipeError: an empty or malformed URI, or a scheme that no source has.
    """
    if not isinstance(uri, str) or not uri.strip():
        raise RecipeError(f"source: expected {KINDS}, got {uri!r}.")
    scheme = _scheme_of(uri)
    if scheme in ("camera", "synthetic"):
        target, query = _split_query(uri.split(":", 1)[1], uri)
        return SourceUri(uri, scheme, target, query)
    if scheme == "file":
        target, query = _split_query(uri, uri)
        return SourceUri(uri, "path", path_of_file_uri(target), query)
    if _exists(uri):
        return SourceUri(uri, "path", uri, {})
    if scheme:
        raise RecipeError(f"source {uri}: unknown scheme '{scheme}', expected {KINDS}.")
    target, query = _split_query(uri, uri)
    return SourceUri(uri, "path", target, query)


def path_of_file_uri(uri: str) -> str:
    """The path a ``file:`` URI names.

    Raises:
        RecipeError: it names another host, or no path.
    """
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise RecipeError(
            f"{uri}: expected file:///absolute/path of this machine, got host '{parts.netloc}'."
        )
    return unquote(parts.path)


def unknown_scheme(uri: str) -> str | None:
    """The scheme of ``uri`` where it is neither ``file`` nor absent."""
    scheme = _scheme_of(uri)
    return scheme if scheme not in ("", "file") else None


def _scheme_of(uri: str) -> str:
    match = _SCHEME.match(uri)
    return match.group(1).lower() if match else ""


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name too long, or with a null byte, is no path
        return False


def _split_query(text: str, uri: str) -> tuple[str, dict[str, str]]:
    target, mark, tail = text.partition("?")
    if not mark:
        return target, {}
    try:
        pairs = parse_qsl(tail, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise RecipeError(f"source {uri}: expected ?key=value&key=value, got '?{tail}' ({error}).") from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise RecipeError(f"source {uri}: a key is given twice in '?{tail}'.")
    return target, query
