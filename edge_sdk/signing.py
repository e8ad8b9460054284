"""Who made a bundle: an Ed25519 signature beside its manifest, and the policy that asks for one.

    NAME/signature.json    what is signed, by which key, and the signature

What is signed is the SHA-256 of the manifest's bytes, and the manifest holds the SHA-256 of every other file; with it
the bundle's name, a release number that grows, and the time. Keys are PEM files, as OpenSSL writes them too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge_sdk.errors import FileFormatError, OutputError, RecipeError, SignatureError
from edge_sdk.files import atomic_file, require_file, write_text
from edge_sdk.manifest import MANIFEST, SIGNATURE, Sha256
from edge_sdk.optional import require
from edge_sdk.settings import Settings, parse_settings

_PURPOSE = "signing bundles, and checking signatures,"
# Nothing else that such a key signs begins so: a signature cannot be carried over from another use.
_PREFIX = b"edge_sdk bundle signature 1\n"
_SIGN = "Sign it with: edge-sdk sign BUNDLE --key KEY.pem --release NUMBER"
_SIGN_AGAIN = _SIGN.replace("it with", "it again")
# Hex digits of a public key's SHA-256 that name it; enough to tell a few keys apart, the key itself decides.
_ID_DIGITS = 16
# A signature is a few hundred bytes; nothing larger is parsed.
_LARGEST_BYTES = 1 << 16


class Statement(Settings):
    """What a signature says.

    Args:
        bundle: the bundle's name.
        manifest_sha256: of the manifest's bytes.
        release: grows from bundle to bundle, so that an older one is known as such.
        created: ISO 8601 time of signing, UTC.
        key_id: which key signed, see :func:`key_id`.
    """

    bundle: str
    manifest_sha256: Sha256
    release: int = Field(ge=0, strict=True)
    created: str
    key_id: str

    def signed_bytes(self) -> bytes:
        """The bytes that are signed."""
        return _PREFIX + json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()


class Signature(Settings):
    """The content of ``signature.json``; ``signature`` is in base64."""

    kind: Literal["edge_sdk signature"] = "edge_sdk signature"
    format: Literal[1] = 1
    algorithm: Literal["ed25519"] = "ed25519"
    signed: Statement
    signature: str


class Trust(Settings):
    """Which bundles are accepted.

    Args:
        keys: files of public keys, PEM; a bundle that any of them signed is accepted.
        required: refuse bundles without a signature. Where it is false those are accepted, but a signature that is
            there must be good; whoever can take a signature away can then also go back to an older release.
        min_release: refuse releases below this number.
    """

    keys: tuple[Path, ...] = Field(min_length=1)
    required: bool = True
    min_release: int = Field(default=0, ge=0)

    def check(self, folder: Path, manifest: bytes) -> Signature | None:
        """Check the signature of the bundle in ``folder``, before anything of it is interpreted.

        Args:
            folder: the bundle.
            manifest: the bytes of its manifest, as they will be parsed.

        Returns:
            The signature; None where there is none and none is required.

        Raises:
            SignatureError: there is none, it is of no trusted key, the manifest or the signature was altered, or the
                release is below ``min_release``.
            MissingFileError, FileFormatError: a trusted key cannot be read.
            DependencyError: the package cryptography is not installed.
        """
        trusted = {key_id(key): key for key in map(read_public_key, self.keys)}
        if not (folder / SIGNATURE).exists():
            if not self.required:
                return None
            raise SignatureError(f"bundle {folder}: it is not signed, and only signed ones are accepted.",
                                 hint=_SIGN)  # fmt: skip
        found = read_signature(folder)
        self._check_key(folder, found, trusted)
        digest = hashlib.sha256(manifest).hexdigest()
        if digest != found.signed.manifest_sha256:
            raise SignatureError(
                f"bundle {folder}: its manifest is not the one that was signed: expected SHA-256 "
                f"{found.signed.manifest_sha256[:12]}..., got {digest[:12]}....",
                hint="Copy it again from where it was signed; if engines were built into it since, sign it again.",
            )
        if found.signed.release < self.min_release:
            raise SignatureError(
                f"bundle {folder}: it is release {found.signed.release}, expected {self.min_release} or later.",
                hint="Install a newer one.",
            )
        return found

    @staticmethod
    def _check_key(folder: Path, found: Signature, trusted: dict[str, Any]) -> None:
        key = trusted.get(found.signed.key_id)
        if key is None:
            raise SignatureError(
                f"bundle {folder}: it is signed by key {found.signed.key_id}, "
                f"trusted: {', '.join(sorted(trusted))}.",
                hint="Take a bundle of a trusted key, or name this key among those that are trusted.",
            )
        try:
            key.verify(_decoded(folder, found.signature), found.signed.signed_bytes())
        except require("cryptography.exceptions", _PURPOSE).InvalidSignature as error:
            raise SignatureError(
                f"bundle {folder}: its signature was altered, or is not of key {found.signed.key_id}.",
                hint="Copy the bundle again from where it was signed.",
            ) from error


def check_nothing_unlisted(folder: Path, listed: Iterable[str]) -> None:
    """Refuse a signed bundle with files that no signature covers: a graph may read its weights from one.

    Raises:
        SignatureError: naming the first.
    """
    known = {*listed, MANIFEST, SIGNATURE}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            raise SignatureError(
                f"bundle {folder}: '{name}' is not in its manifest, so no signature covers it.",
                hint="Remove the file, or copy the bundle again from where it was signed.",
            )


def make_key(path: str | Path) -> tuple[Path, Path, str]:
    """Make a key pair: the private key in ``path``, readable by its owner alone, the public one beside it as ``*.pub``.

    Returns:
        Both files, and the key's id.

    Raises:
        RecipeError: ``path`` ends in ``.pub``.
        OutputError: one of them is there already, or cannot be written.
        DependencyError: the package cryptography is not installed.
    """
    private, public = Path(path), Path(path).with_suffix(".pub")
    if private == public:
        raise RecipeError(f"key {private}: the private key cannot be a *.pub.", hint="Name it KEY.pem.")
    for file in (private, public):
        if file.exists():
            raise OutputError(
                f"key {file}: it is there already.", hint="Name another file; keys are never replaced."
            )
    ed25519, forms = _ed25519(), _serialization()
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    with atomic_file(private, private=True) as temporary:
        temporary.write_bytes(secret)
    open_bytes = key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    write_text(public, open_bytes.decode())
    return private, public, key_id(key.public_key())


def sign_manifest(
    folder: Path, bundle: str, manifest_sha256: str, key: str | Path, release: int
) -> Signature:
    """Write ``signature.json`` into a bundle; use :func:`edge_sdk.bundle.sign_bundle`, which opens and checks it.

    Raises:
        MissingFileError, FileFormatError: ``key`` is not there, or no Ed25519 private key.
        RecipeError: ``release`` is not a whole number of at least 0.
        OutputError: it cannot be written.
        DependencyError: the package cryptography is not installed.
    """
    private = _read_private_key(key)
    data = {
        "bundle": bundle, "manifest_sha256": manifest_sha256, "release": release,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"), "key_id": key_id(private.public_key()),
    }  # fmt: skip
    statement = parse_settings(data, Statement, "signature")
    signature = Signature(
        signed=statement, signature=base64.b64encode(private.sign(statement.signed_bytes())).decode()
    )
    write_text(folder / SIGNATURE, signature.model_dump_json(indent=2) + "\n")
    return signature


def read_signature(folder: Path) -> Signature:
    """The signature of a bundle, unchecked.

    Raises:
        SignatureError: it is truncated, no signature, or of another format.
    """
    file = folder / SIGNATURE
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            raise ValueError("it is too large")
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        return parse_settings(data, Signature, str(file))
    except RecipeError as error:
        raise SignatureError(str(error), hint=_SIGN_AGAIN) from None
    except (OSError, ValueError) as error:
        raise SignatureError(f"{file}: not readable as a signature: {error}.", hint=_SIGN_AGAIN) from error


def key_id(public: Any) -> str:
    """Name of a public key: the first 16 hex digits of the SHA-256 of its 32 bytes."""
    forms = _serialization()
    raw = public.public_bytes(forms.Encoding.Raw, forms.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:_ID_DIGITS]


def read_public_key(path: str | Path) -> Any:
    """The Ed25519 public key in a PEM file.

    Raises:
        MissingFileError: no file there.
        FileFormatError: it holds none; a private key is named as such.
        DependencyError: the package cryptography is not installed.
    """
    file = require_file(path, "public key", hint="Make one with: edge-sdk keygen KEY.pem")
    data = file.read_bytes()
    if b"PRIVATE KEY" in data:
        raise FileFormatError(
            f"public key {file}: it is a private key, which belongs on no device.",
            hint="Name the *.pub beside it.",
        )
    return _key(file, data, "public", _serialization().load_pem_public_key, _ed25519().Ed25519PublicKey)


def _read_private_key(path: str | Path) -> Any:
    file = require_file(path, "private key", hint="Make one with: edge-sdk keygen KEY.pem")

    def load(data: bytes) -> Any:
        return _serialization().load_pem_private_key(data, password=None)

    return _key(file, file.read_bytes(), "private", load, _ed25519().Ed25519PrivateKey)


def _key(file: Path, data: bytes, which: str, load: Any, kind: type) -> Any:
    unsupported = require("cryptography.exceptions", _PURPOSE).UnsupportedAlgorithm
    hint = "Make one with: edge-sdk keygen KEY.pem"
    try:
        key = load(data)
    except TypeError as error:  # a private key under a password
        raise FileFormatError(
            f"{which} key {file}: it is encrypted.", hint="Decrypt it with: openssl pkey"
        ) from error
    except (ValueError, unsupported) as error:
        raise FileFormatError(
            f"{which} key {file}: expected a PEM file with a {which} key.", hint=hint
        ) from error
    if not isinstance(key, kind):
        raise FileFormatError(
            f"{which} key {file}: expected an Ed25519 key, got {type(key).__name__}.", hint=hint
        )
    return key


def _decoded(folder: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"{folder / SIGNATURE}: 'signature' is not base64.", hint=_SIGN_AGAIN) from error


def _ed25519() -> Any:
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", _PURPOSE)


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", _PURPOSE)
