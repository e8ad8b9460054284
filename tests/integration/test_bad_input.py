"""Wrong input of every kind, through the command: one line that says what to do, and a non-zero exit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edge_sdk.bundle import Bundle
from edge_sdk.cli import app
from tests.integration.update_cases import UPDATES

inputs = pytest.importorskip(
    "tests.integration.world", reason="needs the workstation's packages", exc_type=ImportError
)

SCENE = "synthetic:shapes?height=32&width=48&frames=4&seed=1"
HERE = "tests.integration.world"
TASK = {"classes": ["low", "middle", "high", "top"]}
NETWORK = {"factory": "edge_sdk.distill.models:small_segmenter", "arguments": {"classes": 4, "width": 8}}
LOOP = {"steps": 1, "batch": 1, "workers": 0, "accelerator": "cpu"}

# Complete recipes; each case spoils one of them.
RECIPES: dict[str, dict[str, Any]] = {
    "train": {
        "out": "{tmp}/out", "module": NETWORK, "task": TASK, "data": ["{world}/labelled"], "loop": LOOP,
    },
    "distill": {
        "out": "{tmp}/out", "teacher": {**NETWORK, "checkpoint": "{world}/teacher.pt"}, "task": TASK,
        "data": {"video": ["{world}/labelled"]}, "loop": LOOP,
    },
    "export": {
        "out": "{tmp}/out", "module": {**NETWORK, "checkpoint": "{world}/teacher.pt"}, "task": TASK,
        "frame_hw": list(inputs.SIZE),
    },
    "calibrate": {
        "bundle": "{world}/bundle", "draw": {"sources": ["{scene}"], "clips": 2, "frames": 2}, "out": "{tmp}/out.npz",
    },
    "build": {
        "bundle": "{world}/bundle", "out": "{tmp}/out", "backends": ["onnxruntime"], "precisions": ["float32"],
        "accuracy": {"source": "{world}/labelled", "interval": 2, "repeats": 1},
    },
    "evaluate": {"bundle": "{world}/bundle", "source": "{world}/labelled", "intervals": [2], "repeats": 1},
    "front": {
        "teacher": "{world}/per_frame", "nets": ["{world}/net", "{world}/other_net"], "pairs": ["{world}/bundle"],
        "source": "{world}/labelled", "intervals": [2], "repeats": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Args:
        name: what is wrong.
        args: the command; ``{world}`` is the folder of inputs, ``{tmp}`` an empty one, ``{recipe}`` the spoilt recipe.
        parts: what the line must hold: the offending thing, and the repair.
        spoil: dotted keys of the verb's recipe with their wrong values; ``None`` removes the key.
        text: a recipe in place of the complete one.
    """

    name: str
    args: str
    parts: tuple[str, ...]
    spoil: dict[str, Any] = field(default_factory=dict)
    text: str | None = None


def run(name: str, args: str, *parts: str, text: str | None = None) -> Case:
    """``edge-sdk run`` on the synthetic scene with the bundle, unless ``args`` name others."""
    words = args.split()
    given = [word for word in words if not word.startswith("-")][: 2 if words[0].startswith("{") else 0]
    missing = {0: ["{world}/bundle", "{scene}"], 1: ["{scene}"], 2: []}[len(given)]
    return Case(
        name, " ".join(["run", *words[: len(given)], *missing, *words[len(given) :]]), parts, text=text
    )


def recipe(verb: str, name: str, spoil: dict[str, Any], *parts: str) -> Case:
    """A verb on its recipe with wrong values."""
    return Case(name, f"{verb} {{recipe}}", parts, spoil)


