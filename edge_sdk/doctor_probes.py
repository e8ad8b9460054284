"""The probes of :mod:`edge_sdk.doctor`; each runs in a process of its own, whose last line is what was found, as JSON.

Each probe returns ``(status, found, repair)``; an empty repair leaves the advice to the doctor, who knows the machine.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

Answer = tuple[str, str, str]

# A whole ONNX model (opset 13, IR 7) of one node, y = Add(x, x), over float32 x of shape (2,), as the onnx package
# serialised it. Kept as text because devices have no onnx package.
ADD_MODEL = "CAc6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAmIPCgF5EgoKCAgBEgQKAggCQgQKABAN"


class _Absent(Exception):
    """The package is not installed, as opposed to installed and broken."""


def _import(module: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise _Absent from error
        raise
    if getattr(found, "__file__", None) is None:
        raise _Absent  # a mere folder of that name on the path
    return found


def numpy() -> Answer:
    """NumPy, which everything needs."""
    np = _import("numpy")
    total = float((np.arange(6, dtype=np.float32).reshape(2, 3) @ np.ones((3, 1), np.float32)).sum())
    return _judge(total == 15.0, f"{np.__version__}", f"a sum of 15 came out as {total}")


def opencv() -> Answer:
    """OpenCV: coding a picture, GStreamer, and wheels that stand in each other's way."""
    np = _import("numpy")
    try:
        cv2 = _import("cv2")
    except (ImportError, AttributeError) as error:
        # What an OpenCV compiled for NumPy 1, such as JetPack 6's, says under NumPy 2.
        if "multiarray" in str(error) or "_ARRAY_API" in str(error):
            return "problem", f"compiled for another NumPy than {np.__version__}", "pip install 'numpy<2'"
        raise
    image = (np.indices((16, 24)).sum(0)[:, :, None] * np.array([1, 2, 3])).astype(np.uint8)
    written, png = cv2.imencode(".png", image)
    same = bool(written) and bool((cv2.imdecode(png, cv2.IMREAD_COLOR) == image).all())
    gstreamer = any("GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())
    folder = os.path.dirname(cv2.__file__ or "")
    found = f"{cv2.__version__}, GStreamer {'yes' if gstreamer else 'no'}, at {folder}"
    wheels = sorted(
        {
            name
            for d in metadata.distributions()
            if (name := str(d.metadata["Name"] or "")).startswith("opencv-")
        }
    )
    if not same:
        return "problem", f"{found}; a picture is not the same after coding and decoding", ""
    if os.environ.get("EDGE_SDK_JETSON") and wheels:
        return (
            "problem",
            f"{found}; {', '.join(wheels)} hides JetPack's own",
            f"pip uninstall {' '.join(wheels)}",
        )
    if os.environ.get("EDGE_SDK_JETSON") and not gstreamer:
        return "problem", f"{found}; CSI cameras need GStreamer", ""
    if len(wheels) > 1:
        repair = f"pip uninstall {' '.join(wheels)}, then pip install {wheels[0]}"
        return "problem", f"{found}; {' and '.join(wheels)} overwrite each other", repair
    return "ok", found, ""


def onnxruntime() -> Answer:
    """ONNX Runtime: a session on the CPU and the number it computes."""
    ort = _import("onnxruntime")
    np = _import("numpy")
    session = ort.InferenceSession(base64.b64decode(ADD_MODEL), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.array([1.5, -2.0], np.float32)})
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return _judge(
        y.tolist() == [3.0, -4.0], f"{ort.__version__} ({providers})", f"[3, -4] came out as {y.tolist()}"
    )


def torch() -> Answer:
    """PyTorch: a product, and whether it sees a GPU."""
    module = _import("torch")
    device = "cuda" if module.cuda.is_available() else "cpu"
    product = module.tensor([[1.0, 2.0]], device=device) @ module.tensor([[3.0], [4.0]], device=device)
    found = f"{module.__version__}, CUDA {'yes' if device == 'cuda' else 'no'}"
    return _judge(product.item() == 11.0, found, f"a product of 11 came out as {product.item()}")


def onnx() -> Answer:
    """The packages that export needs beside torch."""
    found = []
    for name in ("onnx", "onnxscript", "onnxslim"):
        found.append(f"{name} {_import(name).__version__}")
    onnx_module = _import("onnx")
    onnx_module.checker.check_model(onnx_module.load_from_string(base64.b64decode(ADD_MODEL)))
    return "ok", ", ".join(found), ""


def tensorrt() -> Answer:
    """TensorRT, or TensorRT for RTX: a logger and a builder."""
    try:
        trt = _import("tensorrt")
    except _Absent:
        trt = _import("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    return _judge(
        builder is not None, f"{trt.__name__} {trt.__version__}", "no builder: is there a GPU and a driver?"
    )


def pycuda() -> Answer:
    """pycuda: the driver, and how many devices it sees."""
    module = _import("pycuda")
    driver = importlib.import_module("pycuda.driver")
    driver.init()
    count = driver.Device.count()
    return _judge(count > 0, f"{module.VERSION_TEXT}, {count} devices", "the driver sees no device")


PROBES: dict[str, Callable[[], Answer]] = {
    probe.__name__: probe for probe in (numpy, opencv, onnxruntime, torch, onnx, tensorrt, pycuda)
}


def _judge(right: bool, found: str, wrong: str) -> Answer:
    return ("ok", found, "") if right else ("problem", f"{found}: {wrong}", "")


def answer(name: str) -> dict[str, str]:
    """Run one probe; whatever it raises is a finding."""
    try:
        status, found, repair = PROBES[name]()
    except _Absent:
        status, found, repair = "absent", "not installed", ""
    except Exception as error:  # noqa: BLE001  (a broken package may raise anything, and that is what we are after)
        status, found, repair = "problem", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], ""
    return {"status": status, "found": found, "repair": repair}


def main() -> None:
    """Answer for the probe named on the command line."""
    # The newline parts the answer from whatever a package printed when it was imported.
    sys.stdout.write("\n" + json.dumps(answer(sys.argv[1])) + "\n")
