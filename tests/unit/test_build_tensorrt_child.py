"""What becomes of a build whose child process is killed, crashes, hangs or refuses; TensorRT itself is not needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sdk.build.tensorrt import TensorRTSettings, build_plan, builder, child
from edge_sdk.build.tensorrt.child import Heard, Library, Reporter, load_library, read_back
from edge_sdk.build.tensorrt.settings import Job, Outcome
from edge_sdk.errors import DependencyError, EdgeSdkError, EngineError, FileFormatError, MissingFileError
from edge_sdk.identity import open_engine, read_identity

# A child that does as it is told instead of building: reads its job, reports once, then ``%s``.
CHILD = """
import json, os, signal, sys, time
job = json.loads(sys.stdin.readline())
channel = os.fdopen(int(sys.argv[1]), "w", buffering=1)
channel.write(json.dumps({"share": 0.25}) + "\\n")
def say(**message): channel.write(json.dumps(message) + "\\n")
def outcome(**more):
    open(job["plan"], "wb").write(b"a plan")
    given = {"runtime": "tensorrt 10.3.0", "workspace_bytes": 7, "asked": {"conv": job["precision"]}, "realised": None}
    say(outcome={**given, **more})
print("something that a library prints")
%s
"""


class Watcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        self.seen.append((stage, done, total))


def build_with(
    code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, progress: Any = None, **settings: Any
) -> Any:
    """Build a graph with such a child."""
    monkeypatch.setattr(builder, "_START", CHILD % code)
    (folder / "delta.onnx").write_bytes(b"a graph")
    return build_plan(
        folder / "delta.onnx", folder / "out" / "delta.plan", step="delta", precision="int8",
        settings=TensorRTSettings(**settings), progress=progress,
    )  # fmt: skip


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


def test_a_build_writes_plan_and_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    code = "outcome(realised={'conv': 'int8'}, notes=['a note'])"
    found = build_with(code, tmp_path, monkeypatch, watcher, optimisation_level=1)
    assert left_behind(tmp_path) == ["delta.json", "delta.plan"]
    plan = tmp_path / "out" / "delta.plan"
    assert plan.read_bytes() == b"a plan"
    assert read_identity(plan) == found
    assert (found.backend, found.step, found.precision) == ("tensorrt", "delta", "int8")
    assert found.engine_bytes == 6
    assert found.shares == {"int8": 1.0}
    assert found.asked == {"int8": 1.0}
    assert found.notes == ("a note",)
    assert found.settings["optimisation_level"] == 1
    assert found.settings["workspace_bytes"] == 7
    assert "timing_cache" not in found.settings, "an identity names no paths of this machine"
    assert watcher.seen == [
        ("build delta int8", 0, 100),
        ("build delta int8", 25, 100),
        ("build delta int8", 100, 100),
    ]


ENDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        {},
        r"the system killed it, as Linux does when memory runs out \(\d+\.\d GiB were free.*Close the desktop.*"
        "lower 'workspace_bytes'.*swap does not help",
    ),
    "crashed": (
        "os.kill(os.getpid(), signal.SIGSEGV)",
        {},
        r"TensorRT crashed \(SIGSEGV\): something that a library",
    ),
    "aborted": ("os.abort()", {}, r"TensorRT crashed \(SIGABRT\)"),
    "gave up": (
        "raise ValueError('a defect')",
        {},
        "failed with exit code 1: ValueError: a defect.*edge-sdk doctor",
    ),
    "ended without a word": ("sys.exit(0)", {}, "failed with exit code 0: something that a library prints"),
    "hangs": ("time.sleep(60)", {"timeout_s": 0.5}, r"ended after 0\.5 s.*raise 'timeout_s'"),
    "in higher precision": (
        "outcome(realised={'conv': 'float32'})",
        {},
        r"delta step in int8: 1 of 1 layers run in a higher precision .*'conv' \(int8 asked, float32 built\)",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_build_that_fails_leaves_no_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, settings, words = ENDS[name]
    began = time.monotonic()
    with pytest.raises(EngineError, match=words) as caught:
        build_with(code, tmp_path, monkeypatch, **settings)
    assert time.monotonic() - began < 30
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_a_failed_build_leaves_the_older_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with("outcome()", tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(EngineError):
        build_with("os.abort()", tmp_path, monkeypatch)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_cannot_be_read_back_is_not_invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = build_with("outcome(realised_unknown='no GPU')", tmp_path, monkeypatch)
    assert found.shares is None
    assert found.shares_unknown == "no GPU"
    mostly = (
        "outcome(asked={'a': 'int8', 'b': 'int8', 'c': 'int8'}, realised={'a': 'int8', 'b': '', 'c': ''})"
    )
    found = build_with(mostly, tmp_path, monkeypatch)
    assert found.shares is None
    assert found.shares_unknown == "TensorRT's inspector names no precision for 67% of the layers"


def test_the_childs_errors_keep_their_class_and_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "say(error='FileFormatError', message='timing cache: damaged.', hint='Delete it.'); sys.exit(2)"
    with pytest.raises(FileFormatError, match=r"^timing cache: damaged\. Delete it\.$") as caught:
        build_with(code, tmp_path, monkeypatch)
    assert caught.value.hint == "Delete it."
    assert left_behind(tmp_path) == []


class Interrupting(Watcher):
    """Ctrl-C at the first sign of progress; keeps the child's process id."""

    def update(self, stage: str, done: int, total: int, **figures: float) -> None:
        super().update(stage, done, total)
        if done:
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    with pytest.raises(KeyboardInterrupt):
        build_with("time.sleep(60)", tmp_path, monkeypatch, Interrupting())
    assert left_behind(tmp_path) == []
    assert started[0].returncode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="the child asks Linux to end it with its parent")
