"""GStreamer itself takes our pipelines, where it is installed with the elements they name, as on a Jetson."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_sdk.video.gstreamer import csi_pipeline, rtsp_pipeline
from tests.rtsp_server import RtspServer

# Prints how many pictures came and their form. In a process of its own: GStreamer stays in the one that loads it.
PROGRAM = """
import ctypes, sys
gst, app = ctypes.CDLL("libgstreamer-1.0.so.0"), ctypes.CDLL("libgstapp-1.0.so.0")

class Error(ctypes.Structure):
    _fields_ = [("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p)]

pointer, text = ctypes.c_void_p, ctypes.c_char_p
for library, name, result, arguments in (
    (gst, "gst_parse_launch", pointer, [text, ctypes.POINTER(ctypes.POINTER(Error))]),
    (gst, "gst_bin_get_by_name", pointer, [pointer, text]),
    (gst, "gst_element_set_state", ctypes.c_int, [pointer, ctypes.c_int]),
    (app, "gst_app_sink_try_pull_sample", pointer, [pointer, ctypes.c_uint64]),
    (gst, "gst_sample_get_caps", pointer, [pointer]),
    (gst, "gst_caps_to_string", text, [pointer]),
):
    getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
gst.gst_init(None, None)
error = ctypes.POINTER(Error)()
pipeline = gst.gst_parse_launch((sys.argv[1] + " name=sink").encode(), ctypes.byref(error))
if error:
    sys.exit(error.contents.message.decode())
sink = gst.gst_bin_get_by_name(pipeline, b"sink")
gst.gst_element_set_state(pipeline, 4)
samples = [app.gst_app_sink_try_pull_sample(sink, 10**10) for _ in range(5)]
caps = gst.gst_caps_to_string(gst.gst_sample_get_caps(samples[0])).decode() if samples[0] else ""
print(sum(map(bool, samples)), caps)
gst.gst_element_set_state(pipeline, 1)
"""


def pulled(pipeline: str) -> str:
    """What came through ``pipeline``; skips where GStreamer or one of its elements is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, pipeline], capture_output=True, text=True, timeout=120
    )
    for missing in ("cannot open shared object", "no element"):
        if missing in done.stderr:
            pytest.skip(
                f"GStreamer is not installed with all elements: {done.stderr.strip().splitlines()[-1]}"
            )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_rtsp_pipeline_delivers_bgr_whatever_the_address_holds() -> None:
    with RtspServer() as server:
        address = server.url + '?a="b\\c!x=1"&d=e'
        told = pulled(rtsp_pipeline(address, latency_ms=50, drop=True, transport="tcp", jetson=False))
        assert told.startswith("5 video/x-raw, width=(int)64, height=(int)48")
        assert "format=(string)BGR" in told
        assert any(address in request for request in server.requests)


def test_a_csi_pipeline_delivers_bgr_of_the_size_asked_for() -> None:
    # Jetson elements replaced by ones that are everywhere: what is checked is how the parts fit together.
    text = csi_pipeline(0, size_hw=(720, 1280), fps=29.97, sensor_mode=2, flip_method=2)
    for jetson, anywhere in (
        ("nvarguscamerasrc sensor-id=0 sensor-mode=2", "videotestsrc is-live=true"),
        ("(memory:NVMM)", ""),
        ("nvvidconv flip-method=2", "videoconvert ! videoflip method=2 ! videoconvert"),
    ):
        assert jetson in text
        text = text.replace(jetson, anywhere)
    told = pulled(text)
    assert told.startswith("5 video/x-raw, width=(int)1280, height=(int)720, framerate=(fraction)30000/1001")
    assert "format=(string)BGR" in told
