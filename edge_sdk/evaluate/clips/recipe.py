"""Settings of ``edge-sdk evaluate`` for a clip classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from edge_sdk.manifest import FLOAT32
from edge_sdk.settings import Settings
from edge_sdk.video.uri import SourceText


class ClipEvaluateRecipe(Settings):
    """What is compared, over which clips, and how often. Every bundle follows the schedule that it holds.

    Args:
        bundle: the clip classifier to evaluate, the row "student".
        source: URI of a list of labelled clips, see :func:`edge_sdk.video.labelled.open_clips`.
        teacher: bundle of the teacher. Every row is compared with its time; None: with the student's.
        rival: bundle to compare with, such as the same student trained without a teacher.
        others: further bundles, each with a row under its folder's name.
        engines: engine sets of the student, such as ``"onnxruntime-int8"``, that get rows beside the float32 graphs;
            each of the other bundles gets a row for each that it has too.
        length: frames of a clip, spread evenly over it as in training; None for that of the bundles' schedules. A
            shorter clip is an error.
        limit: most clips to read; None for all.
        streamed: clips that are also run as one stream that knows nothing of where a clip begins; 0 for none.
        timed: clips that the timing rests on; all bundles run on all of them in turn.
        repeats: runs that the timing rests on.
        threads: threads of ONNX Runtime; None leaves them as they are.
        out: folder for the JSON and the HTML report; None where only the table is wanted.
    """

    bundle: Path
    source: SourceText
    teacher: Path | None = None
    rival: Path | None = None
    others: tuple[Path, ...] = ()
    engines: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    length: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    streamed: int = Field(default=60, ge=0)
    timed: int = Field(default=6, ge=1)
    repeats: int = Field(default=5, ge=1, le=1000)
    threads: int | None = Field(default=None, ge=1)
    out: Path | None = None

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(engines)) != len(engines) or FLOAT32 in engines:
            raise ValueError(f"each engine once, and not {FLOAT32}, which is always there")
        return engines
