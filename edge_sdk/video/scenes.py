"""Generated scenes as streams: every frame of a scene is a function of its index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from edge_sdk.video.base import Selection, SourceBase
from edge_sdk.video.frame import Frame


class SceneSize(Protocol):
    """What a stream asks of a scene's settings: height and width in pixels, frames a second."""

    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def fps(self) -> float: ...  # noqa: D102


class Scene(Protocol):
    """What a stream asks of a scene."""

    @property
    def settings(self) -> SceneSize:
        """Its size and rate."""
        ...

    def __len__(self) -> int: ...

    def frame_at(self, index: int) -> Frame:
        """Frame ``index`` with its truth."""
        ...


S = TypeVar("S", bound=Scene)


class SceneSource(SourceBase, Generic[S]):
    """A scene as a stream; ``scene`` gives random access to its frames.

    Args:
        scene: the clip.
        selection: which frames to deliver.
        uri: how messages name the source.
    """

    def __init__(self, scene: S, selection: Selection | None, uri: str) -> None:
        super().__init__(uri)
        self.scene = scene
        self._selection = selection or Selection()
        self._selection.require_any(len(scene), uri)
        self.size_hw = (scene.settings.height, scene.settings.width)
        self.fps = scene.settings.fps / self._selection.stride
        self.frame_count = self._selection.count(len(scene))

    def _frames(self) -> Iterator[Frame]:
        for seq, index in enumerate(self._selection.indices(len(self.scene))):
            yield replace(self.scene.frame_at(index), seq=seq)
            self._require_open()