# fmt: off
TORCH_SAVE = "torch.save(model.state_dict(), path)"
CASES = [
    # bundles
    run("bundle not there", "{world}/nowhere", "expected a folder at", "/nowhere"),
    run("bundle is a file", "{world}/text.mp4", "text.mp4: expected a folder, got a file", "Name its folder"),
    run("bundle is another folder", "{world}/labelled", "labelled: it holds no manifest.json", "Name the exported"),
    run("manifest missing", "{world}/no_manifest", "no_manifest: it holds no manifest.json"),
    run("manifest cut", "{world}/cut_manifest", "manifest.json: not readable as JSON", "Copy the bundle again"),
    run("manifest newer", "{world}/newer", "its format is 2", "Install the edge_sdk that wrote it"),
    run("manifest key", "{world}/unknown_key", "unknown key 'stat', did you mean 'state'?", "Export the bundle again"),
    run("graph missing", "{world}/no_graph", "the file 'delta.onnx' is missing", "Copy the bundle again"),
    run("graph cut", "{world}/cut_graph", "'delta.onnx' is truncated", "bytes", "Copy the bundle again"),
    run("graph changed", "{world}/changed_graph", "'delta.onnx' is damaged", "SHA-256", "Copy the bundle again"),
    run("no delta step", "{world}/per_frame {scene} --interval 3", "per_frame has a keyframe step only", "Use Always"),
    Case("no delta to judge", "evaluate {world}/per_frame {scene}", ("a keyframe and a delta step", "`rival`")),
    Case("rival has delta", "evaluate {world}/bundle {scene} --rival {world}/bundle", ("rival", "a per-frame bundle")),
    Case("rival's size", "evaluate {world}/bundle {scene} --rival {world}/per_frame_large",
         ("40 x 64", "takes 32 x 48", "Export both for the same")),
    # sources
    run("video not there", "{world}/bundle {world}/no.mp4", "/no.mp4, found none", "Check the path"),
    run("video is text", "{world}/bundle {world}/text.mp4", "text.mp4: cannot be opened as a video", "ffprobe"),
    run("video cut, index lost", "{world}/bundle {world}/cut.mp4", "cut.mp4: cannot be opened", "It is truncated"),
    run("video ends early", "{world}/bundle_of_video {world}/cut.avi --out {tmp}/out.avi --results {tmp}/r.jsonl",
        "cut.avi: ends or cannot be decoded at frame", "of the 24 that its header announces", "copy it again"),
    run("video's size", "{world}/bundle {world}/whole.avi",
        "48 x 64 (height x width)", "takes 32 x 48", "Export the bundle again with frame size 48 x 64"),
    run("folder's size", "{world}/bundle {world}/large", "large: its frames are 40 x 64", "takes 32 x 48", "Export"),
    Case("evaluated size", "evaluate {world}/bundle {world}/large", ("40 x 64", "takes 32 x 48", "Export")),
    run("two sizes", "{world}/bundle {world}/two_sizes", "two_sizes/3.png: 24 x 48", "resize them"),
    run("image cut", "{world}/bundle {world}/cut_frame", "cut_frame/2.png: cannot be decoded", "Copy the file again"),
    run("folder empty", "{world}/bundle {world}/empty", "empty: expected images", "Name a folder of images"),
    run("still", "{world}/bundle {world}/unlabelled/0.png", "0.png: expected a video, got a still", "Name the folder"),
    run("scheme", "{world}/bundle http://host/a", "unknown scheme 'http'", "camera:INDEX"),
    run("scene", "{world}/bundle synthetic:shape", "unknown scene 'shape', expected one of: shapes"),
    run("query key", "{world}/bundle {scene}&frame=3", "unknown key 'frame', did you mean 'frames'?"),
    run("query value", "{world}/bundle {scene}&fps=fast", "'fps'", "valid number", "got 'fast'"),
    run("camera's number", "{world}/bundle camera:front", "expected camera:INDEX such as camera:0, got 'front'"),
    Case("label missing", "evaluate {world}/bundle {world}/one_label_missing", ("a label 2.png", "?labels=0")),
    Case("labels in colour", "evaluate {world}/bundle {world}/colour_labels", ("labels/0.png", "a label of one byte")),
    Case("label ids", "evaluate {world}/bundle {world}/strange_ids --intervals 2",
         ("strange_ids: labels of frame 0", "found [4, 5, 6]", "the same classes")),
    # options
    Case("verb", "distil {world}/bundle", ("No such command 'distil'. Did you mean 'distill'", "edge-sdk --help")),
    run("option", "--fps 3", "No such option: --fps", "See: edge-sdk run --help"),
    run("option without value", "--out", "Option '--out' requires an argument", "--help"),
    Case("argument missing", "export", ("Missing argument 'RECIPE'", "See: edge-sdk export --help")),
    Case("source missing", "run {world}/bundle", ("SOURCE: expected on the command line", "edge-sdk run BUNDLE")),
    Case("argument too many", "doctor everything", ("everything", "See: edge-sdk doctor --help")),
    Case("graph not there", "lint {world}/no.onnx", ("graph: expected a file at", "/no.onnx, found none")),
    Case("graph is a video", "lint {world}/whole.avi", ("whole.avi: not readable as ONNX", "Export it again")),
    Case("folder without graphs", "lint {world}/labelled", ("keyframe.onnx or delta.onnx", "Name an ONNX file")),
    Case("precision not in the bundle", "lint {world}/bundle --precision int8",
         ("it holds no graphs for int8", "Leave --backend and --precision out")),
    Case("linted for another runtime", "lint {world}/bundle --backend tpu", ("'--backend'", "'tpu'", "'tensorrt'")),
    Case("graph of a bundle cut", "lint {world}/cut_graph", ("'delta.onnx' is truncated", "Copy the bundle again")),
    run("interval 0", "--interval 0", "'--interval'", "greater than or equal to 1", "See: edge-sdk run --help"),
    run("port", "--serve 80800", "expected [HOST:]PORT", "got '80800'", "0.0.0.0:8080 for the network"),
    run("host without port", "--serve localhost", "expected [HOST:]PORT", "got 'localhost'"),
    run("another machine's address", "--serve 192.0.2.1:0", "cannot listen on 192.0.2.1 port 0", "Give another port"),
    run("token too short", "--serve 0 --serve-token secret", "--serve: token: expected 16 to 256 letters"),
    run("token for nothing", "--serve-token 0123456789abcdef", "--serve-token: expected --serve too", "--serve 8080"),
    run("limit", "--limit ten", "'--limit'", "valid integer", "See: edge-sdk run --help"),
    Case("intervals", "evaluate {world}/bundle {scene} --intervals 0,5", ("'intervals.0'", "equal to 2, got 0")),
    Case("intervals of words", "evaluate {world}/bundle {scene} --intervals a", ("--intervals", "such as 5,10")),
    Case("interval too long", "evaluate {world}/bundle {world}/labelled --intervals 5",
         ("intervals: 5", "gave 4", "Name a longer source")),
    Case("device", "train {recipe} --device tpu", ("'--device'", "'tpu'", "'cuda'")),
    run("backend", "--backend tpu", "'tpu'", "onnxruntime"),
    run("two schedules", "--interval 2 --schedule x.yaml", "--interval and --schedule", "Leave one out"),
    run("output's kind", "--out {tmp}/o.gif", "o.gif: expected *.mp4, *.avi or a folder"),
    run("output onto input", "{world}/bundle {world}/whole.avi --out {world}/whole.avi",
        "--out", "whole.avi, which is the source's", "Name another"),
    run("output onto the folder read", "{world}/bundle {world}/numbered?fps=9 --out {world}/numbered/",
        "--out", "numbered, which is the source's", "Name another"),
    run("output onto the URI read", "{world}/bundle file://{world}/whole.avi --out {world}/whole.avi",
        "--out", "whole.avi, which is the source's", "Name another"),
    run("output into the bundle", "--results {world}/bundle/manifest.json", "--results", "the bundle's", "Name"),
    run("output below a file", "--out {world}/text.mp4/o.mp4", "text.mp4/o.mp4: cannot be written", "rights"),
    run("results below a file", "--results {world}/text.mp4/r", "text.mp4/r: cannot be written", "rights"),
    run("results onto a folder", "--results {tmp}", "cannot be written (Is a directory)", "Check the folder"),
    run("output onto others' files", "--out {world}/labelled/", "labelled: expected a new folder", "Name a folder"),
    Case("report below a file", "evaluate {recipe} --out {world}/text.mp4/r", ("text.mp4/r: cannot be", "rights")),
    # recipes
    Case("recipe not there", "train {tmp}/no.yaml", ("recipe: expected a file at", "no.yaml")),
    Case("recipe is a folder", "export {world}/labelled", ("recipe: expected a file at", "labelled")),
    Case("recipe is no YAML", "train {recipe}", ("recipe.yaml: not readable as YAML", "line 1"), text="out: [a"),
    Case("recipe is binary", "export {world}/teacher.pt", ("teacher.pt: not readable as YAML",)),
    Case("recipe is a list", "train {recipe}", ("expected keys and values, got list",), text="- out\n"),
    Case("recipe empty", "train {recipe}", ("expected keys and values, got NoneType",), text=""),
    recipe("train", "key", {"lopo": {}}, "recipe.yaml: unknown key 'lopo', did you mean 'loop'?"),
    recipe("train", "inner key", {"loop.step": 1}, "unknown key 'loop.step', did you mean 'steps'?"),
    recipe("evaluate", "evaluate key", {"interval": 5}, "unknown key 'interval', did you mean 'intervals'?"),
    recipe("train", "key missing", {"task": None}, "recipe.yaml: 'task' is missing"),
    recipe("train", "value", {"loop.steps": -1}, "'loop.steps'", "greater than 0, got -1"),
    recipe("distill", "type", {"delta.gamma": "four"}, "'delta.gamma'", "valid integer", "got 'four'"),
    recipe("train", "choice", {"optimiser.kind": "adam"}, "'optimiser.kind'", "'sgd' or 'adamw', got 'adam'"),
    recipe("distill", "rounding never observed", {"quantization": {"start": 0.5, "freeze": 0.2}},
           "'quantization'", "expected 'start' < 'freeze'", "got 0.5 and 0.2"),
    recipe("distill", "pairs missing", {"data": {}}, "'data'", "expected sources under 'video' or 'stills'"),
    recipe("train", "loss without teacher", {"loss": {"source": "both"}}, "loss.source 'both' needs a 'teacher'"),
    recipe("export", "two origins", {"checkpoint": "a.pt"}, "expected one of 'checkpoint', 'module'"),
    recipe("export", "palette", {"task.palette": [[1, 2, 3]]}, "'task'", "palette needs 4 colours"),
    run("schedule key", "--schedule {recipe}", "intervall', did you mean 'interval'?",
        text="schedule: {kind: every, interval: 3, intervall: 3}\n"),
    run("drift untold", "--schedule {recipe}", "schedule 'drift'", "has no output 'trust'", "Use schedule 'every' or",
        text="schedule: {kind: drift, below: 0.5}\n"),
    run("schedule kind", "--schedule {recipe}", "'schedule'", "'every'", "got", text="schedule: {kind: often}\n"),
    # networks
    recipe("train", "factory", {"module.factory": "networks"}, "expected package.module:function, got 'networks'"),
    recipe("train", "package", {"module.factory": "nowhere.networks:make"},
           "cannot import nowhere.networks:make", "No module named 'nowhere'", "PYTHONPATH"),
    recipe("export", "function", {"module.factory": "edge_sdk.distill.models:resnet"},
           "cannot import edge_sdk.distill.models:resnet", "spelling"),
    recipe("train", "arguments", {"module.arguments.depth": 3}, "'arguments' of", "'depth'", "Match them"),
    recipe("train", "factory fails", {"module": {"factory": f"{HERE}:network_that_fails"}},
           "network_that_fails raised ZeroDivisionError: of the user's own", "Check its 'arguments'"),
    recipe("train", "no network", {"module": {"factory": f"{HERE}:no_network"}},
           "no_network to return an nn.Module, got str", "Name a function"),
    recipe("train", "network's size",
           {"module": {"factory": f"{HERE}:network_of_one_size", "arguments": {"classes": 4}}},
           "network_of_one_size: refuses an input of (1, 3, 32, 48): RuntimeError", "augment.crop_hw"),
    recipe("export", "class count", {"task": {"classes": ["a", "b", "c"]}},
           "expected class logits (1, 3, h, w)", "got (1, 4, 8, 12)", "Match the factory's class count"),
    recipe("distill", "exact layers", {"quantization": {"keep": ["layer*"]}},
           "'quantization.keep': the pattern 'layer*' matches no convolution", "The network's convolutions are: stem"),
    recipe("distill", "layer pattern", {"delta.include": ["layer*"]},
           "'delta.include': the pattern 'layer*' matches no convolution", "The network's convolutions are: stem.0.0"),
    recipe("distill", "block pattern", {"delta.blocks": ["stage*"]},
           "'delta.blocks': the pattern 'stage*' matches no module", "The network's parts are: stem"),
    recipe("distill", "candidate", {"delta.units": {"merge": ["quarter"]}},
           "'delta.units'", "expected full, rank/N", "got 'quarter'", "Such as: full, rank/4"),
    recipe("distill", "unit pattern", {"delta.units": {"stage*": ["half"]}},
           "'delta.units': the pattern 'stage*' matches no module", "The network's parts are: stem"),
    recipe("distill", "choice of no unit", {"delta.units": {"merge": ["half"]}, "delta.choice": {"mrge": "half"}},
           "'delta.choice': 'mrge' is no unit of this network", "Its units are:"),
    recipe("distill", "choice of no candidate", {"delta.units": {"merge": ["half"]}, "delta.choice": {"merge": "full"}},
           "expected one of half for 'merge', got 'full'", "add it under delta.units"),
    recipe("distill", "table not there", {"search": {"table": "{tmp}/table.json", "budget_ms": 5}},
           "cost table: expected a file at", "table.json"),
    recipe("distill", "table of something else", {"search": {"table": "{world}/teacher.pt", "budget_ms": 5}},
           "teacher.pt", "not"),
    recipe("distill", "budget", {"search": {"table": "{tmp}/table.json", "budget_ms": 0}},
           "'search.budget_ms'", "greater than 0, got 0"),
    # checkpoints
    recipe("distill", "teacher without checkpoint", {"teacher.checkpoint": None},
           "'checkpoint' of edge_sdk.distill.models:small_segmenter", "weights, got none", "edge-sdk train RECIPE"),
    recipe("distill", "checkpoint not there", {"teacher.checkpoint": "{tmp}/no.pt"}, "expected a file at", "no.pt"),
    recipe("export", "checkpoint cut", {"module.checkpoint": "{world}/cut.pt"}, "cut.pt: truncated", TORCH_SAVE),
    recipe("export", "checkpoint is text", {"module.checkpoint": "{world}/text.pt"}, "text.pt", TORCH_SAVE),
    recipe("export", "checkpoint with code", {"module.checkpoint": "{world}/code.pt"},
           "code.pt", "with code in it", "never run", TORCH_SAVE),
    recipe("export", "checkpoint without tensors", {"module.checkpoint": "{world}/no_tensors.pt"},
           "no_tensors.pt: expected a state dict"),
    recipe("distill", "checkpoint of a wider network", {"teacher.checkpoint": "{world}/wider.pt"},
           "wider.pt does not fit SmallSegmenter", "(stem.0.0.weight: expected (4, 3, 3, 3), got (6,", "'arguments'"),
    recipe("export", "checkpoint with more", {"module.checkpoint": "{world}/extra.pt"},
           "extra.pt does not fit SmallSegmenter: 1 not in the module (extra)", "this very architecture"),
    recipe("export", "checkpoint not ours", {"module": None, "task": None, "checkpoint": "{world}/teacher.pt"},
           "teacher.pt: expected one written by edge-sdk train or distill", "give 'module'"),
    recipe("export", "checkpoint hollow", {"module": None, "task": None, "checkpoint": "{world}/hollow.pt"},
           "hollow.pt: expected one written by edge-sdk train or distill", "give 'module'"),
    recipe("train", "other training's folder", {"out": "{world}"},
           "last.pt: belongs to a training with other settings", "--no-resume"),
    # calibration
    recipe("calibrate", "calibrate key", {"clip": 3}, "unknown key 'clip', did you mean 'clips'?"),
    recipe("calibrate", "no clips", {"draw": None}, "expected either 'clips' or 'draw', not both and not neither"),
    recipe("calibrate", "clips not there", {"draw": None, "clips": "{world}/labelled"},
           "calibration clips: expected a file at", "labelled/clips.json", "draw_clips.py RECIPE"),
    recipe("calibrate", "noise", {"draw.sources": ["{world}/unlabelled"]},
           "expected pictures, 4 of 4 frames are noise", "recordings of the device's camera"),
    recipe("calibrate", "too few frames", {"draw.clips": 3}, "has 4 frames to draw from, 3 clips of 2 need 6", "Lower"),
    recipe("calibrate", "set too large", {"max_bytes": 1000}, "'max_bytes' is", "Draw shorter clips, or raise"),
    recipe("calibrate", "set's suffix", {"out": "{tmp}/out"}, "'out': expected a file *.npz"),
    recipe("calibrate", "set below a file", {"out": "{world}/text.mp4/set.npz"}, "text.mp4: cannot be", "rights"),
    recipe("calibrate", "graph to calibrate changed", {"bundle": "{world}/changed_graph"}, "'delta.onnx' is damaged"),
    # parity
    Case("nothing to compare with", "compare {world}/bundle", ("SOURCE: expected frames", "--reference FILE")),
    Case("reference not there", "compare {world}/bundle --reference {tmp}/no.npz", ("reference: expected a file at",)),
    Case("reference is text", "compare {world}/bundle --reference {world}/text.mp4",
         ("text.mp4: it is truncated, or no reference", "Copy it again")),
    Case("compared size", "compare {world}/bundle {world}/large", ("40 x 64", "takes 32 x 48", "Export")),
    Case("compared label ids", "compare {world}/bundle {world}/strange_ids",
         ("strange_ids: labels of frame 0", "found [4, 5, 6]", "the same classes")),
    Case("compared interval", "compare {world}/bundle {world}/labelled --interval 5",
         ("gave 4 frames", "keyframe period of 5", "Name a longer source")),
    Case("compared engine", "compare {world}/bundle {scene} --engine tensorrt-int8",
         ("no engines 'tensorrt-int8', only float32", "edge-sdk build RECIPE")),
    # build
    recipe("build", "build key", {"precision": ["int8"]}, "unknown key 'precision', did you mean 'precisions'?"),
    recipe("build", "precision", {"precisions": ["int4"]}, "'precisions.0'", "'float16' or 'int8', got 'int4'"),
    recipe("build", "precision twice", {"precisions": ["int8", "int8"]}, "expected each of 'precisions' once"),
    recipe("build", "inner build key", {"int8": {"keeps": []}}, "unknown key 'int8.keeps', did you mean 'keep'?"),
    recipe("build", "percentile", {"int8": {"percentile": 5}}, "'int8.percentile'", "greater than 90, got 5"),
    recipe("build", "nothing to build", {"precisions": ["float16"]},
           "nothing of float16 can be built here", "CPU kernels compute float16 in float32", "edge-sdk doctor"),
    recipe("build", "set missing", {"precisions": ["int8"]}, "'calibration'", "names no calibration set",
           "edge-sdk calibrate RECIPE"),
    recipe("build", "set not there", {"precisions": ["int8"], "calibration": "{tmp}/no.npz"},
           "expected a file at", "no.npz", "edge-sdk calibrate RECIPE"),
    recipe("build", "set is text", {"precisions": ["int8"], "calibration": "{world}/text.mp4"}, "text.mp4",
           "edge-sdk calibrate RECIPE"),
    recipe("build", "graph to build changed", {"bundle": "{world}/changed_graph"}, "'delta.onnx' is damaged"),
    recipe("build", "build onto other files", {"out": "{world}/labelled"}, "labelled: something else", "Name"),
    recipe("build", "build below a file", {"out": "{world}/text.mp4/out"}, "out: cannot be written", "rights"),
    recipe("build", "frames for the choice", {"accuracy.interval": 9}, "accuracy.interval: 9 needs as many frames",
           "labelled gave 4", "Name a longer source"),
    recipe("build", "source of the choice", {"accuracy.source": "{tmp}/none"}, "none, found none", "Check"),
    recipe("build", "size of the choice", {"accuracy.source": "{world}/large"}, "40 x 64", "32 x 48"),
    run("engine", "--engine onnxruntime-int8", "no engines 'onnxruntime-int8', only float32", "edge-sdk build RECIPE"),
    recipe("evaluate", "engine to evaluate", {"engines": ["onnxruntime-int8"]},
           "no engines 'onnxruntime-int8', only float32", "edge-sdk build RECIPE"),
    recipe("front", "front key", {"net": ["{world}/net"]}, "unknown key 'net', did you mean 'nets'?"),
    recipe("front", "one network", {"nets": ["{world}/net"]}, "'nets'", "at least 2"),
    recipe("front", "front's engine", {"engines": ["onnxruntime-int8"]},
           "no engines 'onnxruntime-int8', only float32", "edge-sdk build RECIPE"),
    recipe("front", "front without labels", {"source": "{world}/unlabelled"}, "expected labels", "Put masks"),
    recipe("front", "front's size", {"nets": ["{world}/net", "{world}/per_frame_large"]}, "40 x 64", "takes 32 x 48"),
    recipe("front", "front below a file", {"out": "{world}/text.mp4/out"}, "out: cannot be", "rights"),
    *(Case(*row) for row in UPDATES),
    # data and outputs of the workstation's verbs
    recipe("train", "labels missing", {"data": ["{world}/unlabelled"]}, "frame 0 of", "unlabelled has none", "labels/"),
    recipe("train", "unknown ids", {"data": ["{world}/strange_ids"]},
           "frame 0 of", "ids", "0..3", "Name every class"),
    recipe("train", "sizes", {"data": ["{world}/labelled", "{world}/large?labels=0"], "loss.source": "teacher",
                              "teacher": {**NETWORK, "checkpoint": "{world}/teacher.pt"}},
           "one size", "32 x 48 in", "40 x 64 in", "Resize them"),
    recipe("distill", "single frame", {"data.video": ["{world}/single"]}, "2 consecutive frames", "data.stills"),
    recipe("train", "no data", {"data": []}, "'data': expected at least one source"),
    recipe("train", "training below a file", {"out": "{world}/text.mp4/out"}, "out: cannot be written", "rights"),
    recipe("export", "bundle below a file", {"out": "{world}/text.mp4/out"}, "out: cannot be written", "rights"),
    recipe("export", "bundle onto other files", {"out": "{world}/labelled"}, "labelled: something else", "Name"),
    recipe("train", "over the teacher", {"out": "{world}/teachers", "loss.source": "both",
                                         "teacher": {**NETWORK, "checkpoint": "{world}/teachers/model.pt"}},
           "'out'", "teachers is where the teacher's checkpoint lies", "another folder"),
]
# fmt: on
PROGRESS = re.compile(r"[a-z ]+: \d+(/\d+)?(  .*)?")


