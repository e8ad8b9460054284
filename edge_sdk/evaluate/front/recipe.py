"""Settings of ``edge-sdk front``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from edge_sdk.evaluate.recipe import Compared, Interval
from edge_sdk.manifest import FLOAT32
from edge_sdk.video.uri import SourceText


class FrontRecipe(Compared):
    """Which pairs are compared with which networks, over which frames, and how often.

    Args:
        teacher: a per-frame bundle of the teacher.
        nets: per-frame bundles of smaller networks, of several widths, distilled from the same teacher with as much
            training as the pairs: the rivals.
        pairs: bundles with a keyframe step of the same teacher and a delta step, of any method.
        source: URI of the frames with labels, or several: each is a stream of its own, which begins with a keyframe.
    """

    teacher: Path
    nets: tuple[Path, ...] = Field(min_length=2)
    pairs: tuple[Path, ...] = Field(min_length=1)
    source: tuple[SourceText, ...] = Field(min_length=1)
    intervals: tuple[Interval, ...] = Field(default=(5, 10, 20), min_length=1)

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_several(cls, source: Any) -> Any:
        return (source,) if isinstance(source, str) else source

    @model_validator(mode="after")
    def _each_bundle_once(self) -> FrontRecipe:
        paths = [path.resolve() for path in (self.teacher, *self.nets, *self.pairs)]
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"teacher, nets and pairs name bundle {path} more than once")
        return self

    @property
    def precisions(self) -> tuple[str, ...]:
        """Engine sets that get rows: the float32 graphs first."""
        return (FLOAT32, *self.engines)
