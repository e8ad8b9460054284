"""The bundle that a build begins with: what is there already is kept, engines that are damaged are not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_sdk.build.choose import read_frames
from edge_sdk.build.recipe import BuildRecipe
from edge_sdk.bundle import FLOAT32, MANIFEST, Bundle, extend_bundle, set_name
from edge_sdk.errors import BundleError, ChecksumError, EdgeSdkError, FileFormatError, MissingFileError
from edge_sdk.files import sha256_of, write_text
from edge_sdk.manifest import SIGNATURE, BackendName, Manifest, Precision


def start_bundle(
    recipe: BuildRecipe, wanted: Iterable[tuple[BackendName, Precision]], notes: list[str]
) -> Bundle:
    """The recipe's bundle, or what an earlier build made of it in the recipe's other place.

    What else the recipe names is looked at before anything is written, rather than after an hour of building.

    Args:
        recipe: what is built.
        wanted: every pair of backend and precision.
        notes: receives what of it was damaged, and is built again.

    Raises:
        MissingFileError, FileFormatError, ChecksumError, BundleError: the bundle or the calibration set is not whole.
        RecipeError: a calibration set is needed and not named, or the source of ``accuracy`` has too few frames; see
            :func:`edge_sdk.build.choose.read_frames` for more.
        OutputError, BundleError: the other place cannot be written to, or something else is there.
    """
    origin = open_repaired(recipe.bundle, notes)
    there = _earlier(recipe, origin, notes)
    _check_inputs(recipe, there or origin, wanted)
    if there is not None:
        _refuse_strangers(there)
    return there or extend_bundle(origin, {}, out=recipe.out)


def _earlier(recipe: BuildRecipe, origin: Bundle, notes: list[str]) -> Bundle | None:
    """The bundle that is extended; None where the other place has none of this origin."""
    if recipe.out is None or recipe.out.resolve() == origin.path.resolve():
        return origin
    if not (recipe.out / MANIFEST).is_file():
        return None
    try:
        there = open_repaired(recipe.out, notes)
    except EdgeSdkError as error:
        notes.append(f"{recipe.out}: made again, it is not whole: {error}")
        return None
    return there if _same_float32(there, origin) else None


def _refuse_strangers(bundle: Bundle) -> None:
    """A bundle is replaced as a whole: what its manifest does not list would be gone, such as a calibration set.

    Raises:
        BundleError: naming the first such file.
    """
    listed = {*bundle.manifest.files, MANIFEST, SIGNATURE}
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if name not in listed and not path.is_dir():
            raise BundleError(
                f"bundle {bundle.path}: '{name}' is not of the bundle, and building replaces the folder.",
                hint="Move that file elsewhere.",
            )


def _check_inputs(
    recipe: BuildRecipe, bundle: Bundle, wanted: Iterable[tuple[BackendName, Precision]]
) -> None:
    typed = [set_name(*pair) for pair in wanted if pair[1] != FLOAT32]
    needed = recipe.calibration is not None or not set(typed) <= set(bundle.manifest.variants)
    if typed and needed and find_spec("onnx") is not None:
        from edge_sdk.compile.quantize.variants import require_calibration

        require_calibration(recipe.calibration, bundle)
    if recipe.accuracy is not None:
        read_frames(
            bundle, recipe.accuracy, min(recipe.accuracy.limit or sys.maxsize, recipe.accuracy.interval)
        )


def open_repaired(path: Path, notes: list[str]) -> Bundle:
    """Open a bundle; engine sets whose files are not what was built are taken off its manifest first.

    Args:
        path: the bundle.
        notes: receives the names of those engine sets.

    Raises:
        MissingFileError, FileFormatError, ChecksumError, BundleError: more than engines is damaged.
    """
    try:
        return Bundle.open(path)
    except (MissingFileError, FileFormatError, ChecksumError):
        damaged = _drop_damaged(path)
        if not damaged:
            raise
    notes.extend(f"{name}: built again, its files are not what was built" for name in damaged)
    return Bundle.open(path)


def _drop_damaged(path: Path) -> list[str]:
    """Names of the damaged engine sets, which the manifest lists no more."""
    file = path / MANIFEST
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        files, engines, chosen = data["files"], data["engines"], data["chosen"]
        damaged = [
            name for name in engines
            if not all(_whole(path / inside, files[inside]) for inside in files if _of_set(inside, name))
        ]  # fmt: skip
        data["engines"] = {name: built for name, built in engines.items() if name not in damaged}
        data["chosen"] = {backend: name for backend, name in chosen.items() if name not in damaged}
        data["files"] = {
            inside: record for inside, record in files.items()
            if not any(_of_set(inside, name) for name in damaged)
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # whoever opens it says what is wrong
    if damaged:
        write_text(file, json.dumps(data, indent=2) + "\n")
        for name in damaged:
            shutil.rmtree(path / "engines" / name, ignore_errors=True)
    return damaged


def _of_set(inside: str, name: str) -> bool:
    return inside.startswith(f"engines/{name}/")


def _whole(file: Path, record: dict[str, Any]) -> bool:
    return (
        file.is_file() and file.stat().st_size == record["size_bytes"] and sha256_of(file) == record["sha256"]
    )


def _same_float32(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles differ in nothing but what builds add."""
    digests = [
        {step: bundle.manifest.files[spec.graph] for step, spec in bundle.manifest.steps.items()}
        for bundle in (one, other)
    ]
    return _bare(one.manifest) == _bare(other.manifest) and digests[0] == digests[1]


def _bare(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"variants": {}, "engines": {}, "chosen": {}, "files": {}})
