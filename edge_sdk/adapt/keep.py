"""What was learned on a stream, as a bundle of its own: signed if wanted, with where its weights came from."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from pydantic import JsonValue

from edge_sdk.adapt.settings import AdaptSettings
from edge_sdk.bundle import Bundle, require_place, sign_bundle, write_bundle
from edge_sdk.errors import BundleError, TrainerError
from edge_sdk.files import require_file
from edge_sdk.manifest import SIGNATURE
from edge_sdk.settings import Settings
from edge_sdk.signing import read_signature
from edge_sdk.update.probe import REFERENCE

# In a process of its own: torch is the trainer's, not this one's.
_MERGE = (
    "import sys, pathlib; from edge_sdk.adapt.trainer.kept import pair_weights; "
    "base, kept, out = map(pathlib.Path, sys.argv[1:]); out.write_bytes(pair_weights(base, kept))"
)
_MERGE_LIMIT_S = 300.0
_LAST_WORDS = 300

Merge = Callable[[Path, Path, Path], None]


class Learnt(Settings):
    """Where weights came from that were learned on a stream.

    Args:
        base: name of the bundle that learning began with.
        base_manifest_sha256: of its manifest.
        version: of the weights.
        source: where the frames came from.
        frames, teacher_frames, lessons, updates: that they were learned from, in all.
        agreement: with the newest lesson's teacher, 0 to 1; None where there was no lesson.
        settings: of the adaptation.
        began: ISO 8601 time at which this learner was started, UTC.
        kept: ISO 8601 time at which this was written, UTC.
    """

    base: str
    base_manifest_sha256: str
    version: int
    source: str
    frames: int
    teacher_frames: int
    lessons: int
    updates: int
    agreement: float | None
    settings: AdaptSettings
    began: str
    kept: str


def now() -> str:
    """The time as provenance has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def merge_weights(base: Path, kept: Path, out: Path) -> None:
    """Write a bundle's torch weights anew, with those that a trainer has kept.

    Args:
        base: those of the bundle that learning began with.
        kept: folder of the version.
        out: file to write.

    Raises:
        TrainerError: it did not work.
    """
    command = [sys.executable, "-c", _MERGE, str(base.resolve()), str(kept.resolve()), str(out.resolve())]
    package = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *filter(None, sys.path)])}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_MERGE_LIMIT_S, env=environment, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TrainerError(f"the learned weights could not be written: {error}.") from error
    if done.returncode:
        words = " ".join(done.stderr.split())[-_LAST_WORDS:]
        raise TrainerError(f"the learned weights could not be written: {words}")


def keep_bundle(
    base: Bundle,
    kept: Path | None,
    learnt: Learnt,
    out: str | Path,
    *,
    sign_key: str | Path | None = None,
    release: int | None = None,
    merge: Merge | None = None,
) -> Bundle:
    """Write a bundle with learned weights: the base with other graphs and torch weights, so that it can go on learning.

    Variants and engines of the base are left out: they hold its old weights, as does what ``edge-sdk install`` would
    compare answers with. The provenance says so.

    Args:
        base: opened and checked.
        kept: folder of the version; None for the base's own weights.
        learnt: where they came from.
        out: the folder to make; a bundle there is replaced.
        sign_key: file of the private key to sign with; None leaves it unsigned.
        release: number of the release that is signed; None for one more than the base's, or 1.
        merge: writes the torch weights; None for :func:`merge_weights`.

    Returns:
        The bundle, opened and verified.

    Raises:
        BundleError: the base cannot learn, or something else than a bundle is in the place of ``out``.
        MissingFileError: the key, or a file of the kept version, is not there.
        OutputError, SignatureError, FileFormatError, DependencyError: as :func:`edge_sdk.bundle.write_bundle` and
            :func:`edge_sdk.bundle.sign_bundle`.
        TrainerError: the torch weights could not be written.
    """
    old = base.manifest
    if old.online is None:
        raise BundleError(f"bundle {base.path}: it has no student that can learn on a stream.")
    require_place(out)
    if sign_key is not None:
        require_file(sign_key, "private key", hint="Make one with: edge-sdk keygen KEY.pem")
    provenance = dict(old.provenance)
    earlier = provenance.get("adapted")
    provenance["adapted"] = [*(earlier if isinstance(earlier, list) else []), _record(base, learnt)]
    manifest = old.model_copy(
        update={
            "files": {}, "variants": {}, "engines": {}, "chosen": {}, "provenance": provenance, "created": "",
            "sdk_version": "",
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edge-sdk-keep-") as scratch:
        bundle = write_bundle(out, manifest, _files(base, kept, Path(scratch), merge or merge_weights))
    if sign_key is not None:
        sign_bundle(bundle, sign_key, _next_release(base) if release is None else release)
    return bundle


def _files(base: Bundle, kept: Path | None, scratch: Path, merge: Merge) -> dict[str, Path | bytes]:
    """What the new bundle holds, by name."""
    manifest = base.manifest
    old = [f"graphs/{name}/" for name in manifest.variants] + [
        f"engines/{name}/" for name in manifest.engines
    ]
    names = [name for name in manifest.files if not name.startswith(tuple(old)) and name != REFERENCE]
    files: dict[str, Path | bytes] = {name: base.path / name for name in names}
    online = manifest.online
    if kept is None or online is None:
        return files
    for step, spec in manifest.steps.items():
        if step in online.tensors:
            files[spec.graph] = kept / spec.graph
    weights = scratch / "weights.pt"
    merge(base.path / online.weights, kept, weights)
    files[online.weights] = weights
    return files


def _record(base: Bundle, learnt: Learnt) -> dict[str, JsonValue]:
    left_out = [*base.manifest.variants, *base.manifest.engines]
    left_out += [REFERENCE] if REFERENCE in base.manifest.files else []
    record: dict[str, JsonValue] = learnt.model_dump(mode="json")
    if left_out:
        record["note"] = (
            f"Left out of the base: {', '.join(sorted(set(left_out)))}. What else this provenance says was measured "
            "with the base's weights."
        )
    else:
        record["note"] = "What else this provenance says was measured with the base's weights."
    return record


def _next_release(base: Bundle) -> int:
    if base.signature is not None:
        return base.signature.signed.release + 1
    return read_signature(base.path).signed.release + 1 if (base.path / SIGNATURE).is_file() else 1
