"""What is installed is whole, and what the documents tell people to type exists."""

from __future__ import annotations

import configparser
import email
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edge_sdk
from edge_sdk import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
VERBS = [
    "demo", "train", "profile", "distill", "export", "calibrate", "build", "lint", "run", "adapt", "evaluate", "front",
    "compare", "bench", "tune", "keygen", "sign", "install", "slots", "doctor",
]  # fmt: skip
WORKSTATION_ONLY = (
    "edge_sdk.distill", "edge_sdk.compile", "edge_sdk.demo", "edge_sdk.adapt.trainer", "edge_sdk.profile.prepare",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the built package in ``lib`` and its metadata; by commands that JetPack's setuptools has too."""
    pytest.importorskip("setuptools")
    work = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work)
    shutil.copytree(ROOT / "edge_sdk", work / "edge_sdk", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build", "--build-lib", "lib", "egg_info"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return work


@pytest.fixture(scope="module")
def metadata(built):
    return email.message_from_string((built / "edge_sdk.egg-info" / "PKG-INFO").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def needed(built):
    """Names of the packages that an extra installs, base included."""
    sections = configparser.ConfigParser(allow_no_value=True, delimiters=("\0",))
    sections.read_string(
        "[base]\n" + (built / "edge_sdk.egg-info" / "requires.txt").read_text(encoding="utf-8")
    )

    def of(extra):
        return {re.split(r"[<>=!~ ]", line)[0].lower() for name in ("base", extra) for line in sections[name]}

    return of


def test_every_file_of_the_package_is_installed(built):
    def files(folder):
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    assert files(built / "lib" / "edge_sdk") == files(built / "edge_sdk")
    assert (built / "lib" / "edge_sdk" / "py.typed").is_file()


def test_the_metadata_is_read_from_setup_py(metadata):
    assert metadata["Name"] in ("edge_sdk", "edge-sdk")
    assert metadata["Version"] == edge_sdk.__version__
    assert set(metadata["Requires-Python"].replace(" ", "").split(",")) == {">=3.10", "<3.13"}
    assert set(metadata.get_all("Provides-Extra")) == {
        "desktop", "desktop-gpu", "bench", "jetson", "workstation", "signing", "dev",
    }  # fmt: skip


def test_a_device_installs_no_workstation_packages_and_a_jetson_no_opencv(needed):
    assert needed("jetson") == {"numpy", "pydantic", "pyyaml", "typer", "rich", "onnxruntime", "polygraphy"}
    # Compiled where it is installed: never drawn in by anything but its own extra.
    assert needed("desktop-gpu") == needed("desktop") | {"pycuda", "cuda-python"}
    assert not any("pycuda" in needed(extra) for extra in ("desktop", "jetson", "workstation", "dev"))
    assert not needed("desktop") & {"torch", "onnx", "onnxscript", "lightning-fabric", "opencv-python"}
    assert needed("workstation") >= {
        "torch",
        "onnx",
        "onnxruntime",
        "lightning-fabric",
        "opencv-python-headless",
    }
    assert needed("dev") > needed("workstation")


def test_the_entry_point_is_the_command(built):
    text = (built / "edge_sdk.egg-info" / "entry_points.txt").read_text(encoding="utf-8")
    found = re.search(r"edge-sdk = ([\w.]+):(\w+)", text)
    assert getattr(importlib.import_module(found[1]), found[2]) is cli.main


def test_the_pytest_plug_in_is_named_as_its_module(built):
    """Then it is not registered twice where a session names the module too."""
    text = (built / "edge_sdk.egg-info" / "entry_points.txt").read_text(encoding="utf-8")
    named = text.split("[pytest11]\n")[1].split()
    assert named == ["edge_sdk.bench.plugin", "=", "edge_sdk.bench.plugin"]
    assert hasattr(importlib.import_module(named[2]), "edge_bench")


def test_pyproject_carries_no_metadata():
    text = (ROOT / "pyproject.toml").read_text()
    assert "[build-system]" in text
    assert "[project" not in text


def test_the_licence_is_apache_2_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert text.count("\n") > 200


def test_everything_a_device_uses_imports_without_workstation_packages():
    """Each module outside distill and compile, in a process where torch and onnx cannot be imported."""
    modules = []
    for path in sorted((ROOT / "edge_sdk").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not name.startswith(WORKSTATION_ONLY) and not name.endswith("__main__"):
            modules.append(name)
    assert len(modules) > 20
    kept_out = ("torch", "onnx", "onnxscript", "lightning_fabric", "tensorrt", "pycuda")
    code = (
        "import sys, importlib\n"
        f"for name in {kept_out}: sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "print('all')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all", done.stderr


def _blocks(language):
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        yield from re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _commands(program):
    text = "\n".join(_blocks("console"))
    return [shlex.split(line) for line in text.splitlines() if re.match(rf"(\S+/)?{program}\b", line)]


def test_every_command_in_the_documents_exists():
    commands = _commands("edge-sdk")
    assert {words[1] for words in commands} == set(VERBS) - {"demo"}
    for _, verb, *rest in commands:
        parameters = inspect.signature(inspect.unwrap(getattr(getattr(cli, verb), verb))).parameters
        for option in (word for word in rest if word.startswith("--")):
            name = option.removeprefix("--").replace("-", "_")
            assert {name, f"as_{name}"} & set(parameters), f"edge-sdk {verb} has no {option}"


def test_every_make_target_in_the_documents_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in _commands("make")}
    assert named == {"demo", "test"}
    assert named <= targets


def test_every_extra_and_link_in_the_documents_exists(metadata):
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for extra in re.findall(r"'(?:edge_sdk|\.)\[(\w+)\]'", text):
            assert extra in metadata.get_all("Provides-Extra")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / link).exists(), f"{document}: {link}"
