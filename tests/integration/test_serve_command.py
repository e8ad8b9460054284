"""``edge-sdk run --serve`` as a process of its own: its page, its token, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import pytest

from edge_sdk.runtime.schedule import EverySchedule
from tests.graphs import residual
from tests.serve_world import TOKEN

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")

SCENE = "synthetic:shapes?height=48&width=64&frames=1000000"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return residual((48, 64)).write(tmp_path_factory.mktemp("bundles") / "pair", EverySchedule(interval=5))


def heed_ctrl_c():
    """What runs in a shell's background, as CI may, is started with SIGINT ignored and would hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def command(bundle, *options, **variables):
    """A run that goes on until it is stopped; yields the process and the address it prints."""
    words = [sys.executable, "-m", "edge_sdk", "run", str(bundle.path), SCENE, "--threads", "1", *options]
    environment = {**os.environ, **variables}
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heed_ctrl_c,
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "live page" in line), "")
        found = re.fullmatch(r"edge-sdk: live page: (http://\S+)\n", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def get(url, **headers):
    with closing(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)) as answer:
        return answer.read()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_watched_and_ends_when_it_is_stopped(bundle, sign):
    with command(bundle, "--serve", "0") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert b"<svg" in get(url)
        state = json.loads(get(f"{url}state.json"))
        assert (state["about"]["bundle"], state["about"]["source"]) == ("tiny-residual", SCENE)
        while state["frames"] < 20:
            state = json.loads(get(f"{url}state.json"))
        assert {point[2] for point in state["points"]} == {"keyframe", "delta"}
        assert get(f"{url}healthz") == b"ok\n"
        with closing(urllib.request.urlopen(f"{url}stream.mjpg", timeout=20)) as pictures:
            assert pictures.readline() == b"--edge-sdk-frame\r\n"
            assert pictures.readline() == b"Content-Type: image/jpeg\r\n"
            process.send_signal(sign)  # with a viewer still there
            assert process.wait(20) == 128 + sign
        with pytest.raises(urllib.error.URLError):
            get(url)


@pytest.mark.parametrize(
    ("options", "variables", "token"),
    [
        (["--serve", "0.0.0.0:0"], {}, r"[\w-]{32}"),
        (["--serve", "0", "--serve-token", TOKEN], {}, TOKEN),
        (["--serve", "0"], {"EDGE_SDK_SERVE_TOKEN": TOKEN}, TOKEN),
    ],
)
def test_the_token_that_is_printed_is_the_one_that_is_demanded(bundle, options, variables, token):
    with command(bundle, *options, **variables) as (_, url):
        found = re.fullmatch(rf"http://[^:/]+:(\d+)/\?token=({token})", url)
        assert found is not None, url
        address = f"http://127.0.0.1:{found[1]}/healthz"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(address)
        assert get(f"{address}?token={found[2]}") in (b"ok\n", b"starting\n")
        assert get(address, Authorization=f"Bearer {found[2]}") in (b"ok\n", b"starting\n")
