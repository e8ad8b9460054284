"""The folder that online distillation goes on from after a restart.

It holds ``session.json``, ``log.jsonl`` (see :mod:`edge_sdk.adapt.journal`) and ``versions/000012/`` with the weights
of version 12, which the trainer writes (see :class:`edge_sdk.adapt.messages.Keep`). First the trainer writes a version,
then the session that names it is saved, then older versions are removed: whenever the machine stops, the session names
a version that is whole.
"""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edge_sdk.adapt.drift import DriftState
from edge_sdk.adapt.journal import Journal
from edge_sdk.adapt.stride import StrideState
from edge_sdk.errors import FileFormatError, OutputError, RecipeError, UpdateError
from edge_sdk.files import refusals_named, write_text
from edge_sdk.manifest import Sha256
from edge_sdk.settings import Result
from edge_sdk.update.lock import locked

# The one in use and the one before it.
_KEPT = 2
_NAME = re.compile(r"\d{6,}")
_OVER = "Start over with resume=False, or name another folder."

Count = Annotated[int, Field(ge=0)]


class Session(Result):
    """Where learning stood when its newest weights were kept.

    Args:
        base: SHA-256 of the bundle's manifest; weights fit no other bundle.
        version: of the weights; 0 for the bundle's own, which need no folder.
        stride: of the schedule.
        drift: of the alarms.
        frames, teacher_frames, lessons, updates, refused, restarts, alarms: counted since learning began.
        agreement: with the newest lesson's teacher, after it.
        agreement_before: with the same, before it.
    """

    _what: ClassVar[str] = "session of online distillation"

    format: Literal[1] = 1
    base: Sha256
    version: Count = 0
    stride: StrideState
    drift: DriftState = DriftState()
    frames: Count = 0
    teacher_frames: Count = 0
    lessons: Count = 0
    updates: Count = 0
    refused: Count = 0
    restarts: Count = 0
    alarms: Count = 0
    agreement: float | None = None
    agreement_before: float | None = None

    def to_json(self) -> str:
        """The session as JSON."""
        return self.model_dump_json(indent=2) + "\n"


class StateFolder:
    """A state folder, held by one learner at a time::

        with StateFolder(folder, base) as state:
            if state.session is not None:
                ...  # go on from state.version_folder(state.session.version)
            state.journal.write(Started())
            ...      # have the trainer write state.version_folder(12)
            state.save(session)

    Args:
        folder: made where it is not there.
        base: SHA-256 of the bundle's manifest.
        resume: go on from the session there; False removes it and its versions, the log is appended to all the same.

    Attributes:
        session: what was kept, or saved since; None where there is nothing.
        journal: the log.

    Raises:
        RecipeError: the state is another bundle's.
        FileFormatError: it is damaged.
        OutputError: the folder cannot be written, or another process holds it.
    """

    def __init__(self, folder: str | Path, base: str, *, resume: bool = True) -> None:
        self.folder = Path(folder)
        self._base = base
        self._versions = self.folder / "versions"
        self._file = self.folder / "session.json"
        self.session: Session | None = None
        with ExitStack() as held:
            with refusals_named(self.folder):
                self._versions.mkdir(parents=True, exist_ok=True)
            self._lock(held)
            if resume:
                self.session = self._load()
            self._remove_unfinished()
            self.journal = Journal(self.folder / "log.jsonl")
            held.callback(self.journal.close)
            self._held = held.pop_all()

    def _lock(self, held: ExitStack) -> None:
        lock = locked(
            self.folder / ".lock",
            wait_s=0.0,
            busy=f"{self.folder}: another process learns with this state",
            hint="End it, or name a folder of its own for each stream.",
        )
        try:
            held.enter_context(lock)
        except UpdateError as error:
            raise OutputError(str(error)) from None

    def _load(self) -> Session | None:
        if not self._file.exists():
            return None
        try:
            session = Session.load(self._file)
        except FileFormatError as error:
            raise FileFormatError(str(error), hint=_OVER) from None
        if session.base != self._base:
            raise RecipeError(f"{self.folder}: this is the state of another bundle.", hint=_OVER)
        self._require_version(session)
        return session

    def _require_version(self, session: Session) -> None:
        folder = self.version_folder(session.version)
        if session.version and not folder.is_dir():
            raise FileFormatError(
                f"{self._file}: names version {session.version}, but {folder} is not there.", hint=_OVER
            )

    def _remove_unfinished(self) -> None:
        """What a trainer was writing when it was ended, and versions that no session came to name."""
        newest = self.session.version if self.session is not None else 0
        with refusals_named(self.folder):
            if self.session is None:
                self._file.unlink(missing_ok=True)
            for path in self._versions.iterdir():
                if not _NAME.fullmatch(path.name) or int(path.name) > newest:
                    shutil.rmtree(path)

    def version_folder(self, version: int) -> Path:
        """Where the weights of ``version`` lie, or are to be written."""
        return self._versions / f"{version:06d}"

    def save(self, session: Session) -> None:
        """Make ``session`` the one to go on from; versions older than the one before it are removed.

        Raises:
            FileFormatError: the folder of its version is not there.
            RecipeError: it is another bundle's.
            OutputError: it cannot be written.
        """
        if session.base != self._base:
            raise RecipeError(f"{self.folder}: the session is of another bundle.")
        self._require_version(session)
        write_text(self._file, session.to_json())
        self.session = session
        with refusals_named(self.folder):
            names = (path.name for path in self._versions.iterdir() if _NAME.fullmatch(path.name))
            numbers = sorted(number for number in map(int, names) if number <= session.version)
            for number in numbers[:-_KEPT]:
                shutil.rmtree(self.version_folder(number))

    def close(self) -> None:
        """Let go of the folder; closing twice does nothing."""
        self._held.close()

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
