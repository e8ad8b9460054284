"""Real pycuda over a simulated driver, on a machine without a GPU.

pycuda comes as source only and names some hundred symbols of ``libcuda.so.1``. Here that library is made from
``driver/*.c``, and pycuda and cuda-python are compiled and installed against it in a cache folder of their own, once
per environment: the environment itself stays without a CUDA that is none. Headers come from NVIDIA's wheels.

    python -m tests.cuda.prepare       makes the folders and says how long it took

A session of tests begins with that beside its other tests, see ``conftest.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DRIVER = HERE / "driver"
REQUIREMENTS = ROOT / "requirements" / "cuda_tests.txt"
_FETCH_S, _COMPILE_S = 300.0, 900.0

# No CURAND: its header is not needed and not there. No optimisation: it doubles the time to compile.
_SITECONF = """
USE_SHIPPED_BOOST = True
CUDA_ROOT = ""
CUDA_INC_DIR = [{headers!r}]
CUDA_ENABLE_GL = False
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = [{library!r}]
CUDADRV_LIBNAME = ["cuda"]
CXXFLAGS = ["-O0", "-g0", "-w"]
LDFLAGS = []
"""
# setuptools compiles one file after another; pycuda has forty. Most are Boost.Python's small ones, which spend their
# time on the same headers, so they are compiled as one.
_COMPILE = """
import runpy, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import setuptools  # which puts its own distutils in place, the one that it compiles with
from distutils.ccompiler import CCompiler

def compile(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
            extra_postargs=None, depends=None):
    small = [name for name in sources if "/libs/python/src/" in name]
    if small:
        Path("boost_python.cpp").write_text("".join(f'#include "{name}"\\n' for name in sorted(small)))
        sources = [name for name in sources if name not in small] + ["boost_python.cpp"]
    _, objects, post, options, build = self._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs)
    arguments = self._get_cc_args(options, debug, extra_preargs)
    with ThreadPoolExecutor(int(jobs)) as pool:
        list(pool.map(lambda name: self._compile(name, *build[name], arguments, post, options), objects))
    return objects

CCompiler.compile = compile
_, folder, jobs = sys.argv
sys.argv = ["setup.py", "build", "--build-lib", folder]
sys.path.insert(0, "")
runpy.run_path("setup.py", run_name="__main__")
"""


# The process that begin() started; what it could not make is tried again where it is needed, and the reason told.
_beside: subprocess.Popen[bytes] | None = None


class CannotPrepareError(Exception):
    """Why it cannot be made on this machine."""


def environment(*, older: bool = False, **variables: str) -> dict[str, str]:
    """Variables for a child process in which ``import pycuda.driver`` finds the simulated driver; may skip the test.

    Args:
        older: with the older of the two layouts of cuda-python.
    """
    found = _prepare()
    if isinstance(found, str):
        pytest.skip(f"the CUDA files cannot be run over a simulated driver here: {found}")
    packages, library, before = found
    places = [before, packages, ROOT] if older else [packages, ROOT]
    paths = {"LD_LIBRARY_PATH": [str(library)], "PYTHONPATH": list(map(str, places))}
    joined = {
        name: os.pathsep.join([*first, *filter(None, [os.environ.get(name, "")])])
        for name, first in paths.items()
    }
    return {**os.environ, **joined, **variables}


@cache
def _prepare() -> tuple[Path, Path, Path] | str:
    """The folders that :func:`prepare` gives, or why there are none."""
    if _beside is not None:
        _beside.wait()
    try:
        return prepare()
    except CannotPrepareError as error:
        return str(error)


def begin() -> None:
    """Make the folders in a process beside this one, which takes only the time that nothing else wants."""
    global _beside
    _beside = subprocess.Popen(
        [sys.executable, "-m", __name__, "--beside"], cwd=ROOT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def end() -> None:
    """Stop what :func:`begin` began and is not at its end."""
    if _beside is not None and _beside.poll() is None:
        os.killpg(_beside.pid, signal.SIGTERM)
        _beside.wait()


def prepare(jobs: int = os.cpu_count() or 1) -> tuple[Path, Path, Path]:
    """Folders of the packages, of the driver and of the older cuda-python, made where they are not there.

    Args:
        jobs: compilers at the same time.

    Raises:
        CannotPrepareError: no compiler, no network, or either fails.
    """
    if sys.platform != "linux":
        raise CannotPrepareError(f"the simulated driver is for Linux, this is {sys.platform}")
    for tool in ("gcc", "g++"):
        if shutil.which(tool) is None:
            raise CannotPrepareError(f"there is no {tool} (Debian: apt install g++)")
    place = Path(sys.prefix) if os.access(sys.prefix, os.W_OK) else Path(tempfile.gettempdir())
    headers = _made(place, "headers", _key(), _fetch_headers)
    include = next(headers.glob("nvidia/*/include"))
    sources = sorted(DRIVER.glob("*.[ch]"))
    library = _made(place, "driver", _key(*sources), lambda folder: _compile_driver(folder, include))
    packages = _made(
        place, "packages", _key(), partial(_build_packages, include=include, library=library, jobs=jobs)
    )
    older = _made(place, "older", _key(), _fetch_older)
    return packages, library, older


def _key(*files: Path) -> str:
    """What a folder depends on: versions, interpreter, machine and, for the driver, its sources."""
    digest = hashlib.sha256(f"{sysconfig.get_config_var('SOABI')} {platform.machine()}".encode())
    for file in (REQUIREMENTS, *files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _made(place: Path, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of that key; made beside it and renamed, so that it is whole wherever it is."""
    target = place / f"edge-sdk-cuda-{name}-{key}"
    if target.is_dir():
        return target
    folder = Path(tempfile.mkdtemp(dir=place, prefix=f".{target.name}-"))
    try:
        make(folder)
        folder.chmod(0o755)
        folder.rename(target)
    except OSError:  # another test process was faster
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _pins(*names: str) -> list[str]:
    lines = [line for line in REQUIREMENTS.read_text(encoding="utf-8").split("\n") if "==" in line]
    return [line for line in lines if any(line.startswith(name) for name in names)]


