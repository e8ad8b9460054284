"""``--serve``: the live page of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_sdk.cli.report import say
from edge_sdk.errors import RecipeError
from edge_sdk.settings import parse_settings

if TYPE_CHECKING:
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.serve import LiveServer, ServeSettings
    from edge_sdk.video import VideoSource

TOKEN_VARIABLE = "EDGE_SDK_SERVE_TOKEN"


def serve_settings(address: str | None, token: str | None) -> ServeSettings | None:
    """Settings from ``--serve`` and ``--serve-token``; None where nothing is served.

    Raises:
        RecipeError: the address or the token is malformed, or there is a token and nothing to serve.
    """
    from edge_sdk.serve import ServeSettings, parse_address

    if address is None:
        if token is not None:
            raise RecipeError("--serve-token: expected --serve too.", hint="Give --serve 8080.")
        return None
    host, port = parse_address(address)
    given = token or os.environ.get(TOKEN_VARIABLE) or None
    return parse_settings({"host": host, "port": port, "token": given}, ServeSettings, "--serve")


@contextmanager
def served(
    settings: ServeSettings | None, runner: EdgeRunner, source: VideoSource
) -> Iterator[LiveServer | None]:
    """The page of a run while the block lasts, its address on stderr; None where ``settings`` is None.

    Raises:
        ServeError: the address cannot be listened on.
    """
    if settings is None:
        yield None
        return
    from edge_sdk.serve import LiveServer

    with LiveServer(runner, source, settings) as page:
        say(f"live page: {page.url}")
        yield page
