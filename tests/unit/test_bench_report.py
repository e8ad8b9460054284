"""The bench report: whole, needs nothing else, and says in words what was not measured."""

from __future__ import annotations

import re

import pytest

from edge_sdk.bench import report, statistics
from edge_sdk.bench.choice import Choice
from edge_sdk.bench.compare import compare
from edge_sdk.bench.document import JSON_NAME, REPORT_NAME, SUBJECT, BenchDocument, TelemetryCost
from edge_sdk.bench.figures import Estimate, Memory
from edge_sdk.bench.sheets import Sheet
from edge_sdk.bench.statistics import compute
from edge_sdk.bench.table import renderables
from edge_sdk.bench.wording import conditions, gain, growth, row_text, schedule_text
from edge_sdk.errors import OutputError
from edge_sdk.runtime.schedule import AlwaysSchedule, ChangeSchedule, EverySchedule, ExternalSchedule
from tests.bench_reports import long_run, many_rows
from tests.bench_world import make_document

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

SECTIONS = (
    "rows", "time", "distribution", "stages", "accuracy", "cost", "cold", "memory", "worst", "conditions", "bundles"
)  # fmt: skip
PLOTS = ("timeline", "detail", "tail-camera", "tail-saturated", "stages", "accuracy", "memory")
OUTSIDE = ("http", "<link", "<script", "@import", 'src="', "xmlns", "url(//")


@pytest.fixture(scope="module")
def document():
    return make_document(periods=6)


@pytest.fixture(scope="module")
def html(document):
    return report.render(document)


def plain(html):
    """The text that a reader sees."""
    return " ".join(
        re.sub(r"<[^>]*>", " ", re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)).split()
    )


def drawn(html):
    return re.findall(r'<svg[^>]*>.*?id="([\w-]+?)-figure_1"', html, flags=re.DOTALL)


def without(document, **changes):
    return document.model_copy(update=changes)


def test_the_report_is_whole_and_needs_nothing_else(document, html):
    assert html.rstrip().endswith("</html>")
    for section in SECTIONS:
        assert f'<section id="{section}">' in html
    assert drawn(html) == list(PLOTS)
    for outside in OUTSIDE:
        assert outside not in html, outside
    assert not re.search(r"#0[123][0-9a-f]{4}\b", html), "a stand-in colour is left"
    assert html.count("<figcaption><strong>") == len(PLOTS)
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_figures_of_the_document_are_in_the_tables(document, html):
    text = plain(html)
    figures = document.figures
    subject = figures.row(SUBJECT, "saturated")
    for row in document.rows:
        assert f"</span>{row.name}<small>" in html
    assert f"{subject.latency().mean_ms.value:.1f}" in text
    assert f"{subject.speedup.value:.2f}×" in text
    assert f"{figures.cost['all'].share:.2%}" in text
    assert document.verdict.grade in html
    for reason in (*document.verdict.reasons, *document.verdict.remarks):
        assert reason.replace("'", "&#39;") in html
    worst = figures.worst[0]
    assert f"{worst.seq}, round {worst.round}" in text
    for _, value in conditions(document, figures):
        assert value in text.replace("&#39;", "'")


def test_what_the_readings_took_is_told(document):
    cost = TelemetryCost(readings=4, median_ms=2.0, worst_ms=12.0, cpu_ms=6.0)
    machine = document.machine.model_copy(update={"telemetry_cost": cost})
    told = dict(conditions(document.model_copy(update={"machine": machine}), document.figures))["telemetry"]
    assert told == "sysfs; 4 readings of 2.00 ms, at most 12.0 ms; 1.50 ms of processor time each"
    assert dict(conditions(document, document.figures))["telemetry"] == "sysfs"  # of an older document


def test_gain_is_against_every_baseline(document):
    text = gain(document, document.figures)
    assert re.match(
        r"A frame takes 10\.\d ms on average: 1\.7\d times as fast as the teacher on every frame \(", text
    )
    assert "-1.0 points;" in text
    assert re.search(r"2\.\d\d times as slow as copying the keyframe's answer, \+7\.0 points", text)
    assert text.endswith("Points are of mIoU against labels.")


