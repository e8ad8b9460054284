"""What a source URI says: which kind of source, of what, with which settings."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import Field, PlainSerializer

from edge_sdk.errors import RecipeError

KINDS = (
    "a path, file://PATH, camera:INDEX, csi://INDEX, v4l2:///dev/videoN, rtsp://HOST/PATH, synthetic:SCENE "
    "or joined:SOURCE,SOURCE"
)

# Two letters at least, so that a Windows drive is no scheme.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")

# Up to the last @ before the path, since a password may hold an @ of its own. What follows the colon is a port only
# where it is a number; else it is a password with an unescaped slash, and goes up to the last @ of all.
_PASSWORD = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://[^:/@]*):(?:[^/]*|(?!\d+/).*)@")

# Cameras also take the password in the path or query of their address.
_SECRET_VALUE = re.compile(r"((?:pass(?:word|wd)?|pwd|token|secret|key|auth)=)[^&;/?#]+", re.IGNORECASE)

# An address in a list; those that can be joined are never on a network, so it is not shown at all.
_ADDRESS = re.compile(r"(?<![A-Za-z0-9+.-])(?!file:)[A-Za-z][A-Za-z0-9+.-]*://", re.IGNORECASE)

# A camera's device file, which users of other tools give as a plain path.
_DEVICE = re.compile(r"/dev/(video\d+|v4l/[^?]+)(\?|$)")


def without_password(uri: str) -> str:
    """``uri`` as it may be shown, logged or written: passwords, tokens and keys of a network address are three stars.

    Every opened source has such a ``uri``. What is not an address on a network is given back as it is.
    """
    scheme = _scheme_of(uri)
    if scheme in ("", "file") or "://" not in uri:
        return uri
    if scheme == "joined":
        return "joined:***" if _ADDRESS.search(uri, len("joined:")) else uri
    return _SECRET_VALUE.sub(r"\1***", _PASSWORD.sub(r"\1:***@", uri))


# A source in a recipe: whatever is written of the recipe, a password is not.
SourceText = Annotated[str, Field(min_length=1), PlainSerializer(without_password, when_used="json")]


@dataclass(frozen=True, slots=True)
class SourceUri:
    """A URI in parts.

    Attributes:
        text: the URI as messages may show it, without a password.
        scheme: ``path``, ``camera``, ``csi``, ``v4l2``, ``rtsp``, ``synthetic`` or ``joined``.
        target: what follows the scheme: a path, an index, a scene, of ``rtsp`` the stream's whole address, or of
            ``joined`` the sources, see :func:`parts_of`.
        query: the options.
    """

    text: str
    scheme: str
    target: str
    query: dict[str, str]


def parse_source_uri(uri: str) -> SourceUri:
    """Take ``uri`` apart. An existing path is taken as it stands, even where its name holds ``?`` or ``:``.

    Options follow a ``?``. An RTSP address may have a query of its own, which is the camera's, and joined sources have
    theirs: options of these follow a ``#``.

    Raises:
        RecipeError: an empty or malformed URI, or a scheme that no source has.
    """
    if not isinstance(uri, str) or not uri.strip():
        raise RecipeError(f"source: expected {KINDS}, got {uri!r}.")
    scheme = _scheme_of(uri)
    if scheme in ("camera", "synthetic"):
        target, query = _split_query(uri.split(":", 1)[1], uri)
        return SourceUri(uri, scheme, target, query)
    if scheme in ("csi", "v4l2"):
        target, query = _split_query(uri.split(":", 1)[1], uri)
        return SourceUri(uri, scheme, target.removeprefix("//"), query)
    if scheme in ("rtsp", "rtsps"):
        return _rtsp(uri)
    if scheme == "joined":
        shown = without_password(uri)
        target, query = _split_query(uri.split(":", 1)[1], shown, "#")
        return SourceUri(shown, "joined", target, query)
    if scheme == "file":
        target, query = _split_query(uri, uri)
        return SourceUri(uri, "path", path_of_file_uri(target), query)
    if _DEVICE.match(uri):
        target, query = _split_query(uri, uri)
        return SourceUri(uri, "v4l2", target, query)
    if _exists(uri):
        return SourceUri(uri, "path", uri, {})
    if scheme:
        raise RecipeError(f"source {without_password(uri)}: unknown scheme '{scheme}', expected {KINDS}.")
    target, query = _split_query(uri, uri)
    return SourceUri(uri, "path", target, query)


def is_live(uri: str | Path) -> bool:
    """Whether ``uri``, a valid one, names a camera or a network stream."""
    return parse_source_uri(str(uri)).scheme not in ("path", "synthetic", "joined")


def parts_of(joined: SourceUri) -> tuple[SourceUri, ...]:
    """The sources of a ``joined`` one.

    The options of the whole, but for ``loop``, are those of every source that does not set them itself.

    Raises:
        RecipeError: an empty or malformed one, or one that is live or joined itself.
    """
    common = {key: value for key, value in joined.query.items() if key != "loop"}
    parts = []
    for text in joined.target.split(","):
        if not text.strip():
            raise RecipeError(
                f"source {joined.text}: expected joined:SOURCE,SOURCE, got an empty source.",
                hint="Write a comma of a file's name as %2C, in a file:/// address.",
            )
        part = parse_source_uri(text)
        if part.scheme not in ("path", "synthetic"):
            raise RecipeError(
                f"source {joined.text}: expected recorded sources, got one of kind {part.scheme}.",
                hint="Join files, folders and synthetic: scenes; read cameras with open_sources().",
            )
        parts.append(replace(part, query={**common, **part.query}))
    return tuple(parts)


def recorded_paths(uri: str | Path) -> tuple[Path, ...]:
    """The files and folders that ``uri``, a valid one, is read from; a camera or a scene has none."""
    parsed = parse_source_uri(str(uri))
    parts = parts_of(parsed) if parsed.scheme == "joined" else (parsed,)
    return tuple(Path(part.target) for part in parts if part.scheme == "path")


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


def _rtsp(uri: str) -> SourceUri:
    address = uri.partition("#")[0]
    shown = without_password(uri)
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        # Beside a password the error's text may hold a part of it.
        why = "expected rtsp://user:password@host:port/path" if "@" in uri else error
        raise RecipeError(
            f"source {shown}: {why}.", hint="Write '/', '?' and '#' of a password as %2F, %3F and %23."
        ) from None
    if not host or re.search(r"[\s\x00-\x1f]", address):
        raise RecipeError(f"source {shown}: expected rtsp://HOST/PATH without spaces.")
    _, query = _split_query(uri, shown, "#")
    return SourceUri(shown, "rtsp", address, query)


def _split_query(text: str, uri: str, sign: str = "?") -> tuple[str, dict[str, str]]:
    target, mark, tail = text.partition(sign)
    if not mark:
        return target, {}
    try:
        pairs = parse_qsl(tail, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise RecipeError(
            f"source {uri}: expected {sign}key=value&key=value, got '{sign}{tail}' ({error})."
        ) from None
    query = dict(pairs)
    if len(query) != len(pairs):
        raise RecipeError(f"source {uri}: a key is given twice in '{sign}{tail}'.")
    return target, query
