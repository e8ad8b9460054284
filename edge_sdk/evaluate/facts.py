"""What a report says about the frames and bundles that it rests on."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import JsonValue

from edge_sdk.bundle import Bundle
from edge_sdk.evaluate.clip import Clip
from edge_sdk.settings import Settings

F = TypeVar("F", bound="ClipFacts")


class ClipFacts(Settings):
    """The frames: where from, how many, how many labelled, size and rate."""

    uri: str
    frames: int
    labelled: int
    height: int
    width: int
    fps: float

    @classmethod
    def of(cls: type[F], clip: Clip, **more: Any) -> F:
        """Facts of a clip; ``more`` are fields of a subclass, or replace the clip's own."""
        height, width = clip.size_hw
        facts = {
            "uri": clip.uri, "frames": len(clip), "labelled": clip.labelled, "height": height, "width": width,
            "fps": clip.fps,
        }  # fmt: skip
        return cls.model_validate(facts | more)


class BundleFacts(Settings):
    """Which bundle played a part: enough to find it again and to see what made it."""

    role: Literal["subject", "pair", "teacher", "rival", "other"]
    path: str
    name: str
    method: str
    created: str
    sdk_version: str
    state_bytes: int
    sha256: dict[str, str]
    provenance: dict[str, JsonValue]

    @classmethod
    def of(cls, role: str, bundle: Bundle) -> BundleFacts:
        """Facts of a bundle."""
        manifest = bundle.manifest
        return cls.model_validate(
            {
                "role": role,
                "path": str(bundle.path),
                "name": manifest.name,
                "method": manifest.method,
                "created": manifest.created,
                "sdk_version": manifest.sdk_version,
                "state_bytes": bundle.state_bytes,
                "sha256": {name: record.sha256 for name, record in manifest.files.items()},
                "provenance": manifest.provenance,
            }
        )
