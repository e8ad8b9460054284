"""Messages over a socket, whole or not at all, and never waited for longer than one said."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

from edge_sdk.adapt.messages import Message, decode, encode

# Of one message; a lesson's report has a few thousand.
_LONGEST = 1 << 20
_PREFIX = 4
_SEND_S = 2.0


class MessagePipe:
    """Messages over one end of a socket pair; one thread may send while another receives.

    A message is 4 bytes of length, little endian, and so many bytes of JSON, see :mod:`edge_sdk.adapt.messages`.

    Args:
        end: it is closed with this.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._buffer = bytearray()
        self._sending, self._receiving = threading.Lock(), threading.Lock()

    def send(self, message: Message, timeout_s: float | None = _SEND_S) -> None:
        """Send one message whole.

        Args:
            message: at most 1 MiB of JSON.
            timeout_s: how long the other side may take to make room, in seconds; None waits for ever.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: it does not read. Half a message may have gone, so the pipe is of no use any more.
            ValueError: the message is too long.
        """
        data = encode(message)
        if len(data) > _LONGEST:
            raise ValueError(f"a message has at most {_LONGEST} bytes, got {len(data)}")
        left = memoryview(len(data).to_bytes(_PREFIX, "little") + data)
        deadline = _Deadline(timeout_s)
        with self._sending:
            while left:
                try:
                    left = left[self._end.send(left) :]
                except BlockingIOError:
                    if not deadline.wait(self._end, select.POLLOUT):
                        raise TimeoutError("the other side does not read") from None
                except OSError:
                    raise EOFError from None

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message; None where none came in time.

        Args:
            timeout_s: in seconds; 0 does not wait, None waits for ever.

        Raises:
            EOFError: the other side is gone, or this one was closed meanwhile.
            ValueError: what came is no message; the pipe is of no use any more.
        """
        deadline = _Deadline(timeout_s)
        with self._receiving:
            while (data := self._cut()) is None:
                if not deadline.wait(self._end, select.POLLIN):
                    return None
                try:
                    block = self._end.recv(1 << 16)
                except BlockingIOError:
                    continue
                except OSError:
                    raise EOFError from None
                if not block:
                    raise EOFError
                self._buffer += block
        return decode(data)

    def close(self) -> None:
        """Close; a thread that is receiving is told so. Closing twice does nothing."""
        # Wakes who waits, so that no other file gets the number while it is polled.
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        with self._sending, self._receiving:
            self._end.close()

    def _cut(self) -> bytes | None:
        """The first whole message that has come, taken out."""
        if len(self._buffer) < _PREFIX:
            return None
        size = int.from_bytes(self._buffer[:_PREFIX], "little")
        if size > _LONGEST:
            raise ValueError(f"a message of {size} bytes, at most {_LONGEST} are allowed")
        if len(self._buffer) < _PREFIX + size:
            return None
        data = bytes(self._buffer[_PREFIX : _PREFIX + size])
        del self._buffer[: _PREFIX + size]
        return data


class _Deadline:
    """A point in time to wait until."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def wait(self, end: socket.socket, event: int) -> bool:
        """Wait for ``event`` or a hang-up; whether it came. Raises EOFError where ``end`` is closed."""
        left = None if self._at is None else max(0.0, self._at - time.monotonic()) * 1000
        poll = select.poll()
        if end.fileno() < 0:
            raise EOFError
        poll.register(end, event)
        return bool(poll.poll(left))
