"""The bench report in a real browser: what a person would see is measured, on a phone and on a desk, light and dark."""

from __future__ import annotations

import pytest

from edge_sdk.bench.choice import Choice
from edge_sdk.bench.compare import compare
from edge_sdk.bench.report import write_report
from tests.bench_reports import long_run, many_rows
from tests.bench_world import make_document
from tests.browser import MISSING, Browser, find_chromium

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytestmark = pytest.mark.skipif(find_chromium() is None, reason=MISSING)

# A sheet between margins of 1 cm, at 96 pixels an inch.
A4_PIXELS = 718
READY = "document.readyState === 'complete' && document.querySelectorAll('svg').length"
# Of every plot: its name, its size, and those of its elements that reach out of it by more than a pixel.
PLOTS = """[...document.querySelectorAll('svg')].map((svg) => {
  const box = svg.getBoundingClientRect();
  const out = [...svg.querySelectorAll('path, text, use')].filter((one) => {
    if (one.closest('defs, clipPath') || one.closest('[clip-path]')) return false;
    const at = one.getBoundingClientRect();
    return at.left < box.left - 1 || at.top < box.top - 1 || at.right > box.right + 1 || at.bottom > box.bottom + 1;
  }).map((one) => one.textContent.trim() || one.outerHTML.slice(0, 80));
  return [svg.querySelector('g').id.replace('-figure_1', ''), box.width, box.height, out,
          svg.querySelectorAll('path').length];
})"""
# Pairs of texts within one plot that cover each other by more than a pixel either way.
OVERLAPS = """[...document.querySelectorAll('svg')].flatMap((svg) => {
  const texts = [...svg.querySelectorAll('text')].map((one) => [one.textContent.trim(), one.getBoundingClientRect()]);
  const shared = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  return texts.flatMap(([name, a], place) => texts.slice(place + 1).filter(
    ([, b]) => shared(a, b, 'left', 'right') > 1 && shared(a, b, 'top', 'bottom') > 1
  ).map(([other]) => [name, other]));
})"""
OVERFLOW = "[document.documentElement.scrollWidth, window.innerWidth]"
# Tables and plots that are wider than the page, and whether each can be scrolled by itself.
SCROLLS = """[...document.querySelectorAll('.wide')].filter((one) => one.scrollWidth > one.clientWidth + 1).map(
  (one) => getComputedStyle(one).overflowX)"""
# Least contrast of any text against the page, as WCAG counts it.
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255).map(
      (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll('svg text, p, td, th, dd, dt, li, strong')].map((one) => {
    const style = getComputedStyle(one);
    const ink = light(one.closest('svg') ? style.fill : style.color);
    return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
  }));
})()"""


def compared():
    document = make_document(periods=6)
    return document, compare(make_document(periods=6, seed=5, slower={"d": 0.8}), document), None


def chosen():
    return many_rows(), None, Choice(row="K=5 tensorrt-int8", why="the fastest of 24 rows")


def stalled():
    return long_run(), None, None


def bare():
    document = make_document(periods=2, rounds=1, rows=("subject",))
    blocks = tuple(block for block in document.blocks if block.mode != "camera")
    rows = tuple(row.model_copy(update={"labels": None, "agreement": None}) for row in document.rows)
    return (
        document.model_copy(update={"blocks": blocks, "readings": (), "bare": (), "rows": rows}),
        None,
        None,
    )


@pytest.fixture(scope="module")
def chromium():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=[compared, chosen, stalled, bare])
def page(request, tmp_path_factory):
    document, comparison, choice = request.param()
    return write_report(document, tmp_path_factory.mktemp("report"), comparison, choice)


@pytest.fixture
def browser(chromium, page):
    yield chromium
    chromium.dark(False)
    chromium.leave()


def show(browser, page, width, dark=False):
    browser.resize(width, 900)
    if dark is not None:
        browser.dark(dark)
    browser.open(page.as_uri())
    browser.until(READY)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_overlaps_or_fails(browser, page, width):
    show(browser, page, width)
    found, inner = browser.value(OVERFLOW)
    assert found <= inner
    assert set(browser.value(SCROLLS)) <= {"auto"}
    for name, wide, high, outside, paths in browser.value(PLOTS):
        assert wide >= 300, name
        assert high >= 90, name
        assert outside == [], name
        assert paths > 5, name
    assert browser.value(OVERLAPS) == []
    assert browser.complaints == []


def test_the_checks_find_what_they_look_for(browser, page):
    show(browser, page, 1280)
    browser.value(
        """(() => {
          const text = document.querySelector('svg text');
          const twin = text.parentNode.insertBefore(text.cloneNode(true), text);
          document.querySelector('svg:last-of-type g').append(Object.assign(text.cloneNode(true), {id: 'far'}));
          document.getElementById('far').setAttribute('transform', 'translate(-90 0)');
          document.querySelector('p').style.color = getComputedStyle(document.body).backgroundColor;
          document.querySelector('h1').style.width = '3000px';
        })()"""
    )
    assert len(browser.value(OVERLAPS)) == 1
    assert sum(len(outside) for _, _, _, outside, _ in browser.value(PLOTS)) == 1
    assert browser.value(CONTRAST) == 1
    found, inner = browser.value(OVERFLOW)
    assert found > inner


def test_on_paper_everything_fits_its_width(browser, page):
    browser.printed(True)
    show(browser, page, A4_PIXELS, dark=None)
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    found, inner = browser.value(OVERFLOW)
    assert found <= inner
    assert browser.value(OVERLAPS) == []
    browser.printed(False)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_the_page(browser, page, dark):
    show(browser, page, 1280, dark)
    page_colour = browser.value("getComputedStyle(document.body).backgroundColor")
    assert page_colour == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert browser.value(CONTRAST) >= 4.5


def test_nothing_else_is_loaded(browser, page):
    show(browser, page, 1280)
    assert browser.value("performance.getEntriesByType('resource').length") == 0
    assert browser.value("document.scripts.length") == 0
