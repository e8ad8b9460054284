"""LiveServer: what a program needs to be watched."""

from __future__ import annotations

import secrets
import socket
import threading
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_sdk.errors import ClosedError, ServeError
from edge_sdk.serve.access import Access, is_loopback, new_token
from edge_sdk.serve.http import Server, Site
from edge_sdk.serve.pictures import Pictures
from edge_sdk.serve.settings import ServeSettings
from edge_sdk.serve.watch import Watch

if TYPE_CHECKING:
    from edge_sdk.runtime.result import Result
    from edge_sdk.runtime.runner import EdgeRunner
    from edge_sdk.video.base import VideoSource
    from edge_sdk.video.frame import Frame

_POLL_S = 0.1


class LiveServer:
    """Shows a run in a browser, and its figures to Prometheus::

        with EdgeRunner("my_pair") as runner, LiveServer(runner, camera) as page:
            print(page.url)
            for frame, result in runner.stream(camera):
                page.show(frame, result)

    Addresses: ``/`` the page, ``/stream.mjpg`` annotated frames, ``/state.json`` what the page shows, ``/metrics``
    Prometheus, ``/healthz`` 200 while answers come and 503 else. Nothing is drawn, coded or sent on the thread that
    calls :meth:`show`, and nothing at all is drawn while nobody watches.

    Args:
        runner: an open runner.
        source: where its frames come from; None where only results are shown.
        settings: address, token and limits; on this machine alone, port 8080, by default.
    """

    def __init__(
        self,
        runner: EdgeRunner,
        source: VideoSource | None = None,
        settings: ServeSettings | None = None,
    ) -> None:
        self.settings = settings or ServeSettings()
        self._watch = Watch(runner, source, self.settings.history)
        self._pictures: Pictures | None = None
        self._token: str | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> LiveServer:
        """Listen; opening an open server does nothing.

        Raises:
            ServeError: the address is not this machine's, is taken, or needs other rights.
            DependencyError: OpenCV is not installed.
        """
        if self._server is None:
            pictures = Pictures(self.settings, lambda: self.count_error("draw"))
            try:
                family, address = self._address()
                self._token = self._token_for(address[0])
                server = Server(address, family, self._site(pictures), self.settings.max_connections)
            except OSError as error:
                pictures.close()
                raise self._refused(error) from error
            self._pictures, self._server = pictures, server
            self._thread = threading.Thread(
                target=server.serve_forever, args=(_POLL_S,), name="edge-sdk-live-page", daemon=True
            )
            self._thread.start()
        return self

    def close(self) -> None:
        """Stop listening and send every viewer away; closing twice does nothing."""
        server, self._server = self._server, None
        pictures, self._pictures = self._pictures, None
        thread, self._thread = self._thread, None
        if server is not None and pictures is not None and thread is not None:
            pictures.close()
            server.end()
            thread.join()

    def __enter__(self) -> LiveServer:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def show(self, frame: Frame, result: Result) -> None:
        """Count an answer, and show it where somebody watches. Takes microseconds and waits for nobody.

        Args:
            frame: the frame that was answered; its image is not written to any more.
            result: its answer; may be written over by the runner's next call.

        Raises:
            ClosedError: the server is not open.
        """
        if self._pictures is None:
            raise _closed()
        self._watch.record.add(result)
        self._pictures.offer(frame.image, result)

    def count_error(self, where: str) -> None:
        """Count an error of the application's own, such as a failed ``step``."""
        self._watch.record.count_error(where)

    @property
    def port(self) -> int:
        """The port, also where 0 was asked for.

        Raises:
            ClosedError: the server is not open.
        """
        if self._server is None:
            raise _closed()
        return self._server.server_port

    @property
    def url(self) -> str:
        """Address of the page as a viewer types it, token included.

        Raises:
            ClosedError: the server is not open.
        """
        host = self.settings.host
        if host in ("0.0.0.0", "::"):  # every address of this machine: its name is one that others can use
            host = socket.gethostname()
        token = f"?token={self._token}" if self._token else ""
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/{token}"

    @property
    def viewers(self) -> int:
        """How many watch the pictures."""
        return 0 if self._pictures is None else self._pictures.viewers

    def _site(self, pictures: Pictures) -> Site:
        return Site(
            access=Access(self._token),
            watch=self._watch,
            pictures=pictures,
            page=resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"),
            run_id=secrets.token_hex(4),
            settings=self.settings,
        )

    def _address(self) -> tuple[int, tuple[Any, ...]]:
        """The family and the numeric form of the address to listen on."""
        found = socket.getaddrinfo(
            self.settings.host, self.settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # A name such as localhost may have an address of either family; viewers try the older one too.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return int(family), tuple(address)

    def _token_for(self, host: str) -> str | None:
        if self.settings.token is not None:
            return self.settings.token.get_secret_value()
        return None if is_loopback(host) else new_token()

    def _refused(self, error: OSError) -> ServeError:
        return ServeError(
            f"live page: cannot listen on {self.settings.host} port {self.settings.port}: {error.strerror or error}.",
            hint="Give another port (0 takes a free one), or an address of this machine.",
        )


def _closed() -> ClosedError:
    return ClosedError(
        "live page: it is not open.", hint="Use it inside `with LiveServer(...) as page:`, or call open()."
    )
