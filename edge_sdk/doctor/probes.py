"""The doctor's probes; each runs in a process of its own, whose last line is what was found, as JSON.

Each probe returns ``(status, found, repair)``; an empty repair leaves the advice to the doctor, who knows the machine,
and so does the word ``dla``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from types import ModuleType

from edge_sdk.doctor.models import ADD, CONV_SHAPE, QLINEAR_CONV, model
from edge_sdk.doctor.tensorrt import DLA_LIBRARIES, exercise
from edge_sdk.gpu import find_gpu
from edge_sdk.machine import machine_facts

Answer = tuple[str, str, str]

# What lets a CPU add up products of bytes in 32 bits at once, on x86-64 and on Arm.
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


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
    # Not before NumPy and OpenCV are known to load, which it needs.
    from edge_sdk.video.gstreamer import has_gstreamer

    gstreamer = has_gstreamer(cv2)
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
    session = ort.InferenceSession(model(ADD), providers=["CPUExecutionProvider"])
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
    onnx_module.checker.check_model(onnx_module.load_from_string(model(ADD)))
    return "ok", ", ".join(found), ""


def int8() -> Answer:
    """ONNX Runtime's INT8 kernels: right numbers, and whether sums saturate as on CPUs without VNNI."""
    ort = _import("onnxruntime")
    np = _import("numpy")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model(QLINEAR_CONV), options, providers=["CPUExecutionProvider"])

    def answer_of(level: int) -> int:
        (y,) = session.run(None, {"x": np.full(CONV_SHAPE, level, np.uint8)})
        return int(y.reshape(-1)[0]) if (y == y.reshape(-1)[0]).all() else -1

    small, large = answer_of(51), answer_of(255)
    instructions = [name for name in machine_facts("onnxruntime").cpu_features if name in INT8_INSTRUCTIONS]
    cpu = f"CPU with {', '.join(instructions)}" if instructions else "CPU without VNNI or dot products"
    if small != 40:
        return "problem", f"a QLinearConv of 40 came out as {small}; {cpu}", ""
    if large != 200:
        found = f"products of uint8 and int8 saturate in 16 bits (200 came out as {large}); {cpu}"
        return (
            "caution",
            found,
            "Quantise weights to 7 bits (onnxruntime: reduce_range), or compute in float32 here.",
        )
    return "ok", f"a QLinearConv computes right; {cpu}", ""


def tensorrt() -> Answer:
    """TensorRT: a float32 and an INT8 layer, built and run."""
    return _exercise("tensorrt")


def tensorrt_rtx() -> Answer:
    """TensorRT for RTX, the drop-in for desktop GPUs: the same."""
    return _exercise("tensorrt_rtx")


def _exercise(name: str) -> Answer:
    try:
        trt = _import(name)
    except ImportError as error:
        # On JetPack 6 TensorRT's library needs those of the DLA, which a container takes from its host.
        if any(library in str(error) for library in DLA_LIBRARIES):
            return "problem", f"ImportError: {' '.join(str(error).split())}"[:300], "dla"
        raise
    return exercise(trt)


def polygraphy() -> Answer:
    """polygraphy, by which engines for TensorRT are built."""
    return "ok", str(_import("polygraphy").__version__), ""


def gpu() -> Answer:
    """The GPU as the CUDA driver describes it."""
    found = find_gpu()
    if found is None:
        return "absent", "no CUDA driver answers", ""
    shared = "shared with the CPU" if found.integrated else "of its own"
    memory = f"{found.memory_bytes / 2**30:.1f} GiB {shared}"
    return (
        "ok",
        f"{found.name}, compute capability {found.compute_capability}, CUDA {found.cuda}, {memory}",
        "",
    )


def pycuda() -> Answer:
    """pycuda: the driver, and how many devices it sees."""
    module = _import("pycuda")
    driver = importlib.import_module("pycuda.driver")
    driver.init()
    count = driver.Device.count()
    return _judge(count > 0, f"{module.VERSION_TEXT}, {count} devices", "the driver sees no device")


PROBES: dict[str, Callable[[], Answer]] = {
    probe.__name__: probe
    for probe in (
        *(numpy, opencv, onnxruntime, int8, torch, onnx),
        *(tensorrt, tensorrt_rtx, polygraphy, pycuda, gpu),
    )
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
