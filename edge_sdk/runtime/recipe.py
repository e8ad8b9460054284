"""Settings of a run as a YAML file: what ``edge-sdk tune`` writes and ``edge-sdk run --recipe`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.files import write_text
from edge_sdk.runtime.background import BackgroundKeyframes
from edge_sdk.runtime.schedule import ScheduleSettings
from edge_sdk.settings import Settings, load_recipe
from edge_sdk.signing import Trust


class RunRecipe(Settings):
    """How a bundle is run; the settings of :class:`edge_sdk.EdgeRunner`, whose documentation says more.

    Args:
        bundle: the bundle, or a device folder; relative to the working directory.
        source: URI of the frames, for ``edge-sdk run``; None where the command line or the program names it.
        backend: name of the runtime.
        engine: which engines; None for those that the bundle has chosen for the backend.
        schedule: which frames are keyframes; None for the bundle's own.
        background: keyframes beside the frames; None runs them in turn.
        threads: CPU threads of one step; None for the backend's own choice.
        trust: accept only bundles that this policy accepts; None asks for no signature.
        adapt: let the student learn while it runs; None learns nothing.
    """

    bundle: Path
    source: Annotated[str, Field(min_length=1)] | None = None
    backend: str = "onnxruntime"
    engine: Annotated[str, Field(min_length=1)] | None = None
    schedule: ScheduleSettings | None = None
    background: BackgroundKeyframes | None = None
    threads: int | None = Field(default=None, ge=1, strict=True)
    trust: Trust | None = None
    adapt: AdaptSettings | None = None

    @classmethod
    def load(cls, path: str | Path) -> RunRecipe:
        """Read it from YAML.

        Raises:
            MissingFileError: no file there.
            FileFormatError: not YAML, or not a mapping.
            RecipeError: an unknown key or a bad value.
        """
        return load_recipe(path, cls)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of :class:`edge_sdk.EdgeRunner`; its first argument is :attr:`bundle`."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name not in ("bundle", "source")
        }

    def write(self, path: str | Path, header: str = "") -> None:
        """Write it as YAML, whole or not at all.

        Args:
            path: the file.
            header: lines that go above it as comments.

        Raises:
            OutputError: nothing can be written there.
        """
        comments = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        data = self.model_dump(mode="json", exclude_none=True)
        write_text(path, comments + yaml.safe_dump(data, sort_keys=False, width=120))
