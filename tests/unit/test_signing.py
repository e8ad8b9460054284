"""Signatures: what is accepted under which policy, and every way in which a bundle is refused."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.bundle import Bundle, extend_bundle, sign_bundle
from edge_sdk.errors import (
    BundleError,
    ChecksumError,
    DependencyError,
    EdgeSdkError,
    FileFormatError,
    MissingFileError,
    OutputError,
    RecipeError,
    SignatureError,
)
from edge_sdk.settings import parse_settings
from edge_sdk.signing import Trust, key_id, make_key, read_public_key
from tests.graphs import per_frame, residual

pytest.importorskip("cryptography")


@dataclass(frozen=True)
class Keys:
    """Files of two key pairs, and the first one's id."""

    private: Path
    public: Path
    other_private: Path
    other_public: Path
    id: str


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    private, public, name = make_key(folder / "ours.pem")
    other_private, other_public, _ = make_key(folder / "theirs.pem")
    return Keys(private, public, other_private, other_public, name)


@pytest.fixture
def signed(tmp_path: Path, keys: Keys) -> Path:
    """A bundle of release 7 with a file in a folder."""
    bundle = extend_bundle(residual().write(tmp_path / "bundle"), {"notes/a.txt": b"hello"})
    sign_bundle(bundle, keys.private, 7)
    return bundle.path


def test_a_signed_bundle_opens_under_its_policy_and_without_one(signed: Path, keys: Keys) -> None:
    for trust in (
        Trust(keys=(keys.public,)),
        Trust(keys=(keys.other_public, keys.public), min_release=7),
        Trust(keys=(keys.public,), required=False),
    ):
        bundle = Bundle.open(signed, trust=trust)
        assert bundle.signature is not None
        assert bundle.signature.signed.release == 7
        assert bundle.signature.signed.bundle == "tiny-residual"
        assert bundle.signature.signed.key_id == keys.id == key_id(read_public_key(keys.public))
    plain = Bundle.open(signed)
    assert plain.signature is None
    assert bundle.signature is not None
    assert plain.manifest_sha256 == bundle.manifest_sha256 == bundle.signature.signed.manifest_sha256
    assert "signature.json" not in plain.manifest.files


def test_without_a_policy_nothing_is_asked(signed: Path) -> None:
    (signed / "signature.json").write_text("no signature")
    (signed / "more.txt").write_text("more")
    assert Bundle.open(signed).signature is None


def test_an_unsigned_bundle_is_accepted_only_where_none_is_required(tmp_path: Path, keys: Keys) -> None:
    bundle = per_frame().write(tmp_path / "b")
    assert Bundle.open(bundle.path, trust=Trust(keys=(keys.public,), required=False)).signature is None
    with pytest.raises(SignatureError, match=r"bundle .*b: it is not signed, .*edge-sdk sign BUNDLE --key"):
        Bundle.open(bundle.path, trust=Trust(keys=(keys.public,)))


def _edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def _statement(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "signature.json", lambda data: data["signed"].update(values))


def _top(**values: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "signature.json", lambda data: data.update(values))


def _flip_in(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


def _cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])


def _new_manifest(folder: Path) -> None:
    """A manifest that is right in itself, of a graph that somebody put there."""
    other = residual((4, 6)).write(folder.parent / "other")
    extend_bundle(other, {"notes/a.txt": b"evil!"}, out=folder.parent / "evil")
    shutil.copy(folder / "signature.json", folder.parent / "evil/signature.json")
    shutil.rmtree(folder)
    (folder.parent / "evil").rename(folder)


def _space_in_manifest(folder: Path) -> None:
    """The same content in other bytes."""
    file = folder / "manifest.json"
    file.write_text(file.read_text() + "\n")


