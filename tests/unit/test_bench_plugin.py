"""The fixture ``edge_bench`` in test sessions of its own, over documents instead of measurements."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_sdk
import edge_sdk.bench
import edge_sdk.bench.judge  # before the sessions in this process, each of which forgets what it imports
import edge_sdk.bench.report
from edge_sdk.bench import BenchDocument, BenchRecipe
from edge_sdk.errors import BundleError, DependencyError
from tests.bench_world import make_document

pytest_plugins = ("pytester",)

PLUGIN = "edge_sdk.bench.plugin"
# Steady and long enough to be sound; in every other document something is changed.
SOUND = make_document(rounds=12, periods=6, noise=0.001, between=0.001)
FAKED = make_document(rounds=2, periods=4)
THROTTLED = make_document(rounds=2, periods=4, throttled=("gpu: thermal",))


class Bench:
    """Stands in for the measurement: answers with a document and keeps what it was asked."""

    def __init__(self) -> None:
        self.document = SOUND
        self.error: Exception | None = None
        self.asked: list[tuple[BenchRecipe, Any]] = []

    def __call__(self, recipe: BenchRecipe, *, backend: Any = None, progress: Any = None) -> BenchDocument:
        self.asked.append((recipe, backend))
        if self.error is not None:
            raise self.error
        return self.document


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench()
    monkeypatch.setitem(vars(edge_sdk.bench), "bench", found)
    return found


Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one test, or a whole file of them, with the plug-in."""

    def of(body: str, *options: str) -> pytest.RunResult:
        if "def test" not in body:
            body = "def test_camera(edge_bench):\n    " + body
        monkeypatch.setenv("COLUMNS", "500")
        # Where one of these is set, pytest's summary repeats every line of a failure.
        for name in ("CI", "BUILD_NUMBER"):
            monkeypatch.delenv(name, raising=False)
        pytester.makepyfile("from edge_sdk.bench import times, within\n" + body)
        return pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *options)

    return of


def said(result: pytest.RunResult, start: str) -> list[str]:
    return [line for line in result.outlines if line.startswith(start)]


def summary(result: pytest.RunResult) -> list[str]:
    begin = next(i for i, line in enumerate(result.outlines) if " edge_sdk latency tests " in line)
    return [line for line in result.outlines[begin + 1 :] if line.startswith("test_")]


def test_a_budget_that_holds_passes_and_is_summed_up(run: Run, bench: Bench) -> None:
    result = run('edge_bench("bundle", fps=30, p99_ms=40, miss_rate=0.02, mean_ms=times(0.8, "teacher"))')
    result.assert_outcomes(passed=1)
    ((recipe, backend),) = bench.asked
    assert (recipe, backend) == (BenchRecipe(bundle=Path("bundle"), fps=30, accuracy=False), None)
    (line,) = summary(result)
    age = SOUND.figures.row("subject", "camera").latency()  # type: ignore[union-attr]
    assert age is not None
    assert line.startswith(f"{Path(line.split('::')[0])}::test_camera: p50 {age.p50_ms.value:.2f}, p99 ")
    assert line.endswith(" ms (age at 30 frames a second); 0.00% missed; 3 budgets held; sound")
    result.stdout.no_fnmatch_line("*warning*")


def test_a_broken_budget_fails_with_one_line_that_names_budget_figure_and_worst_frame(
    run: Run, bench: Bench
) -> None:
    result = run('edge_bench("bundle", p99_ms=15, miss_rate=0.02)')
    result.assert_outcomes(failed=1)
    (line,) = said(result, "p99_ms: ")
    worst = SOUND.figures.worst[0]
    assert "over the budget of 15.00 ms; slowest frame" in line
    assert worst.line() in line
    assert "cpu 2.00 GHz" in line
    # The one line is the whole of the message, without a traceback, and it is in pytest's own summary.
    report = result.outlines[: result.outlines.index(line) + 1]
    assert report[-2].strip("_ ") == "test_camera"
    (short,) = said(result, "FAILED ")
    assert "p99_ms: " in short
    assert summary(result)[0].endswith("1 broken; sound")
    # The worst frames are shown below.
    result.stdout.fnmatch_lines(
        [
            "*Captured edge_bench call*",
            "verdict: sound",
            "machine: a board, *",
            "slowest frames at camera pace:",
        ]
    )
    assert len([line for line in result.outlines if line.startswith("  frame ")]) == 10


