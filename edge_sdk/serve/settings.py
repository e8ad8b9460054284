"""Where the live page is served, to whom, and how much work it may make."""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, model_validator

from edge_sdk.errors import RecipeError
from edge_sdk.settings import Settings

LOOPBACK = "127.0.0.1"
# What goes into a URL and into a header as it stands; long enough that guessing is hopeless.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_ADDRESS = re.compile(r"(?:(?P<host>\[[^\[\]]+\]|[^:\[\]]+):)?(?P<port>[0-9]{1,5})")


class ServeSettings(Settings):
    """Settings of a :class:`~edge_sdk.serve.LiveServer`.

    Args:
        host: address to listen on. Anything but this machine's own (loopback) makes a token necessary.
        port: 0 takes a free one.
        token: what a viewer must show, 16 to 256 letters, digits and ``._~-``; None for none on loopback and a random
            one elsewhere.
        max_fps: pictures drawn and sent a second at most, however many are answered.
        max_width: wider pictures are made smaller before they are sent, in pixels.
        quality: of the JPEG, 1-100.
        history: frames that the latency strip shows.
        stale_s: without an answer for this long, ``/healthz`` says so.
        max_connections: at once; more are refused.
    """

    host: str = Field(default=LOOPBACK, min_length=1)
    port: int = Field(default=8080, ge=0, le=65535)
    token: SecretStr | None = None
    max_fps: float = Field(default=15.0, gt=0, le=120, allow_inf_nan=False)
    max_width: int = Field(default=960, ge=16)
    quality: int = Field(default=80, ge=1, le=100)
    history: int = Field(default=240, ge=2, le=2000)
    stale_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    max_connections: int = Field(default=32, ge=2, le=1024)

    # Over the whole model, because the message of a field's own error would quote the token.
    @model_validator(mode="after")
    def _usable_token(self) -> ServeSettings:
        if self.token is not None and not _TOKEN.fullmatch(self.token.get_secret_value()):
            raise ValueError("token: expected 16 to 256 letters, digits and ._~-, got something else")
        return self


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``[HOST:]PORT``; without a host it is this machine's own, 127.0.0.1.

    Raises:
        RecipeError: it is written otherwise, or the port is above 65535.

    Example:
        >>> parse_address("8080"), parse_address("[::1]:80")
        (('127.0.0.1', 8080), ('::1', 80))
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found["port"]) > 65535:
        raise RecipeError(
            f"address to serve on: expected [HOST:]PORT with a port of 0 to 65535, got {text!r}.",
            hint="Give 8080 for this machine alone, 0.0.0.0:8080 for the network, [::1]:8080 for IPv6.",
        )
    return (found["host"] or LOOPBACK).strip("[]"), int(found["port"])
