"""Real TensorRT on a machine without a GPU: it parses and builds, and refuses what it would refuse on a device.

NVIDIA's Python bindings come as a wheel without libraries; TensorRT for RTX, whose builder needs no GPU and exports
the same C entry points, comes whole inside a plug-in for ONNX Runtime. A folder of links gives the second the names
that the first looks for. The two wheels are pinned as a pair (``setup.py``, extra ``dev``), because it works only where
both are of one generation of the API. Nothing can be run this way: that needs a GPU.

The dynamic loader reads its search path when a process starts, so everything runs in a child process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

BINDINGS = ("tensorrt-cu13-bindings", "11.4.0.106", "tensorrt_bindings")
LIBRARIES = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "0.5.0", "onnxruntime_ep_nv_tensorrt_rtx")
LINKS = {
    "libnvinfer.so.11": "libtensorrt_rtx.so.1.7.1",
    "libnvonnxparser.so.11": "libtensorrt_onnxparser_rtx.so.1.7.1",
}
PLUGIN = "libnvinfer_plugin.so.11"
PLUGIN_SOURCE = "int initLibNvInferPlugins(void* logger, const char* space) { return 1; }\n"
# ``import tensorrt`` must give the bindings themselves, under either of the names that JetPack and RTX use.
ALIAS = "import sys\n\nimport tensorrt_bindings\n\nsys.modules[__name__] = tensorrt_bindings\n"
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Built:
    """What became of one graph.

    Args:
        ok: it was parsed and built.
        error: the parser's or builder's own words where it was not.
        nodes: names of the ONNX nodes that the parser's errors name.
        plan_bytes: size of the plan; 0 where there is none.
        seconds: parsing and building together.
    """

    ok: bool
    error: str
    nodes: tuple[str, ...]
    plan_bytes: int
    seconds: float


def require() -> Path:
    """The folder that makes TensorRT importable, made once per environment; skips the test where that is impossible."""
    found = _prepare()
    if isinstance(found, str):
        pytest.skip(f"real TensorRT cannot be tested here: {found}")
    return found


def environment(module: str = "tensorrt") -> dict[str, str]:
    """Variables for a child process in which ``import tensorrt`` works.

    Args:
        module: ``tensorrt``, or ``tensorrt_rtx`` for a machine that has only that.
    """
    folder = require()
    paths = {"LD_LIBRARY_PATH": [str(folder)], "PYTHONPATH": [str(folder / module), str(ROOT)]}
    joined = {
        name: os.pathsep.join([*first, *filter(None, [os.environ.get(name, "")])])
        for name, first in paths.items()
    }
    return {**os.environ, **joined}


def run(
    arguments: Sequence[str], *, module: str = "tensorrt", timeout_s: float = TIMEOUT_S, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with such ``arguments`` as ``["-c", code]`` where TensorRT can be imported; any exit code is fine."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment(module), **variables},
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def run_json(code: str, *arguments: str, module: str = "tensorrt") -> Any:
    """Run ``code`` and read its last line of output as JSON; fails the test where the process failed."""
    done = run(["-c", code, *arguments], module=module)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        pytest.fail(f"child process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(lines[-1])


def parse_and_build_all(graphs: Sequence[str | Path], *, build: bool = True) -> list[Built]:
    """Parse and build ONNX files in one child process, each with its own builder, typed strongly.

    Args:
        build: ``False`` stops after parsing.
    """
    if not graphs:
        return []
    answers = run_json(_BUILD, "build" if build else "parse", *map(str, graphs))
    return [Built(**{**answer, "nodes": tuple(answer["nodes"])}) for answer in answers]


def parse_and_build(graph: str | Path, *, build: bool = True) -> Built:
    """:func:`parse_and_build_all` for one graph."""
    return parse_and_build_all([graph], build=build)[0]


# Not through edge_sdk: what TensorRT itself says of a graph must not depend on the code under test.
_BUILD = """
import json, sys, time
import tensorrt as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []
    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)

def attempt(path, build):
    log = Log()
    began = time.perf_counter()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    plan, nodes, errors = None, [], []
    parsed = parser.parse_from_file(path)
    if not parsed:
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        nodes = [e.node_name() for e in found]
        errors = [f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in found]
    elif build:
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    ok = parsed and (plan is not None or not build)
    words = "; ".join(errors or log.errors) or "no message"
    return {"ok": ok, "error": "" if ok else words, "nodes": nodes, "plan_bytes": plan.nbytes if plan else 0,
            "seconds": time.perf_counter() - began}

print("\\n" + json.dumps([attempt(path, sys.argv[1] == "build") for path in sys.argv[2:]]))
"""


@cache
def _prepare() -> Path | str:
    """The folder, or why there is none."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"its wheels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    for name, version, _ in (BINDINGS, LIBRARIES):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            return f"the package {name} is not installed (pip install -e '.[dev]')"
        if found != version:
            return f"the package {name} is {found}, expected {version} (pip install -e '.[dev]')"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (Debian: apt install gcc)"
    spec = importlib.util.find_spec(LIBRARIES[2])
    if spec is None or spec.origin is None:
        return f"the package {LIBRARIES[0]} cannot be found"
    return _make(compiler, Path(spec.origin).parent)


def _make(compiler: str, libraries: Path) -> Path | str:
    place = Path(sys.prefix) if os.access(sys.prefix, os.W_OK) else Path(tempfile.gettempdir())
    target = place / f"edge-sdk-tensorrt-{BINDINGS[1]}-{LIBRARIES[1]}"
    if target.is_dir() and all((target / name).exists() for name in (*LINKS, PLUGIN)):
        return target
    shutil.rmtree(target, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=place, prefix=f".{target.name}-"))
    for name, library in LINKS.items():
        if not (libraries / library).is_file():
            return f"{LIBRARIES[0]} holds no {library}"
        (made / name).symlink_to(libraries / library)
    for module in ("tensorrt", "tensorrt_rtx"):
        (made / module / module).mkdir(parents=True)
        (made / module / module / "__init__.py").write_text(ALIAS, encoding="utf-8")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(made / PLUGIN)]
    done = subprocess.run(command, input=PLUGIN_SOURCE, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(made)
        return f"{compiler} cannot make a library: {done.stderr.strip()[-300:]}"
    made.chmod(0o755)
    try:
        made.rename(target)
    except OSError:  # another test process was faster
        shutil.rmtree(made)
    return target
