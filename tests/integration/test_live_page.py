"""The live page of a real run in a real browser: what a person would see is looked at, script errors included."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from itertools import pairwise

import pytest

from edge_sdk import EdgeRunner, EverySchedule, Frame, open_source
from edge_sdk.sensors import SensorReader
from edge_sdk.serve import LiveServer, ServeSettings
from tests.browser import MISSING, Browser, find_chromium
from tests.graphs import residual
from tests.machine_files import orin, policy, write
from tests.serve_world import until

pytest.importorskip("cv2")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

HEIGHT, WIDTH, INTERVAL = 96, 128, 5
LOST_EVERY = 30

# A number for the picture as it is shown now.
PICTURE = """(() => {
  const image = document.getElementById("picture"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data.reduce((sum, byte) => (sum * 31 + byte) % 1e9, 7);
})()"""
BARS = """[...document.querySelectorAll("#strip rect")].map(
  (bar) => [bar.getAttribute("class"), +bar.getAttribute("height")])"""
COUNT = "document.querySelectorAll('#strip rect').length"
FRAMES = "+document.getElementById('frames').textContent"
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def chromium():
    with Browser() as opened:
        yield opened


@pytest.fixture
def browser(chromium):
    yield chromium
    chromium.leave()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return residual((HEIGHT, WIDTH)).write(
        tmp_path_factory.mktemp("bundles") / "pair", EverySchedule(interval=INTERVAL)
    )


@contextmanager
def run(bundle, **settings):
    """A page of a run that answers 100 frames a second and loses one in thirty."""
    stop = threading.Event()
    scene = open_source(f"synthetic:shapes?height={HEIGHT}&width={WIDTH}&frames=40&seed=3&speed=2")
    images = [frame.image for frame in scene]

    def loop():
        seq = 0
        while not stop.wait(0.01):
            seq += 2 if seq % LOST_EVERY == LOST_EVERY - 2 else 1
            frame = Frame(images[seq % len(images)], seq, seq / 100)
            page.show(frame, runner(frame))

    asked = ServeSettings(**{"port": 0, "history": 120, **settings})
    with EdgeRunner(bundle, threads=1) as runner, LiveServer(runner, scene, asked) as page:
        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield page
        finally:
            stop.set()
            thread.join()


def test_the_page_shows_frames_latency_and_keyframes(browser, bundle):
    with run(bundle) as page:
        browser.open(page.url)
        browser.until(f"{COUNT} === 120")
        assert browser.value(STATUS) == "running"
        assert browser.value("document.title") == "tiny-residual - edge_sdk"
        assert browser.value("document.getElementById('source').textContent").startswith("synthetic:shapes")

        # frames: of the right size, and moving
        assert browser.until("document.getElementById('picture').naturalWidth") == WIDTH
        before = browser.value(PICTURE)
        browser.until(f"{PICTURE} !== {before}")
        assert page.viewers == 1

        # latency by kind of step: every bar has a height and a colour of its kind
        bars = browser.value(BARS)
        kinds = [kind for kind, _ in bars]
        assert set(kinds) == {"keyframe", "delta"}
        assert all(height >= 1 for _, height in bars)
        colours = browser.value(
            "['keyframe', 'delta'].map((kind) => getComputedStyle(document.querySelector('rect.' + kind)).fill)"
        )
        assert colours == ["rgb(232, 89, 12)", "rgb(28, 126, 214)"]
        assert "frame" in browser.value("document.querySelector('#strip rect title').textContent")

        # keyframes: marked, one mark each, at most INTERVAL apart; more where frames were lost
        marks, keyframes = browser.value(
            "['polygon.mark', 'rect.keyframe'].map((what) => document.querySelectorAll('#strip ' + what).length)"
        )
        assert marks == keyframes >= 120 // INTERVAL
        places = [place for place, kind in enumerate(kinds) if kind == "keyframe"]
        assert max(after - place for place, after in pairwise(places)) <= INTERVAL
        assert browser.value("document.querySelectorAll('#strip line.gap').length") >= 2
        ages = browser.value("document.querySelector('#strip polyline').getAttribute('points')").split()
        assert len(ages) == 120

        # figures: they are there, and go on
        count = browser.value(FRAMES)
        browser.until(f"{FRAMES} > {count}")
        assert browser.value("+document.getElementById('dropped').textContent") > 0
        assert browser.value("document.getElementById('keyframe-ms').textContent").endswith(" ms")
        assert browser.value("+document.getElementById('rate').textContent") > 0
        assert browser.complaints == []


def test_what_is_shown_fits_into_a_window_and_a_telephone(browser, bundle):
    with run(bundle) as page:
        browser.open(page.url)
        browser.until(f"{COUNT} > 5")
        wide = "document.documentElement.scrollWidth <= window.innerWidth"
        assert browser.value(wide)
        assert browser.value(
            "document.getElementById('strip').getBoundingClientRect().bottom <= window.innerHeight"
        )
        browser.resize(380, 700)
        try:
            assert browser.value(wide)
        finally:
            browser.resize(1200, 860)


def test_a_token_opens_the_page_and_all_that_it_loads(browser, bundle):
    with run(bundle, host="0.0.0.0") as page:
        address = f"http://127.0.0.1:{page.port}/"
        browser.open(address)
        assert browser.until("document.body && document.body.innerText").startswith("A token is needed")
        browser.open(address + "?" + page.url.partition("?")[2])
        browser.until("document.getElementById('picture') && document.getElementById('picture').naturalWidth")
        browser.until(f"{COUNT} > 5")
        # Without the token the page and its icon are refused; with it, nothing is.
        assert {complaint.partition(" http")[2].rpartition("/")[2] for complaint in browser.complaints} <= {
            "",
            "favicon.ico",
        }
        assert all("401" in complaint for complaint in browser.complaints)


def test_a_hidden_page_watches_nothing(browser, bundle):
    hide = """Object.defineProperty(document, "hidden", {{value: {}, configurable: true}});
        document.dispatchEvent(new Event("visibilitychange"))"""
    with run(bundle) as page:
        browser.open(page.url)
        until(lambda: page.viewers == 1, seconds=30)
        browser.value(hide.format("true"))
        until(lambda: page.viewers == 0, seconds=30)
        browser.value(hide.format("false"))
        until(lambda: page.viewers == 1, seconds=30)


def test_the_page_says_when_the_run_is_over_and_goes_on_with_the_next(browser, bundle):
    with run(bundle, history=2000) as page:
        port = page.port
        browser.open(page.url)
        browser.until(f"{COUNT} > 100")
    assert browser.until(f"{STATUS} !== 'running' && {STATUS}") == "the run has ended, or cannot be reached"
    with run(bundle, history=2000, port=port) as page:
        browser.until(f"{STATUS} === 'running'")
        # All bars are the new run's: it has not answered more frames than there are bars, or the other way round.
        assert browser.until(f"{COUNT} > 10 && {FRAMES} - {COUNT} + 1") == 1
        until(lambda: page.viewers == 1, seconds=30)
        before = browser.value(PICTURE)
        browser.until(f"{PICTURE} !== {before}")


def test_the_page_shows_clocks_and_what_holds_them_down(browser, bundle, tmp_path, monkeypatch):
    write(orin(tmp_path), {"sys/class/thermal/cooling_device2/cur_state": 1})
    monkeypatch.setattr("edge_sdk.serve.watch.SensorReader", lambda root: SensorReader(tmp_path))
    with run(bundle) as page:
        browser.open(page.url)
        browser.until(f"{COUNT} > 5")
        shown = browser.value("document.getElementById('figures').innerText")
        for text in (
            "cpu0",
            "1190 MHz",
            "306 MHz",
            "2140 rpm",
            "6.20 W",
            "throttled",
            "gpu-throttle-alert: state 1",
        ):
            assert text in shown
        bad = browser.value("[...document.querySelectorAll('#figures .bad')].map((cell) => cell.textContent)")
        assert "gpu-throttle-alert: state 1" in bad
    assert browser.complaints == []


def test_the_clocks_of_many_cores_are_shown_as_a_range(browser, bundle, tmp_path, monkeypatch):
    for number in range(8):
        write(
            tmp_path, policy(number, 2_000_000 + 100_000 * number, 400_000, 4_200_000, 4_200_000, "powersave")
        )
    monkeypatch.setattr("edge_sdk.serve.watch.SensorReader", lambda root: SensorReader(tmp_path))
    with run(bundle) as page:
        browser.open(page.url)
        browser.until(f"{COUNT} > 5")
        shown = browser.value("document.getElementById('figures').innerText").split("\n")
    assert "cpu0" not in shown
    for name, text in (("slowest cpu", "2000 MHz"), ("fastest cpu", "2700 MHz")):
        assert text in shown[shown.index(name) + 1 :]
    assert browser.complaints == []
