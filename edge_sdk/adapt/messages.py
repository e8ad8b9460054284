"""What the runner and its trainer process tell each other, as lines of JSON; arrays go through shared memory.

One lesson is under way at a time. The trainer writes to the shared memory only between a :class:`Lesson` and its
:class:`Learned`, the runner only before it sends a lesson, so neither ever reads what the other is writing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.manifest import FLOAT32, Sha256
from edge_sdk.settings import Settings

# Beside a kept version's graphs, of plans whose weights alone are exchanged; see edge_sdk.adapt.memory.pack_weights.
OPEN_WEIGHTS = "open.weights"


class Start(Settings):
    """To the trainer, first of all.

    Args:
        bundle: folder of the bundle, whose files the runner has checked.
        settings: of the adaptation.
        resume: folder of a kept version to go on from, see :class:`Keep`; None begins with the bundle's weights.
        version: number of those weights.
        threads: CPU threads of torch.
        cores: CPU cores to stay on; empty for any.
        engine: the engine set in use; of one for TensorRT new plans are sent in place of graphs, and kept beside them.
    """

    kind: Literal["start"] = "start"
    bundle: str
    settings: AdaptSettings
    resume: str | None = None
    version: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    cores: tuple[int, ...] = ()
    engine: str = FLOAT32


class Ready(Settings):
    """From the trainer: it is waiting for lessons. ``version`` is that of its weights."""

    kind: Literal["ready"] = "ready"
    version: int


class Lesson(Settings):
    """To the trainer: learn from the frame and label in shared memory.

    Args:
        seq: the frame's number.
    """

    kind: Literal["lesson"] = "lesson"
    seq: int


class Learned(Settings):
    """From the trainer: the lesson is done, and what came of it lies in shared memory.

    Args:
        seq: the lesson's frame.
        version: number of the weights now; that of before where nothing was updated.
        before, after: agreement before the first and after the last update.
        updates: optimiser steps made.
        losses: of each update.
        took_ms: the lesson, in milliseconds.
        finite: whether every weight is a finite number; where not, there are no graphs.
        graphs: size in bytes of each step's new graph, by step; empty where nothing was updated.
        sha256: of each of those graphs.
        weights_bytes: size of the open layers' weights, see :mod:`edge_sdk.adapt.channel`; 0 without ``swap="refit"``.
    """

    # A loss may be no number, and has to arrive as such; JSON proper has no word for it.
    model_config = ConfigDict(ser_json_inf_nan="constants")

    kind: Literal["learned"] = "learned"
    seq: int
    version: int
    before: float
    after: float
    updates: int
    losses: tuple[float, ...] = ()
    took_ms: float
    finite: bool = True
    graphs: dict[str, int] = Field(default_factory=dict)
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    weights_bytes: int = 0


class Undo(Settings):
    """To the trainer: the last lesson's weights were refused, go back to those of before, momentum included.

    Args:
        version: number of the weights to go back to.
    """

    kind: Literal["undo"] = "undo"
    version: int


class Keep(Settings):
    """To the trainer: write the present weights to a folder, whole or not at all.

    The folder holds ``trainer.pt`` (weights, momentum, memory), the step graphs with these weights under the names that
    they have in the bundle, and ``version.json``.
    """

    kind: Literal["keep"] = "keep"
    folder: str


class Kept(Settings):
    """From the trainer: the folder is written."""

    kind: Literal["kept"] = "kept"
    folder: str
    version: int


class Failed(Settings):
    """From the trainer: it cannot go on, and ends.

    Args:
        error: name of the error's class.
        message: what happened.
        details: more, for the log.
    """

    kind: Literal["failed"] = "failed"
    error: str
    message: str
    details: dict[str, JsonValue] = Field(default_factory=dict)


class Stop(Settings):
    """To the trainer: end."""

    kind: Literal["stop"] = "stop"


Message = Annotated[
    Start | Ready | Lesson | Learned | Undo | Keep | Kept | Failed | Stop, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Message)


def encode(message: Message) -> bytes:
    """One message as bytes."""
    return message.model_dump_json().encode()


def decode(data: bytes) -> Message:
    """The message in ``data``.

    Raises:
        ValueError: it is none.
    """
    return _ADAPTER.validate_json(data)