def test_no_build_outlives_whoever_started_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    inner = (
        "import os, sys, time; from pathlib import Path; from edge_sdk.build.tensorrt import child;"
        f"child._die_with_parent(); Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    outer = f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", outer]) as parent:
        deadline = time.monotonic() + 30
        while not (note.is_file() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.kill()
    pid = int(note.read_text())
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_graph(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"graph: expected a file at .*none\.onnx"):
        build_plan(tmp_path / "none.onnx", tmp_path / "x.plan", step="delta", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_fits_the_machine_that_built_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with("outcome()", tmp_path, monkeypatch)
    plan = tmp_path / "out" / "delta.plan"
    monkeypatch.setattr("edge_sdk.identity.installed_runtime", lambda name: f"{name} 10.3.0")
    assert open_engine(plan, backend="tensorrt", rebuild="edge-sdk build x.yaml")[0] == b"a plan"
    monkeypatch.setattr("edge_sdk.identity.installed_runtime", lambda name: f"{name} 10.16.1")
    with pytest.raises(
        EngineError, match=r"built with tensorrt 10\.3\.0, this machine has tensorrt 10\.16\.1"
    ):
        open_engine(plan, backend="tensorrt", rebuild="edge-sdk build x.yaml")


def test_whoever_builds_loads_neither_tensorrt_nor_torch_nor_onnx() -> None:
    code = "import sys, edge_sdk.build.tensorrt; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "edge_sdk" in loaded
    assert not loaded & {"tensorrt", "tensorrt_bindings", "polygraphy", "torch", "onnx", "onnxruntime", "cv2"}


# The child's own parts


def test_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match=r"needs the package tensorrt: .*JetPack's own"):
        load_library("auto")


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polygraphy")
    rtx = SimpleNamespace(__version__="1.7.1")
    monkeypatch.setattr(child, "find_spec", lambda name: rtx if name == "tensorrt_rtx" else None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    assert load_library("auto").runtime == "tensorrt_rtx 1.7.1"
    assert os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] == "1"


def test_progress_is_passed_on_where_it_has_moved() -> None:
    sent: list[float] = []

    def send(share: float) -> bool:
        sent.append(share)
        return share < 0.5

    report = Reporter(send)
    assert [report(share) for share in (0.0, 0.001, 0.02, 0.021, 0.6, 0.601, 1.0)] == [
        True, True, True, True, False, True, False,
    ]  # fmt: skip
    assert sent == [0.0, 0.02, 0.6, 1.0]


class FakeBuilder:
    """Builds where its configuration's cache is not the bad one."""

    def __init__(self, heard: Heard, complaint: str = "") -> None:
        self.heard, self.complaint, self.builds = heard, complaint, 0

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.builds += 1
        if self.complaint and (config.cache == b"bad" or not config.cache):
            self.heard.errors.append(self.complaint)
            return None
        return b"plan"


class FakeConfig:
    cache = b"none"

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache == b"rejected":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"measured")


