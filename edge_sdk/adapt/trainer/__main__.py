"""``python -m edge_sdk.adapt.trainer``: started by the runner, ends with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.adapt.channel import TrainerChannel
from edge_sdk.adapt.messages import Failed, Keep, Kept, Lesson, Ready, Start, Undo
from edge_sdk.errors import EdgeSdkError, TrainerError
from edge_sdk.optional import require

# Of glibc's mallopt().
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def settle(start: Start) -> None:
    """Stay on the cores given, out of the way of everything else, and keep memory that was once needed.

    Before torch is imported: its threads inherit all of it.

    Raises:
        TrainerError: the cores are not there.
    """
    if start.cores and hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, start.cores)
        except OSError as error:
            raise TrainerError(
                f"CPU cores {', '.join(map(str, start.cores))}: this process may not use them ({error.strerror})."
            ) from error
    if start.settings.pace == "beside":  # in turn, frames wait for the trainer
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except (AttributeError, OSError):  # not Linux, or a container that forbids it
            os.nice(19)
    # Layers give memory back and ask for it again in every pass; through the kernel that is a sixth of the time.
    with contextlib.suppress(AttributeError, OSError):  # another C library has other ways
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)


def serve(channel: TrainerChannel) -> None:
    """Do what the runner asks, until it says stop or is gone.

    Raises:
        EdgeSdkError: this cannot be done.
        EOFError: the runner is gone.
    """
    messages = channel.messages()
    start = next(messages, None)
    if start is None:
        return
    if not isinstance(start, Start):
        raise TrainerError(f"expected 'start' first, got '{start.kind}'.")
    settle(start)
    torch = require("torch", "learning on a stream")
    require("onnx", "learning on a stream")
    torch.set_num_threads(start.threads)
    # Numbers too small to matter would be computed ten times slower.
    torch.set_flush_denormal(True)
    # Only now: it imports both.
    from edge_sdk.adapt.trainer.session import Session

    session = Session(start)
    channel.send(Ready(version=session.version))
    for message in messages:
        if isinstance(message, Lesson):
            report = session.lesson(message.seq, channel.image, channel.label)
            channel.learned(report.learned, report.mask, report.graphs, report.weights)
        elif isinstance(message, Undo):
            session.undo(message.version)
        elif isinstance(message, Keep):
            session.keep(Path(message.folder))
            channel.send(Kept(folder=message.folder, version=session.version))
        else:
            raise TrainerError("was started already.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; what goes wrong is told to the runner, and where it is a defect of ours, with a traceback on stderr.

    Returns:
        The exit code.
    """
    channel = TrainerChannel.from_arguments(arguments)
    try:
        serve(channel)
    except EOFError:
        return 0
    except Exception as error:  # noqa: BLE001  (the runner is told, whatever it is)
        if not isinstance(error, EdgeSdkError):
            traceback.print_exc()
        with contextlib.suppress(EOFError):
            channel.send(Failed(error=type(error).__name__, message=str(error)))
        return 1
    finally:
        channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