def _flip_signature(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        text = data["signature"]
        data["signature"] = ("B" if text[0] == "A" else "A") + text[1:]

    _edit(folder / "signature.json", change)


def _link_signature(folder: Path) -> None:
    (folder / "signature.json").unlink()
    (folder / "signature.json").symlink_to(folder / "nowhere")


Spoil = Callable[[Path], object]
REFUSED: dict[str, tuple[Spoil, type[EdgeSdkError], str]] = {
    "signature removed": (lambda f: (f / "signature.json").unlink(), SignatureError, "it is not signed"),
    "signature is a dead link": (_link_signature, SignatureError, "it is not signed"),
    "manifest altered": (_flip_in("manifest.json"), SignatureError, "manifest is not the one that was signed"),
    "manifest in other bytes": (_space_in_manifest, SignatureError, "manifest is not the one that was signed"),
    "manifest truncated": (_cut("manifest.json"), SignatureError, "manifest is not the one that was signed"),
    "manifest exchanged": (_new_manifest, SignatureError, "manifest is not the one that was signed"),
    "graph altered": (_flip_in("delta.onnx"), ChecksumError, "'delta.onnx' is damaged or replaced"),
    "file altered": (_flip_in("notes/a.txt"), ChecksumError, "'notes/a.txt' is damaged or replaced"),
    "graph truncated": (_cut("delta.onnx"), FileFormatError, "'delta.onnx' is truncated"),
    "graph missing": (lambda f: (f / "delta.onnx").unlink(), MissingFileError, "'delta.onnx' is missing"),
    "file added": (lambda f: (f / "notes/b").write_bytes(b"w"), SignatureError, "'notes/b' is not in its manifest"),
    "link added": (lambda f: (f / "notes/b").symlink_to(f), SignatureError, "'notes/b' is not in its manifest"),
    "signature altered": (_flip_signature, SignatureError, "signature was altered, or is not of key"),
    "signature truncated": (_cut("signature.json"), SignatureError, "signature.json: not readable as a signature"),
    "signature empty": (lambda f: (f / "signature.json").write_bytes(b""), SignatureError, "not readable"),
    "signature too large": (lambda f: (f / "signature.json").write_bytes(b" " * 70000), SignatureError, "too large"),
    "signature no base64": (_top(signature="*"), SignatureError, "'signature' is not base64"),
    "signature cut short": (_top(signature="AAAA"), SignatureError, "signature was altered"),
    "other algorithm": (_top(algorithm="none"), SignatureError, "'algorithm'.*'ed25519'"),
    "newer format": (_top(format=2), SignatureError, "'format'"),
    "unknown key in it": (_top(more=1), SignatureError, "unknown key 'more'"),
    "release raised": (_statement(release=99), SignatureError, "signature was altered"),
    "release as text": (_statement(release="7"), SignatureError, "'signed.release'"),
    "name changed": (_statement(bundle="other"), SignatureError, "signature was altered"),
    "time changed": (_statement(created="2030"), SignatureError, "signature was altered"),
    "for another manifest": (_statement(manifest_sha256="0" * 64), SignatureError, "signature was altered"),
}  # fmt: skip


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_what_was_altered_is_refused(case: str, required: bool, signed: Path, keys: Keys) -> None:
    spoil, error, message = REFUSED[case]
    spoil(signed)
    trust = Trust(keys=(keys.public,), required=required)
    if not required and message == "it is not signed":
        assert Bundle.open(signed, trust=trust).signature is None
        return
    for verify in (True, False):
        with pytest.raises(error, match=message):
            Bundle.open(signed, verify, trust=trust)


def test_another_key_and_an_older_release_are_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(SignatureError, match=rf"signed by key {keys.id}, trusted: [0-9a-f]{{16}}\."):
        Bundle.open(signed, trust=Trust(keys=(keys.other_public,)))
    with pytest.raises(SignatureError, match=r"it is release 7, expected 8 or later.*Install a newer one"):
        Bundle.open(signed, trust=Trust(keys=(keys.public,), min_release=8))
    _statement(key_id=key_id(read_public_key(keys.other_public)))(signed)
    with pytest.raises(SignatureError, match="signature was altered, or is not of key"):
        Bundle.open(signed, trust=Trust(keys=(keys.public, keys.other_public)))


def test_a_bundle_that_is_extended_must_be_signed_again(signed: Path, keys: Keys) -> None:
    trust = Trust(keys=(keys.public,))
    bundle = extend_bundle(Bundle.open(signed, trust=trust), {"more.txt": b"more"})
    with pytest.raises(SignatureError, match="it is not signed"):
        Bundle.open(signed, trust=trust)
    assert sign_bundle(bundle, keys.private, 8).signed.release == 8
    assert Bundle.open(signed, trust=trust).manifest.files["more.txt"].size_bytes == 4


def test_no_manifest_may_list_the_signature(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"'signature\.json' is not the plain path of a file inside"):
        extend_bundle(residual().write(tmp_path / "b"), {"signature.json": b"{}"})


def test_what_cannot_be_signed_is_refused(tmp_path: Path, keys: Keys) -> None:
    bundle = residual().write(tmp_path / "b")
    for release in (-1, "7", 1.5):
        with pytest.raises(RecipeError, match=r"signature: 'release'"):
            sign_bundle(bundle, keys.private, release)  # type: ignore[arg-type]
    (bundle.path / "weights.bin").write_bytes(b"w")
    with pytest.raises(SignatureError, match=r"'weights\.bin' is not in its manifest"):
        sign_bundle(bundle, keys.private, 1)


def test_the_private_key_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    private, public, _ = make_key(tmp_path / "k.pem")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public == tmp_path / "k.pub"
    before = private.read_bytes()
    with pytest.raises(OutputError, match=r"key .*k\.pem: it is there already"):
        make_key(private)
    private.unlink()
    with pytest.raises(OutputError, match=r"key .*k\.pub: it is there already"):
        make_key(private)
    assert b"PRIVATE" in before
    with pytest.raises(RecipeError, match=r"cannot be a \*\.pub"):
        make_key(tmp_path / "l.pub")


def _rsa() -> bytes:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = rsa.generate_private_key(65537, 2048).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _encrypted() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )


