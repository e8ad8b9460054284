"""Which attributes of TensorRT our code uses, and which ones each version's bindings have.

    python -m tests.tensorrt.api       makes api.json again, from NVIDIA's own wheels

Importing the bindings needs no TensorRT, only libraries that have the names and symbols that they are linked against;
those are made here, empty, with a C compiler. Nothing of them is ever called.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTING = Path(__file__).with_name("api.json")
# JetPack 6, JetPack 7.2, and the first that Jetsons get of TensorRT 11 (and the harness's).
WHEELS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
# Everything that talks to TensorRT.
SOURCES = ("edge_sdk/build/tensorrt", "edge_sdk/doctor", "edge_sdk/runtime")
# What the variables of those sources hold, wherever they bear these names.
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "first": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "config": "IBuilderConfig",
    "timing": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
    "weights": "Weights",
}
# Where those names mean something else.
NOT_IN = {"edge_sdk/build/tensorrt/builder.py", "edge_sdk/build/tensorrt/timing_cache.py"}
# What is reached in other ways: by subscript, through a base class, and through polygraphy, for what it is asked here.
THROUGH_OTHERS = {
    "Builder.create_network",
    "Builder.create_builder_config",
    "BuilderFlag.EXCLUDE_LEAN_RUNTIME",
    "BuilderFlag.REFIT",
    "BuilderFlag.REFIT_INDIVIDUAL",
    "INetworkDefinition.mark_weights_refittable",
    "BuilderFlag.TF32",
    "BuilderFlag.VERSION_COMPATIBLE",
    "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.max_aux_streams",
    "IBuilderConfig.profiling_verbosity",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.set_flag",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.set_timing_cache",
    "ILogger.ERROR",
    "ILogger.log",
    "IProgressMonitor.phase_finish",
    "IProgressMonitor.phase_start",
    "IProgressMonitor.step_complete",
    "DataType.BOOL",
    "DataType.FLOAT",
    "DataType.HALF",
    "DataType.INT32",
    "DataType.INT64",
    "DataType.INT8",
    "DataType.UINT8",
    "ITensor.dtype",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "init_libnvinfer_plugins",
}


def used() -> set[str]:
    """Every attribute that the code uses, as ``Class.attribute``, or one name for what is in the module itself."""
    found = set(THROUGH_OTHERS)
    for file in _files():
        found |= used_in(file.read_text(encoding="utf-8"))
    return found


def used_in(source: str) -> set[str]:
    """The attributes that one file uses."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
            root, *names = dotted
            if root == "self" and len(names) > 1:
                root, *names = names[0].lstrip("_"), *names[1:]
            if root == "trt":
                found.add(".".join(names[:2]))
            elif root in VARIABLES:
                found.add(f"{VARIABLES[root]}.{names[0]}")
    # ``trt.LayerType`` of ``trt.LayerType.CAST`` is a node of its own.
    longer = {name.split(".")[0] for name in found if "." in name}
    return {name for name in found if "." in name or name not in longer}


def _files() -> Iterator[Path]:
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT).as_posix()
            if inside not in NOT_IN and re.search(r"\btrt\.|trt: Any", file.read_text(encoding="utf-8")):
                yield file
    yield from (ROOT / "edge_sdk/build/tensorrt" / name for name in ("config.py", "network.py"))


def _dotted(node: ast.AST) -> list[str] | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def missing(names: Iterable[str], listing: dict[str, list[str]]) -> list[str]:
    """Those of ``names`` that a version does not have."""
    absent = []
    for name in sorted(names):
        owner, _, attribute = name.partition(".")
        # ``trt.__version__`` and the like are Python's.
        if attribute.startswith("__") or owner.startswith("__"):
            continue
        known = owner in listing and (not attribute or attribute in listing[owner])
        if not known:
            absent.append(name)
    return absent


def classes_of(names: Iterable[str]) -> list[str]:
    """Classes, and functions of the module, that ``names`` belong to."""
    return sorted({name.partition(".")[0] for name in names if not name.startswith("__")})


# Runs where the bindings can be imported: attributes of each class that is named on the command line.
_LIST = """
import json, sys
import tensorrt_bindings as trt
names = [name for name in sys.argv[1:] if hasattr(trt, name)]
print(json.dumps({name: [a for a in dir(getattr(trt, name)) if not a.startswith("_")] for name in names}))
"""


def download(version: str, folder: Path) -> Path:
    """The wheel of the bindings in ``folder``, fetched with pip unless it is there.

    Raises:
        OSError: pip cannot fetch it.
    """
    name = WHEELS[version]
    found = list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if not found:
        where = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *where, f"{name}=={version}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"pip does not fetch {name} {version} within {error.timeout:.0f} s") from error
        found = list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        if not found:
            raise OSError(f"pip cannot fetch {name} {version}: {done.stderr.strip()[-300:]}")
    return found[0]


def list_wheel(wheel: Path, classes: Iterable[str]) -> dict[str, list[str]]:
    """Attributes of ``classes`` in the bindings of a wheel.

    Raises:
        OSError: there is no C compiler, or the bindings cannot be imported.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
        make_stubs(folder / "tensorrt_bindings" / "tensorrt.so", folder)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", _LIST, *classes]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=120
        )
    if done.returncode:
        raise OSError(f"{wheel.name} cannot be imported: {done.stderr.strip()[-300:]}")
    listing: dict[str, list[str]] = json.loads(done.stdout)
    return listing


def make_stubs(bindings: Path, folder: Path) -> None:
    """Empty libraries with the names and symbols that ``bindings`` is linked against.

    Raises:
        OSError: a tool of the C compiler is missing.
    """
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise OSError(f"{tool} is not installed")
    symbols = _output("nm", "-D", "--undefined-only", str(bindings)).split()
    wanted = sorted(
        name for name in symbols if re.fullmatch(r"(create|get|init)\w*(Nv|Infer|Plugin)\w*", name)
    )
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", _output("readelf", "-d", str(bindings)))
    source = "".join(f"void* {name}(void) {{ return 0; }}\n" for name in wanted)
    for library in needed:
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / library)]
        subprocess.run(command, input=source, text=True, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_listing(folder: Path) -> dict[str, dict[str, list[str]]]:
    """What api.json holds, from the wheels."""
    classes = classes_of(used())
    return {version: list_wheel(download(version, folder), classes) for version in WHEELS}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = make_listing(Path(folder))
    # One class a line: a change of the API is then one line of a diff.
    versions = []
    for version, listing in made.items():
        rows = ",\n".join(f'    "{name}": {json.dumps(listing[name])}' for name in sorted(listing))
        versions.append(f'  "{version}": {{\n{rows}\n  }}')
    LISTING.write_text("{\n" + ",\n".join(versions) + "\n}\n", encoding="utf-8")
    for version, listing in made.items():
        print(
            f"{version}: {len(listing)} classes, missing: {', '.join(missing(used(), listing)) or 'nothing'}"
        )


if __name__ == "__main__":
    main()
