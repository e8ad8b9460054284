"""Scores that are kept between runs of ``edge-sdk tune``, so that what was scored once is not scored again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

import edge_sdk
from edge_sdk.bench.accuracy import Score
from edge_sdk.bench.document import Row
from edge_sdk.errors import EdgeSdkError
from edge_sdk.files import write_text
from edge_sdk.settings import Settings, load_recipe

if TYPE_CHECKING:
    from edge_sdk.bench.lineup import Lineup
    from edge_sdk.evaluate.clip import Clip

NAME = "scores.json"
_log = logging.getLogger(__name__)


class Scorebook(Settings):
    """Scores by what they were measured on.

    Args:
        basis: SHA-256 of everything that scores rest on beside the row: bundles, frames, labels, and settings.
        scores: by :func:`key_of` the row.
    """

    basis: str
    scores: dict[str, Score] = Field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, basis: str) -> Scorebook:
        """The book in ``folder``; an empty one where there is none, or where it rests on something else."""
        if folder is None or not (folder / NAME).is_file():
            return cls(basis=basis)
        try:
            found = load_recipe(folder / NAME, cls)
        except EdgeSdkError as error:
            _log.warning("scores are measured again: %s", error)
            return cls(basis=basis)
        return found if found.basis == basis else cls(basis=basis)

    def find(self, rows: Iterable[Row]) -> dict[str, Score]:
        """Known scores by the name of the row."""
        return {row.name: self.scores[key_of(row)] for row in rows if key_of(row) in self.scores}

    def keep(self, folder: Path | None, rows: Iterable[Row], scores: dict[str, Score]) -> None:
        """Write the book with ``scores``, by the name of the row, added; nothing without a folder."""
        if folder is not None:
            added = {key_of(row): scores[row.name] for row in rows if row.name in scores}
            whole = self.model_copy(update={"scores": self.scores | added})
            write_text(folder / NAME, whole.model_dump_json(indent=1) + "\n")


def key_of(row: Row) -> str:
    """What a row's score depends on."""
    return row.model_dump_json(include={"variant", "engine", "schedule", "background"})


def basis_of(lineup: Lineup, clip: Clip, settings: Mapping[str, object]) -> str:
    """SHA-256, hex, of bundles, frames, labels and settings."""
    bundles = [
        None if bundle is None else bundle.manifest_sha256
        for bundle in (lineup.subject, lineup.teacher, lineup.rival)
    ]
    digest = hashlib.sha256(
        json.dumps([edge_sdk.__version__, bundles, clip.size_hw, len(clip), dict(settings)]).encode()
    )
    for frame, truth in zip(clip.frames, clip.masks, strict=True):
        digest.update(frame.image.tobytes())
        digest.update(b"-" if truth is None else truth.mask.tobytes())
    return digest.hexdigest()