def test_what_others_wrote_is_escaped(document):
    bad = "<script>alert(1)</script> $x_1$ & 100%"
    rows = tuple(row.model_copy(update={"name": bad} if row.name == "copy" else {}) for row in document.rows)
    blocks = tuple(
        block.model_copy(update={"row": bad} if block.row == "copy" else {}) for block in document.blocks
    )
    readings = tuple(
        reading.model_copy(update={"temperature_c": {bad: 50.0}, "clock_mhz": {bad: 1000.0}})
        for reading in document.readings
    )
    html = report.render(
        document.model_copy(
            update={
                "rows": rows,
                "blocks": blocks,
                "readings": readings,
                "source": document.source.model_copy(update={"uri": bad}),
                "conditions": document.conditions.model_copy(update={"cpu": bad, "packages": {bad: bad}}),
                "bundles": tuple(
                    bundle.model_copy(update={"name": bad, "path": bad}) for bundle in document.bundles
                ),
                "machine": document.machine.model_copy(
                    update={"engine_report": {bad: bad}, "accelerator": bad}
                ),
            }
        ),
        choice=Choice(row=bad, why=bad, unmet=(bad,)),
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; $x_1$ &amp; 100%") > 10


NOT_CAMERA = "Not measured at camera pace; shown saturated instead."


@pytest.mark.parametrize(
    ("changes", "said", "gone"),
    [
        ({"bare": ()}, "Not measured: nothing was run bare in this run.", ()),
        (
            {"readings": ()},
            "Not measured: this machine told nothing of its memory. | Clocks and temperatures: not told by this "
            "machine. | Not told by this machine: clocks, temperatures, power.",
            ("memory",),
        ),
        ({"bundles": ()}, "Bench of bundle", ()),
    ],
    ids=["bare", "readings", "bundles"],
)
def test_what_is_missing_is_said(document, changes, said, gone):
    html = report.render(without(document, **changes))
    for words in said.split(" | "):
        assert words in plain(html)
    assert drawn(html) == [name for name in PLOTS if name not in gone]


@pytest.mark.parametrize(
    ("mode", "said", "gone"),
    [
        (
            "camera",
            f"{NOT_CAMERA} | Not measured: no row ran at camera pace. | The subject answered no frame at camera pace, "
            "30 frames/s: not measured.",
            ("tail-camera",),
        ),
        (
            "saturated",
            "What is gained is not known | Not measured: no row ran saturated. | The subject answered no frame "
            "saturated: not measured.",
            ("tail-saturated",),
        ),
    ],
)
def test_a_mode_that_was_not_run_is_said(document, mode, said, gone):
    html = report.render(without(document, blocks=tuple(b for b in document.blocks if b.mode != mode)))
    for words in said.split(" | "):
        assert words in plain(html)
    assert drawn(html) == [name for name in PLOTS if name not in gone]


def test_no_scores(document):
    rows = tuple(row.model_copy(update={"labels": None, "agreement": None}) for row in document.rows)
    html = report.render(without(document, rows=rows))
    assert "Not measured: no row of this run was scored, which needs a clip of frames." in plain(html)
    assert "Accuracy was not measured." in plain(html)
    assert ">mIoU</th>" not in html
    assert "accuracy" not in drawn(html)


def test_a_row_without_a_score_is_named(document):
    rows = tuple(
        row.model_copy(update={"labels": None, "agreement": None} if row.name == "flow" else {})
        for row in document.rows
    )
    text = plain(report.render(without(document, rows=rows)))
    assert "warping it with optical flow, accuracy not compared." in text
    assert "Not scored: flow." in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2_970_000.0, "+2.97 MB an hour (+2.90 to +3.10)"),
        (3_598_910_000.0, "+3599 MB an hour (+3514 to +3756)"),
    ],
)
def test_growth_in_words(value, text):
    slope = Estimate(value=value, low=value * 2.9 / 2.97, high=value * 3.1 / 2.97)
    memory = Memory(
        first_bytes=1, last_bytes=2, peak_bytes=2, growth_bytes_per_hour=slope, growth_bytes_per_frame=None
    )
    assert growth(memory) == text
    assert (
        growth(memory.model_copy(update={"growth_bytes_per_hour": None}))
        == "growth not known, too few readings"
    )


def test_agreement_where_there_are_no_labels(document):
    rows = tuple(row.model_copy(update={"labels": None}) for row in document.rows)
    html = report.render(without(document, rows=rows))
    assert "agreement with the teacher (mIoU)" in html
    assert ">mIoU</th>" not in html
    assert ">agreement</th>" in html


def test_one_row_and_one_round():
    html = report.render(make_document(rows=(SUBJECT,), rounds=1, periods=2))
    assert "no baseline was measured beside it, so what is gained is not known" in plain(html)
    assert drawn(html) == list(PLOTS)
    # without a second round there is no interval
    assert (
        " to " not in re.search(r'<section id="rows">.*?</section>', html, re.DOTALL)[0].split("<tbody>")[1]
    )


def test_no_frame_at_all(document):
    html = report.render(without(document, blocks=(), readings=()))
    assert "there is nothing to show" in plain(html)
    assert drawn(html) == []


def test_only_keyframes_at_one_time():
    frames = make_document(rows=(SUBJECT,), interval=1, noise=0.0, between=0.0, periods=3)
    assert drawn(report.render(frames)) == list(PLOTS)


