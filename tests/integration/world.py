"""Whole inputs of every kind, and spoilt ones beside them, for the tests of wrong input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sdk.bundle import Bundle, sign_bundle
from edge_sdk.distill.models import small_segmenter
from edge_sdk.signing import Trust, make_key
from edge_sdk.update import InstallSettings, install
from tests.graphs import per_frame, residual
from tests.videos import write_image, write_video

SIZE = (32, 48)


def _devices(root: Path) -> None:
    """Keys, a signed bundle, and device folders: one that runs, one of a damaged journal, one on trial."""
    for name in ("ours", "theirs"):
        make_key(root / f"{name}.pem")
    shutil.copytree(root / "bundle", root / "signed")
    sign_bundle(Bundle.open(root / "signed"), root / "ours.pem", 3)
    for name in ("device", "cut_device", "trial_device", "trial_device"):
        install(InstallSettings(bundle=root / "bundle", device=root / name, probe=None))
    trust = Trust(keys=(root / "ours.pub",))
    install(InstallSettings(bundle=root / "signed", device=root / "signed_device", probe=None, trust=trust))
    journal = root / "cut_device/journal.json"
    journal.write_text(journal.read_text()[:-90])


class RunsCode:
    """Its pickle, were it loaded, would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def network_that_fails() -> None:
    raise ZeroDivisionError("of the user's own")


def no_network() -> str:
    return "no network"


def network_of_one_size(classes: int) -> torch.nn.Module:
    """Takes 64 x 64 alone."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, classes), torch.nn.Unflatten(1, (classes, 1, 1))
    )


def make_world(root: Path) -> None:
    """Everything that the cases name under ``{world}``."""
    residual(SIZE).write(root / "bundle")
    per_frame(SIZE).write(root / "per_frame")
    per_frame((40, 64)).write(root / "per_frame_large")
    _bundles(root)
    _frames(root)
    _videos(root)
    _checkpoints(root)
    _devices(root)


def _bundles(root: Path) -> None:
    spoilt = ("no_graph", "cut_graph", "changed_graph", "cut_manifest", "newer", "unknown_key", "no_manifest")
    for name in spoilt:
        shutil.copytree(root / "bundle", root / name)
    for name in ("net", "other_net"):
        shutil.copytree(root / "per_frame", root / name)
    (root / "no_graph/delta.onnx").unlink()
    graph = (root / "bundle/delta.onnx").read_bytes()
    (root / "cut_graph/delta.onnx").write_bytes(graph[:-9])
    (root / "changed_graph/delta.onnx").write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    text = (root / "bundle/manifest.json").read_text()
    (root / "cut_manifest/manifest.json").write_text(text[: len(text) // 2])
    manifest = json.loads(text)
    (root / "newer/manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    (root / "unknown_key/manifest.json").write_text(json.dumps({**manifest, "stat": []}))
    (root / "no_manifest/manifest.json").unlink()


def _frames(root: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(4):
        image = generator.integers(0, 256, (*SIZE, 3), np.uint8)
        label = generator.integers(0, 4, SIZE).astype(np.uint8)
        for folder in ("labelled", "strange_ids", "one_label_missing", "colour_labels"):
            write_image(root / folder / "images" / f"{index}.png", image)
            spoilt = {"strange_ids": label + np.uint8(3), "colour_labels": image}.get(folder, label)
            if (folder, index) != ("one_label_missing", 2):
                write_image(root / folder / "labels" / f"{index}.png", spoilt)
        write_image(root / "unlabelled" / f"{index}.png", image)
        write_image(root / "cut_frame" / f"{index}.png", image)
        write_image(root / "two_sizes" / f"{index}.png", image[: 32 - 8 * (index == 3)])
        write_image(root / "large" / f"{index}.png", np.zeros((40, 64, 3), np.uint8))
        write_image(root / "numbered" / f"{index:06d}.png", image)
    file = root / "cut_frame/2.png"
    file.write_bytes(file.read_bytes()[:500])
    (root / "empty").mkdir()
    write_image(root / "single" / "0.png", image)


def _videos(root: Path) -> None:
    residual((48, 64)).write(root / "bundle_of_video")
    data = write_video(root / "whole.avi").read_bytes()
    (root / "cut.avi").write_bytes(data[: len(data) * 2 // 3])
    data = write_video(root / "whole.mp4", code="mp4v").read_bytes()
    (root / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])  # its index was at the end
    (root / "text.mp4").write_text("no video\n" * 99)


def _checkpoints(root: Path) -> None:
    weights = small_segmenter(classes=4, width=8).state_dict()
    torch.save(weights, root / "teacher.pt")
    data = (root / "teacher.pt").read_bytes()
    (root / "cut.pt").write_bytes(data[: len(data) // 2])
    (root / "text.pt").write_text("no checkpoint\n")
    torch.save({"weight": RunsCode(root / "code_was_run")}, root / "code.pt")
    torch.save(small_segmenter(classes=4, width=12).state_dict(), root / "wider.pt")
    torch.save({**weights, "extra": torch.zeros(1)}, root / "extra.pt")
    torch.save({"epoch": 3}, root / "no_tensors.pt")
    torch.save({"meta": {"kind": "delta"}}, root / "hollow.pt")
    torch.save({"identity": {"module": 1}}, root / "last.pt")  # what a training of another recipe leaves
