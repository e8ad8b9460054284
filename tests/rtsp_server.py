"""A small RTSP server for tests: one JPEG stream over TCP (RFC 2326, RFC 2435), to as many clients as come."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from typing import Any

import cv2
import numpy as np

_CHUNK = 1200


def rtp_packets(image: np.ndarray, number: int, sequence: int, fps: float) -> list[bytes]:
    """One picture as RTP packets; width and height must be multiples of 16."""
    good, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert good
    data, tables, at = coded.tobytes(), b"", 2
    while True:
        marker, length = struct.unpack(">HH", data[at : at + 4])
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xFFDB:  # tables of quantisation, each after a byte with its number
            tables += b"".join(body[i + 1 : i + 65] for i in range(0, len(body), 65))
        if marker == 0xFFDA:
            break
    scan = data[at:-2]
    height, width = image.shape[:2]
    packets: list[bytes] = []
    for offset in range(0, len(scan), _CHUNK):
        part, last = scan[offset : offset + _CHUNK], offset + _CHUNK >= len(scan)
        # Type 1 is 4:2:0; quality 255 says that the tables come in the first packet.
        jpeg = struct.pack(">BBHBBBB", 0, offset >> 16, offset & 0xFFFF, 1, 255, width // 8, height // 8)
        if offset == 0:
            jpeg += struct.pack(">BBH", 0, 0, len(tables)) + tables
        stamp = int(number * 90_000 / fps) & 0xFFFFFFFF
        head = struct.pack(
            ">BBHII", 0x80, 26 | (0x80 if last else 0), (sequence + len(packets)) & 0xFFFF, stamp, 7
        )
        packets.append(head + jpeg + part)
    return packets


class _Client(socketserver.StreamRequestHandler):
    server: RtspServer

    def handle(self) -> None:
        self.server.clients.append(self.connection)
        with contextlib.suppress(OSError):
            while (request := self._request()) is not None:
                if self._answer(*request):
                    self._play()

    def _request(self) -> tuple[str, dict[str, str]] | None:
        lines = []
        while line := self.rfile.readline().decode("latin-1").strip():
            lines.append(line)
        if not lines:
            return None
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return lines[0], fields

    def _answer(self, first: str, fields: dict[str, str]) -> bool:
        method, url, _ = first.split()
        self.server.requests.append(first)
        extra, body = "", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\na=control:*\r\n"
                f"m=video 0 RTP/AVP 26\r\na=control:track1\r\na=framerate:{self.server.fps:g}\r\n"
            )
            extra = (
                f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            )
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            extra = "Session: 1\r\nRange: npt=0.000-\r\n"
        answer = f"RTSP/1.0 200 OK\r\nCSeq: {fields.get('cseq', '0')}\r\n{extra}\r\n{body}"
        self.wfile.write(answer.encode())
        return method == "PLAY"

    def _play(self) -> None:
        number = sequence = 0
        while not self.server.ended.wait(1 / self.server.fps):
            if self.server.silent.is_set():
                continue
            picture = np.full((48, 64, 3), 10 + number % 200, np.uint8)
            packets = rtp_packets(picture, number, sequence, self.server.fps)
            number, sequence = number + 1, sequence + len(packets)
            for packet in packets:
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)


class RtspServer(socketserver.ThreadingTCPServer):
    """Serves pictures of 48 x 64 that grow lighter; in a ``with`` block.

    Set ``silent`` and it keeps its connections without sending; :meth:`hang_up` ends them.
    """

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, fps: float = 50.0) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.fps = fps
        self.silent, self.ended = threading.Event(), threading.Event()
        self.clients: list[socket.socket] = []
        self.requests: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.server_address[1]}/live"

    def hang_up(self) -> None:
        for client in self.clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.clients.clear()

    def __exit__(self, *_: Any) -> None:
        self.ended.set()
        self.shutdown()
        self.hang_up()
        self.server_close()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for a condition, or fail."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)