def run_fake(
    folder: Path, cached: bytes | None, complaint: str = ""
) -> tuple[Any, list[str], FakeBuilder, bytes]:
    heard = Heard()
    notes: list[str] = []
    settings = TensorRTSettings(timing_cache=folder)
    cache = child.TimingCache("tensorrt 10.3.0", child.machine_facts("tensorrt"), settings)
    if cached is not None:
        cache.write(cached)
    library, fake = Library(None, "tensorrt 10.3.0", heard), FakeBuilder(heard, complaint)
    plan = child._build_with_cache(library, fake, None, lambda: (FakeConfig(), None), settings, notes)
    return plan, notes, fake, cache.read() or b""


def test_what_was_measured_is_kept_for_the_next_build(tmp_path: Path) -> None:
    assert run_fake(tmp_path, None)[1:][0] == []
    plan, notes, fake, kept = run_fake(tmp_path, b"good")
    assert (plan, notes, fake.builds, kept) == (b"plan", [], 1, b"measured")


@pytest.mark.parametrize(
    ("cached", "complaint", "builds"), [(b"rejected", "", 1), (b"bad", "cache entry mismatch", 2)]
)
def test_a_timing_cache_that_tensorrt_rejects_is_left_out_and_that_is_said(
    cached: bytes, complaint: str, builds: int, tmp_path: Path
) -> None:
    plan, notes, fake, kept = run_fake(tmp_path, cached, complaint)
    assert (plan, fake.builds, kept) == (b"plan", builds, b"measured")
    assert len(notes) == 1
    assert notes[0].startswith("TensorRT rejected the timing cache ")
    assert notes[0].endswith("; built without it")
    assert complaint in notes[0]


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        ("Cuda failure: out of memory", "ran out of memory while building: .*Close the desktop"),
        (
            "no implementation for node x",
            "cannot build this graph: no implementation for node x.*optimisation_level",
        ),
        ("Unable to load library: libnvinfer_lean.so.10", "lean runtime: install it"),
    ],
)
def test_why_tensorrt_cannot_build(
    complaint: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeConfig, "cache", b"")
    with pytest.raises(EngineError, match=words):
        run_fake(tmp_path, None, complaint)


def a_library(engine: Any) -> Library:
    asked: list[bytes] = []
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine, asked=asked)
    trt = SimpleNamespace(Runtime=lambda logger: runtime, LayerInformationFormat=SimpleNamespace(JSON="json"))
    heard = Heard()
    heard.errors.append("device code does not match")
    return Library(trt, "tensorrt 10.3.0", heard)


def test_reading_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "require", lambda name, purpose: SimpleNamespace(get_trt_logger=lambda: None))
    monkeypatch.setattr(child, "find_gpu", lambda: None)
    realised, unknown = read_back(a_library(None), b"plan", {"conv": "int8"}, TensorRTSettings())
    assert realised is None
    assert "no GPU" in unknown
    monkeypatch.setattr(child, "find_gpu", lambda: "a GPU")
    text = json.dumps({"Layers": [{"Name": "conv", "LayerType": "conv", "Inputs": [{"Datatype": "Int8"}]}]})
    inspector = SimpleNamespace(get_engine_information=lambda kind: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    assert read_back(a_library(engine), b"plan", {"conv": "int8"}, TensorRTSettings()) == (
        {"conv": "int8"},
        "",
    )
    with pytest.raises(EngineError, match="cannot be loaded here: device code does not match"):
        read_back(a_library(None), b"plan", {"conv": "int8"}, TensorRTSettings())


def test_messages_between_the_processes_survive_the_trip() -> None:
    job = Job(
        graph=Path("/a"),
        plan=Path("/b"),
        step="delta",
        precision="int8",
        settings=TensorRTSettings(tf32=True),
    )
    assert Job.model_validate_json(job.model_dump_json()) == job
    outcome = Outcome(runtime="tensorrt 1", workspace_bytes=None, asked={"a": "int8"}, realised={"a": ""})
    assert Outcome.model_validate(json.loads(outcome.model_dump_json())) == outcome
    assert issubclass(EngineError, EdgeSdkError)
