"""The doctor with real TensorRT: it builds a layer in each precision, and says why it cannot run them here."""

from __future__ import annotations

import json

import pytest

from edge_sdk.gpu import find_gpu
from tests.tensorrt import harness


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_real_tensorrt_builds_and_is_told_from_one_that_runs(module):
    if find_gpu() is not None:
        pytest.skip("there is a GPU: what is tested here is what is said without one")
    code = "import sys; from edge_sdk.doctor.probes import main; main()"
    answer = harness.run_json(code, module, module=module)
    assert answer["status"] == "problem"
    assert answer["found"].startswith("11.4.0.106: built a float32 and an INT8 layer in ")
    assert "cannot run it: no CUDA driver" in answer["found"]
    assert answer["repair"].startswith("Running needs an NVIDIA GPU with its driver")


def test_the_command_says_so_and_exits_with_1():
    if find_gpu() is not None:
        pytest.skip("there is a GPU: what is tested here is what is said without one")
    done = harness.run(["-m", "edge_sdk", "doctor", "--json"])
    assert done.returncode == 1, done.stderr
    checks = {check["item"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["tensorrt"]["status"] == "problem"
    assert "built a float32 and an INT8 layer" in checks["tensorrt"]["found"]
    assert checks["gpu"]["status"] == "absent"