def test_files_that_hold_no_key_are_refused(tmp_path: Path, keys: Keys, signed: Path) -> None:
    def trust(file: Path) -> None:
        Bundle.open(signed, trust=Trust(keys=(file,)))

    file = tmp_path / "key"
    with pytest.raises(MissingFileError, match=r"public key: expected a file at .*edge-sdk keygen"):
        trust(file)
    with pytest.raises(FileFormatError, match="is a private key, which belongs on no device"):
        trust(keys.private)
    for content, message in (
        (b"ssh-ed25519 AAAA", "expected a PEM file"),
        (_rsa(), "expected an Ed25519 key"),
    ):
        file.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            trust(file)
    with pytest.raises(FileFormatError, match="expected a PEM file with a private key"):
        sign_bundle(Bundle.open(signed), keys.public, 1)
    file.write_bytes(_encrypted())
    with pytest.raises(FileFormatError, match="it is encrypted"):
        sign_bundle(Bundle.open(signed), file, 1)
    with pytest.raises(RecipeError, match="trust: 'keys'"):
        parse_settings({"keys": []}, Trust, "trust")


def test_openssl_reads_the_keys_and_verifies_the_signature(signed: Path, keys: Keys, tmp_path: Path) -> None:
    """The format is no secret of ours: another program gets to the same answer."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    import base64

    data = json.loads((signed / "signature.json").read_text())
    (tmp_path / "message").write_bytes(
        b"edge_sdk bundle signature 1\n" + json.dumps(data["signed"], sort_keys=True).encode()
    )
    (tmp_path / "signature").write_bytes(base64.b64decode(data["signature"]))
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(keys.public)]
    command += ["-in", str(tmp_path / "message"), "-sigfile", str(tmp_path / "signature")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_cryptography_the_policy_says_what_to_install(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert Bundle.open(signed).signature is None
    with pytest.raises(DependencyError, match=r"needs the package cryptography.*edge_sdk\[signing\]"):
        Bundle.open(signed, trust=Trust(keys=(keys.public,)))
