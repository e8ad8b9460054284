"""The HTTP side: which address gives what, and what every answer carries."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from edge_sdk.serve.access import Access, Refusal
from edge_sdk.serve.metrics import CONTENT_TYPE, prometheus_text
from edge_sdk.serve.pictures import Pictures
from edge_sdk.serve.settings import ServeSettings
from edge_sdk.serve.state import state_of
from edge_sdk.serve.watch import Watch

_log = logging.getLogger(__name__)

_BOUNDARY = "edge-sdk-frame"
_TEXT = "text/plain; charset=utf-8"
# A stalled viewer is given up after so long, and so is a connection that asks for nothing.
_PATIENCE_S = 20.0
# Pictures that wait in the kernel for a slow viewer are old ones, so few are let wait.
_SEND_BUFFER_BYTES = 128 * 1024
_MOST_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Site:
    """What is served.

    Attributes:
        access: who may look.
        watch: the figures.
        pictures: the frames.
        page: the page's HTML, with ``@NONCE@`` where its own script and style are allowed.
        run_id: another one at every start, so that a page that stayed open forgets what it has.
        settings: times and limits.
    """

    access: Access
    watch: Watch
    pictures: Pictures
    page: str
    run_id: str
    settings: ServeSettings


class Server(ThreadingHTTPServer):
    """A thread a connection, a bounded number of them, all ended by ``end()``.

    Args:
        address: host and port to listen on.
        family: of the address.
        site: what is served.
        most: connections at once.

    Raises:
        OSError: the address is taken, not this machine's, or needs other rights.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[Any, ...], family: int, site: Site, most: int) -> None:
        self.address_family = family
        self.site = site
        self._free = threading.BoundedSemaphore(most)
        self._open: dict[socket.socket, threading.Thread | None] = {}
        self._lock = threading.Lock()
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service for this machine's name, which may take seconds on a device."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer on a thread of its own, or refuse where there are too many."""
        if not self._free.acquire(blocking=False):
            request.settimeout(1.0)
            try:
                request.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
            except OSError:
                _log.debug("a connection too many went away by itself")
            super().shutdown_request(request)
            return
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="edge-sdk-viewer",
            daemon=True,
        )
        with self._lock:
            self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """A connection is over."""
        with self._lock:
            known = self._open.pop(request, None) is not None
        super().shutdown_request(request)
        if known:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that went away is no error; anything else is a defect of ours and keeps its traceback."""
        error = sys.exc_info()[1]
        if isinstance(error, ConnectionError | TimeoutError):
            _log.debug("a viewer went away: %s", error)
        else:
            _log.error("a request to the live page failed", exc_info=error)

    def end(self) -> None:
        """Stop listening, cut every connection and wait for its thread."""
        self.shutdown()
        with self._lock:
            threads = list(self._open.values())
            for request in self._open:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:  # the other side was faster
                    continue
        self.server_close()
        for thread in threads:
            if thread is not None:
                thread.join(_MOST_JOIN_S)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edge-sdk", ""
    timeout = _PATIENCE_S
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer ``GET``."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer ``HEAD``: as ``GET``, without the body."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr; and no addresses in the log, because they hold tokens."""

    def version_string(self) -> str:
        """The ``Server`` header."""
        return self.server_version

    def _answer(self) -> None:
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # what follows is a body that nobody reads
            self._send(HTTPStatus.BAD_REQUEST, _TEXT, b"A request here has no body.\n")
            return
        path, _, options = self.path.partition("?")
        query = dict(parse_qsl(options))
        refusal = self.server.site.access.refusal(
            authorization=self.headers.get("Authorization"),
            token=query.get("token"),
            host=self.headers.get("Host"),
        )
        if refusal is not None:
            self._refuse(refusal)
            return
        route = self._ROUTES.get(path)
        if route is None:
            self._send(HTTPStatus.NOT_FOUND, _TEXT, f"There are {', '.join(self._ROUTES)}.\n".encode())
        else:
            route(self, query)

    def _refuse(self, refusal: Refusal) -> None:
        extra = {"WWW-Authenticate": "Bearer"} if refusal.status is HTTPStatus.UNAUTHORIZED else {}
        self._send(refusal.status, _TEXT, f"{refusal.text}\n".encode(), extra)

    def _page(self, query: dict[str, str]) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        body = self.server.site.page.replace("@NONCE@", nonce).encode()
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", body, {"Content-Security-Policy": policy})

    def _state(self, query: dict[str, str]) -> None:
        try:
            after = int(query.get("after", "-1"))
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, _TEXT, b"after: expected the index of a frame.\n")
            return
        site = self.server.site
        state = state_of(site.watch.look(), after) | {
            "run_id": site.run_id,
            "history": site.settings.history,
            "stale_s": site.settings.stale_s,
            "viewers": site.pictures.viewers,
        }
        self._send(HTTPStatus.OK, "application/json", json.dumps(state).encode())

    def _metrics(self, query: dict[str, str]) -> None:
        site = self.server.site
        text = prometheus_text(site.watch.look(), site.pictures.viewers)
        self._send(HTTPStatus.OK, CONTENT_TYPE, text.encode())

    def _health(self, query: dict[str, str]) -> None:
        watch, stale_s = self.server.site.watch, self.server.site.settings.stale_s
        last_s = watch.last_frame_s
        quiet_s = watch.running_s if last_s is None else last_s
        if quiet_s > stale_s:
            text = f"no answer for {quiet_s:.1f} s\n"
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, text.encode())
        else:
            self._send(HTTPStatus.OK, _TEXT, b"starting\n" if last_s is None else b"ok\n")

    def _stream(self, query: dict[str, str]) -> None:
        """Pictures as they come, as ``multipart/x-mixed-replace``, until the viewer goes."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._head(HTTPStatus.OK, f"multipart/x-mixed-replace; boundary={_BOUNDARY}", {"Connection": "close"})
        if self.command == "HEAD":
            return
        pictures, number = self.server.site.pictures, 0
        self.wfile.write(f"--{_BOUNDARY}\r\n".encode())
        with pictures.watching():
            while not pictures.closing:
                found = pictures.after(number, timeout_s=1.0)
                if found is None:
                    if self._is_gone():
                        return
                    continue
                number, jpeg = found
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                # The boundary behind the picture, not before the next: browsers show a part when it has ended.
                self.wfile.write(head.encode() + jpeg + f"\r\n--{_BOUNDARY}\r\n".encode())

    def _is_gone(self) -> bool:
        """Whether the viewer has hung up; asked where there is nothing to send that would tell."""
        try:
            self.connection.settimeout(0.0)
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(_PATIENCE_S)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, extra: dict[str, str] | None = None) -> None:
        """A whole answer."""
        closing = {"Connection": "close"} if self.close_connection else {}
        self._head(status, kind, {"Content-Length": str(len(body)), **closing, **(extra or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, extra: dict[str, str]) -> None:
        self.send_response(status)
        # With a token whoever shows these pictures elsewhere was given it; without, no other page may use them.
        policy = "same-origin" if self.server.site.access.token is None else "cross-origin"
        headers = {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": policy,
        }
        for name, value in (headers | extra).items():
            self.send_header(name, value)
        self.end_headers()

    _ROUTES: ClassVar[dict[str, Callable[[Handler, dict[str, str]], None]]] = {
        "/": _page,
        "/stream.mjpg": _stream,
        "/state.json": _state,
        "/metrics": _metrics,
        "/healthz": _health,
    }
