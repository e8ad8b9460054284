"""The live page over real connections: what each address gives, and to whom."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import time
from contextlib import closing
from importlib import resources

import pytest

from edge_sdk.errors import ServeError
from edge_sdk.video.frame import Frame
from tests.serve_world import IMAGE, TOKEN, answer, camera, get, left_running, server, until

pytest.importorskip("cv2")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/", 200, "text/html; charset=utf-8"),
        ("/?token=none-is-needed", 200, "text/html; charset=utf-8"),
        ("/state.json", 200, "application/json"),
        ("/state.json?after=-1", 200, "application/json"),
        ("/state.json?after=soon", 400, "text/plain; charset=utf-8"),
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/healthz", 200, "text/plain; charset=utf-8"),
        ("/favicon.ico", 404, "text/plain; charset=utf-8"),
        ("/../../etc/passwd", 404, "text/plain; charset=utf-8"),
        ("//[", 404, "text/plain; charset=utf-8"),
    ],
)
def test_each_address_on_this_machine(path, status, kind):
    with server() as page:
        response, body = get(page, path)
        assert (response.status, response.headers["Content-Type"]) == (status, kind)
        assert int(response.headers["Content-Length"]) == len(body) > 0
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        head, nothing = get(page, path, "HEAD")
        assert (head.status, nothing) == (status, b"")


@pytest.mark.parametrize(
    ("method", "body", "status"), [("POST", None, 501), ("PUT", b"x", 501), ("GET", b"x", 400)]
)
def test_nothing_can_be_sent(method, body, status):
    with server() as page:
        assert get(page, "/", method, body)[0].status == status


@pytest.mark.parametrize("path", ["/", "/stream.mjpg", "/state.json", "/metrics", "/healthz", "/nothing"])
def test_other_machines_need_the_token_for_every_address(path):
    with server(host="0.0.0.0") as page:
        token = page.url.partition("?token=")[2]
        assert re.fullmatch(r"[\w-]{32}", token)
        response, body = get(page, path)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert token.encode() not in body
        assert get(page, f"{path}?token={token[:-1]}")[0].status == 401
        if path != "/stream.mjpg":
            right = 404 if path == "/nothing" else 200
            assert get(page, f"{path}?token={token}")[0].status == right
            assert get(page, path, Authorization=f"Bearer {token}")[0].status == right


def test_two_servers_draw_different_tokens():
    with server(host="0.0.0.0") as one, server(host="0.0.0.0") as other:
        assert one.url.partition("?")[2] != other.url.partition("?")[2]


def test_a_token_that_was_given_is_demanded_on_this_machine_too():
    with server(token=TOKEN) as page:
        assert page.url == f"http://127.0.0.1:{page.port}/?token={TOKEN}"
        assert get(page, "/")[0].status == 401
        assert get(page, f"/?token={TOKEN}", Host="jetson.local")[0].status == 200


def test_another_sites_name_for_this_machine_is_refused():
    with server() as page:
        assert get(page, "/state.json", Host="evil.example")[0].status == 403
        assert get(page, "/state.json", Host="localhost:1")[0].status == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", r"http://127\.0\.0\.1:\d+/"),
        ("localhost", r"http://localhost:\d+/"),
        ("0.0.0.0", r"http://[^:0][^:]*:\d+/\?token=.{32}"),
    ],
)
def test_the_url_is_one_that_can_be_opened(host, expected):
    with server(host=host) as page:
        assert re.fullmatch(expected, page.url)


def test_ipv6():
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with server(host="::1") as page:
        assert page.url == f"http://[::1]:{page.port}/"
        with closing(http.client.HTTPConnection("::1", page.port, timeout=10)) as connection:
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200


def test_the_page_needs_nothing_from_elsewhere_and_says_so_to_the_browser():
    text = resources.files("edge_sdk.serve").joinpath("page.html").read_text()
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not an address
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
    with server() as page:
        first, body = get(page, "/")
        policy = first.headers["Content-Security-Policy"]
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
        assert policy.startswith("default-src 'none'")
        assert body.decode().count(f'nonce="{nonce}"') == 2
        assert get(page, "/")[0].headers["Content-Security-Policy"] != policy


def test_the_state_over_the_wire():
    with server(camera()) as page:
        for seq in range(3):
            page.show(Frame(IMAGE, seq, 99.0), answer(seq, ms=5 + seq))
        state = json.loads(get(page, "/state.json?after=0")[1])
        assert [point[0] for point in state["points"]] == [1, 2]
        assert (state["frames"], state["history"], state["stale_s"], state["viewers"]) == (3, 240, 10, 0)
        assert b'edge_sdk_frames_total{kind="delta"} 3\n' in get(page, "/metrics")[1]


def test_health_is_whether_answers_come():
    with server(stale_s=0.5) as page:
        assert get(page, "/healthz")[1] == b"starting\n"
        page.show(Frame(IMAGE, 0, 0.0), answer(at_s=time.monotonic()))
        assert get(page, "/healthz")[1] == b"ok\n"
        page.show(Frame(IMAGE, 1, 0.0), answer(1, at_s=time.monotonic() - 2))
        response, body = get(page, "/healthz")
        assert response.status == 503
        assert re.fullmatch(rb"no answer for [23]\.\d s\n", body)


def test_a_run_that_never_answers_is_not_healthy():
    with server(stale_s=0.05) as page:
        until(lambda: get(page, "/healthz")[0].status == 503)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(ServeError, match=rf"cannot listen on {host} port 0: .* Give another port"):
        server(host=host).open()
    assert not left_running()


def test_a_port_that_is_taken_is_refused_by_name():
    with server() as page, pytest.raises(ServeError, match=f"port {page.port}: Address already in use"):
        server(port=page.port).open()


def test_requests_leave_nothing_on_stderr_and_no_token_in_the_log(capfd, caplog):
    with caplog.at_level(logging.DEBUG), server(token=TOKEN) as page:
        get(page, f"/?token={TOKEN}")
        get(page, "/nothing")
    assert capfd.readouterr() == ("", "")
    assert TOKEN not in caplog.text
