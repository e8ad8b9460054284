"""Frames in and out: sources by URI (file, folder, camera, synthetic scene) and sinks (file, PNGs, none)."""

from __future__ import annotations

from edge_sdk.video.base import Selection, VideoSource
from edge_sdk.video.camera import Camera
from edge_sdk.video.file import VideoFile
from edge_sdk.video.folder import FrameFolder
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.sink import NullSink, PngFolderSink, VideoFileSink, VideoSink, open_sink
from edge_sdk.video.source import open_source
from edge_sdk.video.synthetic import (
    SYNTHETIC_CLASSES,
    SYNTHETIC_MOTIONS,
    SYNTHETIC_PALETTE,
    SyntheticScene,
    SyntheticSettings,
    SyntheticSource,
)

__all__ = [
    "SYNTHETIC_CLASSES",
    "SYNTHETIC_MOTIONS",
    "SYNTHETIC_PALETTE",
    "Camera",
    "Frame",
    "FrameFolder",
    "NullSink",
    "PngFolderSink",
    "Selection",
    "SyntheticScene",
    "SyntheticSettings",
    "SyntheticSource",
    "Truth",
    "VideoFile",
    "VideoFileSink",
    "VideoSink",
    "VideoSource",
    "open_sink",
    "open_source",
]
