"""Frames in and out: sources by URI (file, folder, camera, network stream, synthetic scene) and sinks."""

from __future__ import annotations

from edge_sdk.video.base import Selection, VideoSource
from edge_sdk.video.file import VideoFile
from edge_sdk.video.folder import FrameFolder
from edge_sdk.video.frame import Frame, Truth
from edge_sdk.video.joined import JoinedSource
from edge_sdk.video.labelled import ClipList, LabelledClip, open_clips
from edge_sdk.video.live import LiveSource
from edge_sdk.video.motions import MOTION_CLASSES, MotionScene, MotionSettings, MotionSource
from edge_sdk.video.several import SeveralSources, open_sources
from edge_sdk.video.signals import Stopped, exit_on_signals
from edge_sdk.video.sink import NullSink, PngFolderSink, VideoFileSink, VideoSink, open_sink
from edge_sdk.video.slot import SourceStats
from edge_sdk.video.source import open_source
from edge_sdk.video.synthetic import (
    SYNTHETIC_CLASSES,
    SYNTHETIC_MOTIONS,
    SYNTHETIC_PALETTE,
    SyntheticScene,
    SyntheticSettings,
    SyntheticSource,
)
from edge_sdk.video.watchdog import LiveSettings, SourceEvent, SourceState

__all__ = [
    "MOTION_CLASSES",
    "SYNTHETIC_CLASSES",
    "SYNTHETIC_MOTIONS",
    "SYNTHETIC_PALETTE",
    "ClipList",
    "Frame",
    "FrameFolder",
    "JoinedSource",
    "LabelledClip",
    "LiveSettings",
    "LiveSource",
    "MotionScene",
    "MotionSettings",
    "MotionSource",
    "NullSink",
    "PngFolderSink",
    "Selection",
    "SeveralSources",
    "SourceEvent",
    "SourceState",
    "SourceStats",
    "Stopped",
    "SyntheticScene",
    "SyntheticSettings",
    "SyntheticSource",
    "Truth",
    "VideoFile",
    "VideoFileSink",
    "VideoSink",
    "VideoSource",
    "exit_on_signals",
    "open_clips",
    "open_sink",
    "open_source",
    "open_sources",
]
