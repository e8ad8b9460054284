"""Viewers that are slow, many or gone, and a run that does not notice."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from edge_sdk.errors import ClosedError
from edge_sdk.video.frame import Frame
from tests.serve_world import IMAGE, Drawn, answer, get, left_running, picture, running, server, until, viewer

pytest.importorskip("cv2")


@pytest.fixture
def task():
    return Drawn(answer().task)


def test_nothing_is_copied_or_drawn_while_nobody_watches(task):
    with server() as page, running(page, task) as shown:
        until(lambda: len(shown) > 20)
        get(page, "/")
        get(page, "/state.json")
        get(page, "/metrics")
        assert (task.copies, task.threads) == (0, [])
        with viewer(page) as response:
            assert picture(response) is not None
        assert task.copies > 0
        until(lambda: page.viewers == 0)
        until(lambda: page._pictures is not None and not page._pictures._wanted)
        before, count = task.copies, len(shown)
        until(lambda: len(shown) > count + 20)
        assert task.copies - before <= 1  # one may have been under way


def test_pictures_are_drawn_on_a_thread_of_their_own(task):
    with server() as page, running(page, task), viewer(page) as response:
        for _ in range(3):
            assert picture(response).shape == IMAGE.shape
        assert set(task.threads) == {"edge-sdk-pictures"}


@pytest.mark.parametrize(("interval", "colour"), [(1, (12, 89, 232)), (10**9, (214, 126, 28))])
def test_a_keyframe_is_marked_in_the_picture(task, interval, colour):
    black = np.zeros((240, 320, 3), np.uint8)
    with server(quality=100) as page, running(page, task, black, interval) as shown:
        until(lambda: shown)  # the first answer is a keyframe
        with viewer(page) as response:
            found = picture(response).astype(int)
    assert np.abs(found[2, 1] - colour).max() < 40  # the label's corner
    framed = np.abs(found[200, 0] - colour).max() < 40
    assert framed == (interval == 1)


def test_wide_pictures_are_made_smaller(task):
    with (
        server(max_width=100) as page,
        running(page, task, np.zeros((120, 300, 3), np.uint8)),
        viewer(page) as response,
    ):
        assert picture(response).shape == (40, 100, 3)


def test_the_rate_of_pictures_is_bounded(task):
    with server(max_fps=5) as page, running(page, task), viewer(page) as response:
        picture(response)
        began_s = time.monotonic()
        for _ in range(2):
            picture(response)
        assert time.monotonic() - began_s > 0.3  # two intervals of 200 ms, less what the first was late


def test_drawing_that_hangs_delays_neither_the_run_nor_the_figures(task):
    with server() as page:
        task.may.clear()
        with running(page, task) as shown, viewer(page):
            until(lambda: task.threads)
            count = len(shown)
            until(lambda: len(shown) > count + 100)
            assert json.loads(get(page, "/state.json")[1])["frames"] > count
            assert task.copies <= 2  # the one being drawn, and the newest
            task.may.set()


def test_a_viewer_that_reads_nothing_delays_neither_the_run_nor_other_viewers(task):
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)  # as large as JPEGs get
    with server(quality=95) as page, running(page, task, noise) as shown, closing(socket.socket()) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", page.port))
        stuck.sendall(b"GET /stream.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: page.viewers == 1)
        with viewer(page) as response:
            count = len(shown)
            for _ in range(10):
                assert picture(response) is not None
            assert len(shown) > count
            assert page.viewers == 2


def test_viewers_that_hang_up_are_forgotten(task):
    with server() as page, running(page, task):
        with viewer(page) as one, viewer(page) as two:
            assert picture(one) is not None
            assert picture(two) is not None
            assert page.viewers == 2
        until(lambda: page.viewers == 0)


def test_a_viewer_that_hangs_up_before_the_first_picture_is_forgotten():
    with server() as page:
        with viewer(page):
            until(lambda: page.viewers == 1)
        until(lambda: page.viewers == 0)


def test_a_drawing_that_fails_is_counted_logged_once_and_ends_nothing(task, caplog):
    task.error = RuntimeError("no such colour")
    with server() as page, running(page, task), viewer(page) as response, caplog.at_level(logging.ERROR):
        until(lambda: len(task.threads) > 3)
        until(lambda: json.loads(get(page, "/state.json")[1])["errors"].get("draw", 0) >= 3)
        task.error = None
        assert picture(response) is not None
        assert [record.exc_info[1].args for record in caplog.records] == [("no such colour",)]


def test_too_many_connections_are_refused_and_the_next_one_is_not():
    with server(max_connections=2) as page:
        with viewer(page), viewer(page):
            until(lambda: page.viewers == 2)
            assert get(page, "/healthz")[0].status == 503
        until(lambda: page.viewers == 0)
        until(lambda: get(page, "/healthz")[0].status == 200)


def test_closing_sends_viewers_away_and_frees_the_port(task):
    page = server().open()
    port = page.port
    with viewer(page) as response, running(page, task):
        assert picture(response) is not None
        with closing(socket.create_connection(("127.0.0.1", port))) as idle:
            until(lambda: sum(thread.name == "edge-sdk-viewer" for thread in threading.enumerate()) == 2)
            began_s = time.monotonic()
            page.close()
            assert time.monotonic() - began_s < 5
            idle.settimeout(5)
            assert idle.recv(1) == b""
        while picture(response) is not None:
            pass
    page.close()
    assert not left_running()
    with pytest.raises(ClosedError, match="live page: it is not open"):
        page.show(Frame(IMAGE, 0, 0.0), answer())
    with pytest.raises(ClosedError, match="open"):
        _ = page.url
    with server(port=port) as again:  # the port is free
        assert again.port == port
    with page:  # and it can be opened again
        assert get(page, "/metrics")[0].status == 200