def test_drops_throttling_and_the_slowest(tmp_path):
    document = long_run()
    html = report.render(document)
    text = plain(html)
    dropped = document.figures.row(SUBJECT, "camera").deadline.dropped
    assert dropped > 5
    assert f"Crosses: {dropped} frames that were never answered." in text
    assert f"dropped ({dropped})" in html
    assert "Invalid: the machine was throttled" in text
    assert "gpu: thermal" in text
    assert ">throttled</text>" in html
    assert "waited for the frame before" in html
    assert "Of each kind of sensor the 4 highest are drawn; the table has all." in text
    assert re.search(r"a stroke reaches from the fastest to the slowest of a kind within [\d.]+ s", text)


@pytest.mark.slow
def test_an_hour_stays_small():
    document = long_run(periods=7200, rounds=3)
    camera = [block for block in document.blocks if block.mode == "camera"]
    assert sum(len(block.frames) for block in camera) > 100_000
    assert len(report.render(document).encode()) < 1_000_000


def test_a_choice_is_marked():
    document = many_rows()
    choice = Choice(row="K=5 tensorrt-int8", why="the fastest of 24 rows", unmet=())
    html = report.render(document, choice=choice)
    assert "</span>K=5 tensorrt-int8 (chosen)</td>" in html
    assert ">chosen</text>" in html
    assert "the fastest of 24 rows." in plain(html)
    html = report.render(
        document, choice=Choice(row=None, why="none keeps them", unmet=("max_ms: 2 ms over",))
    )
    assert ">chosen</text>" not in html
    assert '<p class="warn">max_ms: 2 ms over</p>' in html


def test_a_comparison_is_a_section(document):
    found = compare(make_document(periods=6, seed=5, slower={"d": 0.8}), document)
    html = report.render(document, found)
    text = plain(html).replace("&#39;", "'").replace("&gt;", ">")
    assert '<section id="comparison">' in html
    assert found.worse
    for cells in found.rows():
        for cell in cells:
            assert cell in text
    for note in found.notes():
        assert note in text


def test_files_are_written_whole_or_not_at_all(document, tmp_path, monkeypatch):
    page = report.write_report(document, tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / REPORT_NAME
    assert BenchDocument.load(page.parent / JSON_NAME) == document
    assert sorted(path.name for path in page.parent.iterdir()) == sorted((JSON_NAME, REPORT_NAME))
    before = page.read_bytes()

    def broken(*_, **__):
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "fill", broken)
    with pytest.raises(RuntimeError, match="no page"):
        report.write_report(document.model_copy(update={"bundles": ()}), page.parent)
    assert page.read_bytes() == before
    assert BenchDocument.load(page.parent / JSON_NAME) == document


@pytest.mark.parametrize(
    "use",
    [
        lambda document, folder: report.write_report(document, folder),
        lambda document, _: renderables(document),
        lambda document, _: document.to_json(),
        lambda document, folder: report.write_report(document, folder, figures=document.figures),
    ],
)
def test_figures_are_computed_once(document, tmp_path, monkeypatch, use):
    counted = []
    monkeypatch.setattr(statistics, "compute", lambda of: counted.append(of) or compute(of))
    use(document, tmp_path)
    assert counted == [document]


def test_a_folder_that_is_a_file_is_refused(document, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*cannot be written"):
        report.write_report(document, tmp_path / "file")


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (AlwaysSchedule(), "every frame"),
        (EverySchedule(interval=1), "every frame"),
        (EverySchedule(interval=7), "every 7 frames"),
        (ChangeSchedule(threshold=4.5), "on a change above 4.5 grey levels"),
        (
            ChangeSchedule(threshold=4, max_interval=9),
            "on a change above 4 grey levels, at most 9 frames apart",
        ),
        (ExternalSchedule(), "on request"),
    ],
)
def test_schedules_in_words(schedule, text):
    assert schedule_text(schedule) == text


def test_a_row_says_what_its_name_does_not():
    row = many_rows().row("K=5 tensorrt-int8")
    assert row_text(row) == ""
    assert row_text(row.model_copy(update={"name": "quick"})) == "tensorrt-int8, keyframes every 5 frames"
    assert row_text(row.model_copy(update={"background": True})) == "keyframes in the background"


def test_sheets_have_a_cell_for_every_heading(document):
    from edge_sdk.bench import sheets

    figures = document.figures
    made = [
        *(sheets.rows(document, figures, mode) for mode in ("saturated", "camera")),
        *(sheets.stages(document, figures, mode) for mode in ("saturated", "camera")),
        sheets.cost(figures), sheets.cold(document, figures), sheets.memory(figures), sheets.sensors(figures),
        sheets.worst(document, figures), sheets.comparison(compare(document, document)),
    ]  # fmt: skip
    for sheet in made:
        assert isinstance(sheet, Sheet)
        assert sheet.lines
        assert {len(line.cells) for line in sheet.lines} == {len(sheet.headings)}