def test_a_budget_that_holds_by_less_than_its_interval_is_told(run: Run) -> None:
    """Of 360 frames none was late; that does not make 0.1 % certain."""
    result = run('edge_bench("bundle", p99_ms=40, miss_rate=0.001)')
    result.assert_outcomes(passed=1)
    assert summary(result)[0].endswith("; 2 budgets held (miss_rate within the margin of error); sound")


def test_every_broken_budget_has_a_line(run: Run) -> None:
    result = run(
        'edge_bench("bundle", source="clip", p50_ms=1, mean_ms=times(0.1), min_miou=within(0.001), memory_bytes=1e9)'
    )
    result.assert_outcomes(failed=1)
    assert [len(said(result, f"{name}: ")) for name in ("p50_ms", "mean_ms", "min_miou", "memory_bytes")] == [
        1,
        1,
        1,
        0,
    ]


def test_an_invalid_run_fails_with_its_reason(run: Run, bench: Bench) -> None:
    bench.document = THROTTLED
    result = run('edge_bench("bundle", p99_ms=1000)')
    result.assert_outcomes(failed=1)
    (line,) = said(result, "verdict: the run is invalid: ")
    assert "gpu: thermal" in line


def test_a_doubtful_run_is_a_warning(run: Run, bench: Bench) -> None:
    bench.document = FAKED
    assert FAKED.verdict.grade == "doubtful"
    result = run('edge_bench("bundle", p99_ms=1000)')
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*BenchWarning: edge_bench: doubtful: *The p99 at camera pace rests on 40 frames*"]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('"bundle", p99=40', "edge_bench: unknown name 'p99', did you mean 'p99_ms'?"),
        ('"bundle", framerate=40', "edge_bench: unknown name 'framerate': neither a setting of a bench nor a budget"),
        ('"bundle", presett="quick"', "edge_bench: unknown name 'presett', did you mean 'preset'?"),
        ('"bundle", preset="brief"', "edge_bench: settings: 'preset': Input should be 'quick', 'standard' or 'soak'"),
        ('"bundle", p99_ms="fast"', "edge_bench: budgets: 'p99_ms': expected a number of at least 0, or one relative"),
        ('"bundle", backend="onnx"', "edge_bench: backend: expected one of onnxruntime, tensorrt, got 'onnx'."),
        ('"bundle", min_miou=0.5', "edge_bench: budget min_miou: a synthetic scene has no accuracy. Give a clip"),
        ('"bundle", p99_ms=times(1, "techer")', "edge_bench: budget p99_ms: no row 'techer' in this run, only subj"),
        ('"bundle", energy_mj=1', "edge_bench: budget energy_mj: the machine did not tell what the row 'subject' drew"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_or_judged_fails_in_one_line(run: Run, call: str, message: str) -> None:
    result = run(f"edge_bench({call})")
    result.assert_outcomes(failed=1)
    assert len(said(result, message)) == 1
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*plugin.py*")


def test_an_error_of_the_run_fails_in_one_line(run: Run, bench: Bench) -> None:
    bench.error = BundleError("bundle: no manifest.json.")
    result = run('edge_bench("bundle")')
    result.assert_outcomes(failed=1)
    assert len(said(result, "edge_bench: bundle: no manifest.json.")) == 1


def test_a_defect_keeps_its_traceback(run: Run, bench: Bench) -> None:
    bench.error = ZeroDivisionError("ours")
    result = run('edge_bench("bundle")')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError: ours"])


SKIPS = {
    'device="Orin"': "device: this is no 'Orin' but ",
    'backend="tensorrt"': "backend 'tensorrt' needs an NVIDIA GPU that this machine does not have; see",
    "threads=1": "opencv is not here. Install it.",
}


@pytest.mark.parametrize("setting", SKIPS)
def test_what_is_not_there_is_skipped_loudly_or_fails_where_it_is_required(
    run: Run, bench: Bench, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setting == "threads=1":
        bench.error = DependencyError("opencv is not here.", hint="Install it.")
    monkeypatch.setattr("edge_sdk.runtime.engine.find_gpu", lambda: None)
    monkeypatch.setattr("edge_sdk.gpu.find_gpu", lambda: None)
    result = run(f'edge_bench("bundle", {setting}, p99_ms=40)')
    result.assert_outcomes(skipped=1)
    (line,) = summary(result)  # without any option
    assert f"::test_camera: SKIPPED, nothing was measured: {SKIPS[setting]}" in line
    result = run(f'edge_bench("bundle", {setting}, p99_ms=40)', "--edge-bench-required")
    result.assert_outcomes(failed=1)
    (line,) = said(result, f"edge_bench: {SKIPS[setting]}")
    assert line.endswith("(--edge-bench-required)")


def test_a_test_that_prepares_something_can_be_skipped_before(run: Run, bench: Bench) -> None:
    result = run('edge_bench.require(device="Orin"); raise AssertionError("not reached")')
    result.assert_outcomes(skipped=1)


def test_a_device_that_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    result = run(f'edge_bench("bundle", device="{platform.machine().upper()}", p99_ms=40)')
    result.assert_outcomes(passed=1)


SHARED = """
def test_tail(edge_bench):
    edge_bench("bundle", fps=30, p99_ms=40)

def test_mean(edge_bench):
    edge_bench("bundle", fps=30, mean_ms=40)

def test_other_rate(edge_bench):
    edge_bench("bundle", fps=25, mean_ms=40)
"""


def test_tests_that_ask_for_the_same_share_one_run(run: Run, bench: Bench) -> None:
    result = run(SHARED)
    result.assert_outcomes(passed=3)
    assert [recipe.fps for recipe, _ in bench.asked] == [30, 25]
    assert [line.split(": ")[0].split("::")[1] for line in summary(result)] == [
        "test_tail", "test_mean", "test_other_rate",
    ]  # fmt: skip


def test_accuracy_is_measured_where_it_has_a_budget_and_such_a_run_serves_the_others(
    run: Run, bench: Bench
) -> None:
    result = run("""
def test_scored(edge_bench):
    edge_bench("bundle", source="clip", min_miou=0.5)

def test_tail(edge_bench):
    edge_bench("bundle", source="clip", p99_ms=40)

def test_tail_at_another_rate(edge_bench):
    edge_bench("bundle", source="clip", fps=25, p99_ms=40)
""")
    result.assert_outcomes(passed=3)
    assert [(recipe.fps, recipe.accuracy) for recipe, _ in bench.asked] == [(None, True), (25, False)]


def test_a_bundle_that_was_built_anew_is_measured_anew(run: Run, bench: Bench) -> None:
    result = run("""
import os
from pathlib import Path

def test_twice(edge_bench):
    manifest = Path("bundle/manifest.json")
    manifest.parent.mkdir()
    for moment in (1, 1, 2):
        manifest.write_text("{}")
        os.utime(manifest, (moment, moment))
        edge_bench("bundle")
""")
    result.assert_outcomes(passed=1)
    assert len(bench.asked) == 2


def test_a_backend_may_be_an_object(run: Run, bench: Bench) -> None:
    result = run("""
class Own:
    name = "own"

OWN = Own()

def test_own(edge_bench):
    for backend in (OWN, OWN, Own()):
        edge_bench("bundle", backend=backend)
""")
    result.assert_outcomes(passed=1)
    assert [(recipe.backend, type(backend).__name__) for recipe, backend in bench.asked] == [
        ("own", "Own")
    ] * 2


def test_the_run_is_given_back_for_assertions_of_ones_own(run: Run) -> None:
    result = run('assert edge_bench("bundle").figures.cold.load_ms == 80')
    result.assert_outcomes(passed=1)


LENGTHS: list[tuple[tuple[str, ...], tuple[str, float, int]]] = [
    ((), ("soak", 90.0, 4)),
    (("--edge-bench-preset", "quick"), ("quick", 30.0, 5)),
    (("--edge-bench-seconds", "20"), ("soak", 20.0, 4)),
    (("--edge-bench-preset", "standard", "--edge-bench-seconds", "20"), ("standard", 20.0, 9)),
]


@pytest.mark.parametrize(("options", "expected"), LENGTHS)
def test_options_change_the_length(
    run: Run, bench: Bench, options: tuple[str, ...], expected: tuple[str, float, int]
) -> None:
    run('edge_bench("bundle", preset="soak", seconds=90, rounds=4)', *options).assert_outcomes(passed=1)
    ((recipe, _),) = bench.asked
    assert (recipe.preset, recipe.length_s, recipe.round_count) == expected


def test_a_length_that_does_not_fit_its_rounds_fails_in_one_line(run: Run) -> None:
    result = run('edge_bench("bundle")', "--edge-bench-seconds", "3")
    result.assert_outcomes(failed=1)
    assert len(said(result, "edge_bench: settings: 3 seconds in 9 rounds leave 0.333333 s a round")) == 1


def test_a_bad_option_is_refused(run: Run) -> None:
    result = run('edge_bench("bundle")', "--edge-bench-preset", "brief")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_reports_are_written_for_each_test_also_where_a_run_is_shared(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write_report(document: BenchDocument, folder: Path) -> None:
        assert document is SOUND
        written.append(folder)

    monkeypatch.setattr("edge_sdk.bench.report.write_report", write_report)
    run(SHARED.replace("(edge_bench", "(edge_bench, tmp_path"), "--edge-bench-out", "out").assert_outcomes(
        passed=3
    )
    names = ["test_tail", "test_mean", "test_other_rate"]
    assert [folder.parent for folder in written] == [Path("out")] * 3
    assert [folder.name.split("py_")[1] for folder in written] == names
    written.clear()
    run('edge_bench("bundle", out="one"); edge_bench("bundle", out="two")', "--edge-bench-out", "out")
    in_out = [folder.name for folder in written if folder.parent == Path("out")]
    assert [folder for folder in written if folder.parent != Path("out")] == [Path("one"), Path("two")]
    assert in_out == [in_out[0], f"{in_out[0]}-2"]


def test_a_machine_that_cannot_draw_still_judges(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_report(document: BenchDocument, folder: Path) -> None:
        raise DependencyError("the report needs the package matplotlib.", hint="Install it.")

    monkeypatch.setattr("edge_sdk.bench.report.write_report", write_report)
    result = run('edge_bench("bundle", p99_ms=15)', "--edge-bench-out", "out")
    result.assert_outcomes(failed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*BenchWarning: edge_bench: out/*test_camera holds bench.json but no report: *matplotlib*"]
    )
    (written,) = (pytester.path / "out").glob("*/bench.json")
    assert BenchDocument.load(written) == SOUND


@pytest.mark.parametrize(
    ("expression", "outcome"), [("edge_bench", "test_slow"), ("not edge_bench", "test_other")]
)
def test_the_marker_is_set_by_itself(run: Run, expression: str, outcome: str) -> None:
    result = run(
        'def test_slow(edge_bench):\n    edge_bench("bundle")\n\ndef test_other():\n    pass\n',
        "-m", expression, "--strict-markers", "-v",
    )  # fmt: skip
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines([f"*::{outcome} PASSED*"])


@pytest.mark.parametrize(("workers", "passes"), [(1, True), (4, False)])
def test_beside_other_workers_a_latency_test_is_refused(
    run: Run, bench: Bench, workers: int, passes: bool
) -> None:
    result = run(f"""
import pytest

@pytest.fixture(autouse=True)
def worker(request, monkeypatch):
    monkeypatch.setattr(request.config, "workerinput", {{"workercount": {workers}}}, raising=False)

def test_camera(edge_bench):
    edge_bench("bundle", p99_ms=40)
""")
    result.assert_outcomes(passed=int(passes), failed=int(not passes))
    assert bool(bench.asked) == passes
    line = "edge_bench: a latency test needs the machine for itself, and pytest-xdist runs 4 workers: run "
    assert len(said(result, line)) == int(not passes)


def test_beside_other_workers_what_is_not_there_is_skipped_all_the_same(run: Run) -> None:
    result = run("""
def test_camera(edge_bench, request, monkeypatch):
    monkeypatch.setattr(request.config, "workerinput", {"workercount": 4}, raising=False)
    edge_bench("bundle", device="Orin")
""")
    result.assert_outcomes(skipped=1)


def test_the_headline_is_in_junit_xml_too(run: Run, pytester: pytest.Pytester) -> None:
    run('edge_bench("bundle", p99_ms=40)', "--junitxml", "junit.xml")
    text = (pytester.path / "junit.xml").read_text()
    assert '<property name="edge_bench" value="p50 ' in text


def test_a_session_that_measures_nothing_says_nothing_of_it(run: Run) -> None:
    result = run("def test_other():\n    pass\n")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*latency tests*")


def test_the_readmes_test_is_eight_lines_and_runs(
    pytester: pytest.Pytester, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(edge_sdk.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Latency tests") :]
    source = section.split("```python\n")[1].split("```")[0]
    assert len([line for line in source.splitlines() if line.strip()]) <= 8
    monkeypatch.setattr("edge_sdk.runtime.engine.backend_available", lambda name: name == "tensorrt")
    monkeypatch.setattr("edge_sdk.bench.plugin.EdgeBench._place", lambda self: "NVIDIA Jetson Orin NX")
    pytester.makepyfile(source)
    pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider").assert_outcomes(passed=1)
    ((recipe, _),) = bench.asked
    assert (recipe.bundle, recipe.backend, recipe.fps, recipe.accuracy) == (
        Path("my_pair"),
        "tensorrt",
        30,
        True,
    )


def test_the_options_that_the_documents_name_exist(run: Run) -> None:
    root = Path(edge_sdk.__file__).parents[1]
    documents = "".join(
        (root / name).read_text(encoding="utf-8") for name in ("README.md", "jetson/README.md")
    )
    named = set(re.findall(r"--edge-bench-[a-z]+", documents))
    listed = run("", "--help").stdout.str()
    assert named == {
        "--edge-bench-out",
        "--edge-bench-preset",
        "--edge-bench-seconds",
        "--edge-bench-required",
    }
    assert all(option in listed for option in named)


@pytest.mark.parametrize("name", edge_sdk.bench.__all__)
def test_every_export_is_there(name: str) -> None:
    assert name in dir(edge_sdk.bench)
    assert getattr(edge_sdk.bench, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'edge_sdk.bench' has no attribute 'Bugdet'"):
        edge_sdk.bench.Bugdet  # noqa: B018


IMPORTS = """
import json, sys, time
import pytest
before, start = set(sys.modules), time.perf_counter()
import edge_sdk.bench.plugin
spent = time.perf_counter() - start
print(json.dumps([spent, sorted(set(sys.modules) - before)]))
"""


def test_the_plug_in_is_light() -> None:
    def measured() -> tuple[float, list[str]]:
        root = Path(edge_sdk.__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS], cwd=root, check=True, capture_output=True, text=True, timeout=60
        )
        spent, loaded = json.loads(done.stdout)
        return spent, loaded

    runs = [measured() for _ in range(3)]
    assert {name for name in runs[0][1] if name.startswith("edge_sdk")} == {
        "edge_sdk",
        "edge_sdk.bench",
        PLUGIN,
    }
    assert not {name.split(".")[0] for name in runs[0][1]} & {
        "numpy",
        "pydantic",
        "yaml",
        "onnxruntime",
        "cv2",
    }
    assert min(spent for spent, _ in runs) < 0.05  # measured: 0.005 s


def test_a_session_without_latency_tests_loads_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_other():
            heavy = {"numpy", "pydantic", "edge_sdk.bench.budget", "edge_sdk.errors"}
            assert not heavy & set(sys.modules)
            assert "edge_sdk.bench.plugin" in sys.modules
        """
    )
    # Other plug-ins may load what they like; this session has none.
    pytester.plugins = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        patch.setenv("PYTHONPATH", str(Path(edge_sdk.__file__).parents[1]))
        result = pytester.runpytest_subprocess("-p", PLUGIN, "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