def _filled(value: Any, names: dict[str, str]) -> Any:
    """``value`` with ``{world}`` and the like replaced in every string."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, dict):
        return {key: _filled(item, names) for key, item in value.items()}
    return [_filled(item, names) for item in value] if isinstance(value, list) else value


def _spoilt(whole: dict[str, Any], spoil: dict[str, Any]) -> dict[str, Any]:
    data = json.loads(json.dumps(whole))
    for path, value in spoil.items():
        *parents, key = path.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(key)
        else:
            place[key] = value
    return data


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _command(case: Case, world: Path, folder: Path) -> list[str]:
    """The words of a case's command; its recipe is written to ``folder``."""
    names = {"world": str(world), "tmp": str(folder), "scene": SCENE, "recipe": str(folder / "recipe.yaml")}
    words = case.args.split()
    if "{recipe}" in words:
        text = case.text
        if text is None:
            text = yaml.safe_dump(_filled(_spoilt(RECIPES[words[0]], case.spoil), names))
        (folder / "recipe.yaml").write_text(text)
    if words[:2] == ["evaluate", "{recipe}"]:
        words.insert(1, "--recipe")
    return list(_filled(words, names))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    inputs.make_world(root)
    return root


@pytest.fixture
def unchanged(world: Path) -> Iterator[None]:
    """Refusing leaves every input as it was."""
    before = _content(world)
    yield
    assert _content(world) == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_wrong_input_is_one_line_that_says_what_to_do(case: Case, world: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, _command(case, world, tmp_path))
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    *before, line = result.stderr.splitlines()
    assert all(PROGRESS.fullmatch(other) for other in before), result.stderr
    assert line.startswith("edge-sdk: error: ")
    for part in case.parts:
        assert part in line, line
    assert len(line) < 700, line
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "recipe.yaml"]
    assert left == []


# What native libraries write past Python, and what a fresh process does otherwise.
@pytest.mark.parametrize(
    "name", ["video is text", "video cut, index lost", "graph changed", "checkpoint with code"]
)
def test_a_process_writes_that_line_alone(name: str, world: Path, tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    command = [sys.executable, "-m", "edge_sdk", *_command(case, world, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("edge-sdk: error: ")
    for part in case.parts:
        assert part in line, line


def test_the_recipes_that_the_cases_spoil_are_whole(world: Path, tmp_path: Path) -> None:
    """Otherwise a case might be refused for another reason than its own."""
    for verb in RECIPES:
        command = _command(Case(verb, f"{verb} {{recipe}}", ()), world, tmp_path)
        out = tmp_path / ("set.npz" if verb == "calibrate" else verb)
        result = CliRunner().invoke(app, [*command, "--out", str(out)])
        assert result.exit_code == 0, (verb, result.output, result.exception)
    assert Bundle.open(tmp_path / "export").manifest.method == "per_frame"
    # The checkpoint with code in it was refused unread.
    assert not (world / "code_was_run").exists()
