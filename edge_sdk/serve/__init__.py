"""Watch a runner from a browser or from Prometheus, without a display and off the thread that infers."""

from __future__ import annotations

from edge_sdk.serve.server import LiveServer
from edge_sdk.serve.settings import ServeSettings, parse_address

__all__ = ["LiveServer", "ServeSettings", "parse_address"]
