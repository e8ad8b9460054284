"""Settings of ``edge-sdk adapt``: what is adapted, over which frames, how it learns, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.settings import Settings
from edge_sdk.video.uri import SourceText, is_live


class AdaptRecipe(Settings):
    """One run over a stream with a student that learns.

    Args:
        bundle: exported with an ``online`` recipe.
        source: URI of the frames.
        adapt: how it learns.
        backend: name of the runtime.
        engine: which engines; None for those that the bundle has chosen for the backend.
        threads: CPU threads of a frame's step; None for all cores but those for learning.
        limit: most frames; None for all.
        keep: folder for a new bundle with what was learned; None keeps none.
        key: private key to sign that bundle with.
        save: annotated video, or a folder for PNGs, ending in ``/``.
        report: folder for a report against the teacher on every frame; recordings only, as they are read again.
    """

    bundle: Path
    source: SourceText
    adapt: AdaptSettings = AdaptSettings()
    backend: str = "onnxruntime"
    engine: Annotated[str, Field(min_length=1)] | None = None
    threads: int | None = Field(default=None, ge=1, strict=True)
    limit: int | None = Field(default=None, ge=1)
    keep: Path | None = None
    key: Path | None = None
    save: str | None = None
    report: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AdaptRecipe:
        if self.key is not None and self.keep is None:
            raise ValueError("'key' signs the bundle that 'keep' names, and there is none")
        if self.report is not None and is_live(self.source):
            raise ValueError(
                "'report' needs the teacher on every frame, for which the stream is read again: record it"
            )
        return self

    def paced(self) -> AdaptRecipe:
        """With a pace where none was named: a recording waits for what is learned of it, a camera cannot."""
        if "pace" in self.adapt.model_fields_set or is_live(self.source):
            return self
        adapt = self.adapt.model_copy(update={"pace": "in_turn"})
        return self.model_copy(update={"adapt": adapt})
