"""What importing and running load, seen from a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge_sdk
from tests.graphs import random_images, residual

ROOT = Path(edge_sdk.__file__).parents[1]


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def test_import_is_light() -> None:
    code = """
import sys, time
start = time.perf_counter()
import edge_sdk
spent = time.perf_counter() - start
print(spent, *sys.modules)
"""
    # The best of three: another process may hold the processor once.
    outputs = [run(code).split() for _ in range(3)]
    loaded = {name.split(".")[0] for name in outputs[0][1:]}
    assert not loaded & {"torch", "onnx", "cv2", "onnxruntime", "numpy", "pydantic", "yaml"}
    assert min(float(output[0]) for output in outputs) < 0.2


def test_a_bundle_runs_without_torch_and_onnx(tmp_path: Path) -> None:
    bundle = residual().write(tmp_path / "bundle")
    images = random_images(5)
    np.save(tmp_path / "images.npy", np.stack(images))
    code = """
import json, sys
sys.modules["torch"] = sys.modules["onnx"] = None  # importing either is now an ImportError
import numpy as np
import edge_sdk
kinds, masks = [], []
with edge_sdk.EdgeRunner(sys.argv[1]) as runner:
    for image in np.load(sys.argv[2]):
        result = runner(image)
        kinds.append(result.kind.value)
        masks.append(result.mask.tolist())
loaded = sorted({name.split(".")[0] for name, module in sys.modules.items() if module is not None})
print(json.dumps([kinds, masks, loaded]))
"""
    kinds, masks, loaded = json.loads(run(code, str(bundle.path), str(tmp_path / "images.npy")))
    assert kinds == ["keyframe", "delta", "delta", "keyframe", "delta"]
    expected = residual().expected(images, [edge_sdk.StepKind(kind) for kind in kinds])
    assert masks == [mask.tolist() for mask in expected]
    assert "onnxruntime" in loaded
    assert not {"torch", "onnx", "cv2", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("name", edge_sdk.__all__)
def test_every_export_is_there(name: str) -> None:
    assert name in dir(edge_sdk)
    value = getattr(edge_sdk, name)
    assert value is getattr(edge_sdk, name)
    assert name == "__version__" or value.__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edge_sdk' has no attribute 'EdgeRuner'"):
        edge_sdk.EdgeRuner  # noqa: B018


# A stage's function has its module's name: whichever is asked for first, the package holds the function.
FIRST = (
    "from edge_sdk.compile import export",
    "import edge_sdk.compile.export",
    "from edge_sdk.compile.export import load_origin",
    "import importlib; importlib.import_module('edge_sdk.compile.export')",
)


def test_a_stage_is_its_function_however_it_is_imported() -> None:
    pytest.importorskip("torch")
    # Each in a process of its own, forked when the large packages are loaded and nothing of the stage is.
    code = """
import os, sys
import edge_sdk.compile
assert "torch" not in sys.modules and "onnx" not in sys.modules
import lightning_fabric, onnx, onnxscript, torch
assert "edge_sdk.compile.export" not in sys.modules
for first in sys.argv[1:]:
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, first
        continue
    exec(first)
    from edge_sdk.compile import ExportRecipe, export
    import edge_sdk.compile.export as same
    module = sys.modules["edge_sdk.compile.export"]
    print(export is edge_sdk.compile.export, same is export, module.export is export, flush=True)
    os._exit(0)
"""
    assert run(code, *FIRST).split() == ["True"] * 3 * len(FIRST)
