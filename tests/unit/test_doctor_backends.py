"""The doctor's layers: INT8 on the CPU, and TensorRT with a made-up package over a made-up CUDA driver."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from edge_sdk.doctor import Machine, models
from edge_sdk.doctor.checks import probe

PLAIN = Machine(l4t=None, nvidia=False)
GPU = Machine(l4t=None, nvidia=True)

# ONNX Runtime whose QLinearConv gives these numbers for inputs of 51 and of 255; right are 40 and 200.
KERNELS = """
import numpy as np
__version__ = "9"
class SessionOptions: pass
class InferenceSession:
    def __init__(self, model, options, providers): pass
    def run(self, names, feed): return [np.full((1, 8, 4, 4), {51: %d, 255: %d}[int(feed["x"].max())], np.uint8)]
"""


@pytest.mark.parametrize(
    ("small", "large", "status", "found"),
    [
        (40, 200, "ok", "a QLinearConv computes right; CPU with"),
        (
            40,
            101,
            "caution",
            "products of uint8 and int8 saturate in 16 bits (200 came out as 101); CPU with",
        ),
        (39, 200, "problem", "a QLinearConv of 40 came out as 39; CPU with"),
    ],
)
def test_int8_kernels_are_held_to_their_numbers(package, small, large, status, found):
    package("onnxruntime", KERNELS % (small, large))
    check = probe("int8", PLAIN)
    assert check.status == status
    assert check.found.startswith(found)
    assert ("7 bits" in check.repair) == (status == "caution")


def test_the_models_are_what_they_are_said_to_be():
    """Made again with the onnx package, byte for byte."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def whole(nodes, kinds, shape, constants):
        ends = [[helper.make_tensor_value_info(name, kind, shape)] for name, kind in zip("xy", kinds)]
        held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "g", *ends, held)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        onnx.checker.check_model(made, full_check=True)
        return made.SerializeToString()

    node, float32 = helper.make_node, TensorProto.FLOAT
    one, byte = np.float32(1), np.int8(0)
    assert models.model(models.ADD) == whole([node("Add", ["x", "x"], ["y"])], [float32] * 2, [2], {})
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "t", "u"], ["v"], axis=0),
        node("Conv", ["d", "v"], ["y"]),
    ]
    weights = (np.arange(64) - 32).reshape(8, 8, 1, 1).astype(np.int8)
    scales = {"t": np.full(8, 0.5, np.float32), "u": np.zeros(8, np.int8)}
    found = whole(nodes, [float32] * 2, models.CONV_SHAPE, {"s": one, "z": byte, "w": weights, **scales})
    assert models.model(models.INT8_CONV) == found
    constants = {
        "s": one, "z": np.uint8(0), "u": byte, "w": np.full((8, 8, 1, 1), 127, np.int8),
        "t": np.float32(8 * 255 * 127 / 200),
    }  # fmt: skip
    nodes = [node("QLinearConv", ["x", "s", "z", "w", "s", "u", "t", "z"], ["y"])]
    assert models.model(models.QLINEAR_CONV) == whole(
        nodes, [TensorProto.UINT8] * 2, models.CONV_SHAPE, constants
    )


# A driver whose device memory is the host's, so that what is copied there can be read by a made-up TensorRT.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return %d; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)4096; return 0; }
int cuCtxPushCurrent_v2(void* context) { return context != (void*)4096; }
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) { *address = (size_t)calloc(1, bytes); return 0; }
int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t bytes) { memcpy((void*)to, from, bytes); return 0; }
int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t bytes) { memcpy(to, (void*)from, bytes); return 0; }
int cuStreamCreate(void** stream, unsigned flags) { *stream = (void*)8192; return flags != 1; }
int cuStreamSynchronize(void* stream) { return stream != (void*)8192; }
"""

# TensorRT as far as the doctor uses it; its engines run in ONNX Runtime. SPOILT names the step that fails.
TENSORRT = """
import ctypes
import numpy as np
import onnxruntime as ort
__version__ = "10.3.0"
SPOILT = "%s"
class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1
class Builder:
    num_DLA_cores = 2
    def __init__(self, log):
        if SPOILT == "builder":
            log.log(ILogger.ERROR, "CUDA initialization\\nfailure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.log = log
    def create_network(self, flags):
        assert flags == 2
        return {}
    def create_builder_config(self): return None
    def build_serialized_network(self, network, config):
        self.log.log(ILogger.WARNING, "not to be told")
        if SPOILT == "build":
            self.log.log(ILogger.ERROR, "no tactic")
        return None if SPOILT == "build" else network["graph"]
class OnnxParser:
    def __init__(self, network, log): self.network = network
    def parse(self, graph):
        self.network["graph"] = graph
        return SPOILT != "parse"
    def get_error(self, index): return self
    def desc(self): return "no such operator"
class Runtime:
    def __init__(self, log): pass
    def deserialize_cuda_engine(self, plan):
        self.session = ort.InferenceSession(plan)
        return None if SPOILT == "load" else self
    def create_execution_context(self):
        self.addresses = {}
        return self
    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True
    def execute_async_v3(self, stream):
        assert stream == 8192
        shape = self.session.get_inputs()[0].shape
        def at(name):
            return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name]))
        at("y")[:] = self.session.run(None, {"x": at("x").reshape(shape)})[0].reshape(-1) + (SPOILT == "numbers")
        return SPOILT != "run"
"""


@pytest.fixture
def driver(tmp_path_factory, monkeypatch):
    """Puts a made-up libcuda.so.1 before any other; its cuInit gives the code."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the made-up CUDA driver is written in C, and there is no gcc")

    def make(code=0):
        folder = tmp_path_factory.mktemp("driver")
        command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(folder / "libcuda.so.1")]
        subprocess.run(command, input=DRIVER % code, text=True, check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))

    return make


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_builds_and_runs_a_layer_in_two_precisions(name, package, driver):
    package(name, TENSORRT % "")
    driver()
    check = probe(name, GPU)
    assert check.status == "ok", check
    assert check.found.startswith("10.3.0: built a float32 and an INT8 layer in ")
    assert check.found.endswith("s, 2 DLA cores and computed right")


@pytest.mark.parametrize(
    ("spoilt", "found"),
    [
        ("builder", "10.3.0: cannot build a layer: no builder (pybind11::init(): factory function returned nullptr): "
                    "CUDA initialization failure with error: 35"),
        ("parse", "cannot build a layer: the parser refuses it (no such operator)"),
        ("build", "cannot build a layer: the builder gives nothing: no tactic"),
        ("load", "2 DLA cores, cannot run it: the plan does not load"),
        ("run", "2 DLA cores, cannot run it: the run fails"),
        ("numbers", "2 DLA cores, computes wrongly: float32 off by 1, INT8 off by 1"),
    ],
)  # fmt: skip
def test_a_step_that_fails_is_named_with_what_tensorrt_logged(spoilt, found, package, driver):
    package("tensorrt", TENSORRT % spoilt)
    driver()
    check = probe("tensorrt", GPU)
    assert check.status == "problem"
    assert check.found.endswith(found)
    assert check.repair != ""


def test_a_driver_that_does_not_start_is_told_by_its_code(package, driver):
    package("tensorrt", TENSORRT % "")
    driver(code=100)
    check = probe("tensorrt", GPU)
    assert check.status == "problem"
    assert check.found.endswith("cannot run it: the CUDA driver answers cuInit with error 100")
    assert check.repair.startswith("Running needs an NVIDIA GPU with its driver")