def _fetch_headers(folder: Path) -> None:
    _pip("install", "--no-deps", "--target", str(folder), *_pins("nvidia-"))


def _fetch_older(folder: Path) -> None:
    _pip("install", "--no-deps", "--target", str(folder), *_pins("cuda-python"))


def _compile_driver(folder: Path, include: Path) -> None:
    library = folder / "libcuda.so.1"
    sources = [str(file) for file in sorted(DRIVER.glob("*.c"))]
    options = [
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-parameter",
        "-fPIC",
        "-shared",
        "-pthread",
    ]
    _call(["gcc", *options, f"-I{include}", "-Wl,-soname,libcuda.so.1", *sources, "-ldl", "-o", str(library)])
    (folder / "libcuda.so").symlink_to(library.name)


def _build_packages(folder: Path, include: Path, library: Path, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        build = Path(name)
        _pip("download", "--no-deps", "--no-binary=pycuda", "--dest", name, *_pins("pycuda"))
        with tarfile.open(next(build.glob("pycuda-*.tar.gz"))) as file:
            file.extractall(build, filter="data") if hasattr(tarfile, "data_filter") else file.extractall(
                build
            )
        source = next(path for path in build.glob("pycuda-*") if path.is_dir())
        (source / "siteconf.py").write_text(_SITECONF.format(headers=str(include), library=str(library)))
        _call([sys.executable, "-c", _COMPILE, str(folder), str(jobs)], cwd=source)
    _pip("install", "--no-deps", "--target", str(folder), *_pins("cuda-bindings", "cuda-pathfinder"))


def _pip(verb: str, *arguments: str) -> None:
    _call([sys.executable, "-m", "pip", verb, "--quiet", *arguments], timeout_s=_FETCH_S)


def _call(command: list[str], cwd: Path | None = None, timeout_s: float = _COMPILE_S) -> None:
    what = " ".join(command[:3])
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise CannotPrepareError(f"{what} does not end within {timeout_s:.0f} s") from error
    if done.returncode:
        raise CannotPrepareError(f"{what} failed: {done.stderr.strip()[-1500:]}")


def main() -> None:
    if "--beside" in sys.argv:
        os.nice(19)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no half made folder stays
        with contextlib.suppress(CannotPrepareError):
            prepare(jobs=1)
        return
    began = time.perf_counter()
    print(*prepare(), f"{time.perf_counter() - began:.1f} s", sep="\n")


if __name__ == "__main__":
    main()
