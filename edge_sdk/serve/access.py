"""Who may look."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from http import HTTPStatus

_BEARER = "bearer "


def is_loopback(address: str) -> bool:
    """Whether a numeric IP address is reached from its own machine alone."""
    # An IPv6 address may carry the name of its interface.
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def new_token() -> str:
    """A random token, 32 characters for a URL."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: HTTPStatus
    text: str


@dataclass(frozen=True, slots=True)
class Access:
    """Judges requests.

    Args:
        token: what must come as ``Authorization: Bearer TOKEN`` or as ``?token=TOKEN``; None where any program of this
            machine may look.
    """

    token: str | None

    def refusal(self, *, authorization: str | None, token: str | None, host: str | None) -> Refusal | None:
        """Why this request is refused; None where it is not.

        Args:
            authorization: its ``Authorization`` header, which goes before ``token``.
            token: of the options of its address.
            host: its ``Host`` header.
        """
        if self.token is None:
            return None if _is_this_machine(host) else _FOREIGN
        shown = token or ""
        if authorization is not None and authorization.lower().startswith(_BEARER):
            shown = authorization[len(_BEARER) :].strip()
        # Bytes, because the comparison in constant time takes text only where it is ASCII.
        if hmac.compare_digest(shown.encode("utf-8", "replace"), self.token.encode()):
            return None
        return _NO_TOKEN


_NO_TOKEN = Refusal(
    HTTPStatus.UNAUTHORIZED,
    "A token is needed: add ?token=TOKEN to the address, or the header Authorization: Bearer TOKEN. "
    "The program that serves this page has printed it.",
)
# A page of the Internet can make its own name point to 127.0.0.1 and would then read the pictures as its own.
_FOREIGN = Refusal(
    HTTPStatus.FORBIDDEN,
    "Without a token this page is for its own machine, under the name localhost or 127.0.0.1. "
    "Give it a token to reach it by another name.",
)


def _is_this_machine(host: str | None) -> bool:
    if not host:
        return False
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return is_loopback(name)
    except ValueError:
        return False
