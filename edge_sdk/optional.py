"""Packages that only some machines have: imported where they are used, with advice where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from edge_sdk.errors import DependencyError

# Which extra brings a package; OpenCV is advised by hand because on a Jetson it must be JetPack's own.
_ADVICE = {
    "cryptography": "Install it with: pip install 'edge_sdk[signing]'.",
    "cv2": "Install OpenCV: on a Jetson use JetPack's own (apt install python3-opencv), "
    "elsewhere pip install 'edge_sdk[desktop]'.",
    "onnxruntime": "Install it with: pip install 'edge_sdk[desktop]'.",
    "polygraphy": "Install it with: pip install polygraphy.",
    "cuda": "Install it with: pip install cuda-python.",
    "pycuda": "It is compiled where it is installed, with this machine's CUDA: on a Jetson run jetson/install.sh, "
    "elsewhere put nvcc on the PATH (export PATH=/usr/local/cuda/bin:$PATH) and pip install 'edge_sdk[desktop-gpu]'.",
    "tensorrt": "On a Jetson it is JetPack's own (apt install nvidia-jetpack; in a virtual environment use "
    "--system-site-packages), elsewhere pip install tensorrt.",
    "tensorrt_rtx": "Install it with: pip install tensorrt_rtx.",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module`` for ``purpose``.

    Raises:
        DependencyError: it is not installed, or its own import fails; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        root = module.split(".")[0]
        advice = _ADVICE.get(root, "Install it with: pip install 'edge_sdk[workstation]'.")
        raise DependencyError(f"{purpose} needs the package {root}: {error}.", hint=advice) from error
