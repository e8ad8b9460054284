"""``edge-sdk sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_sdk.cli.options import BundlePath, JsonFlag


def sign(
    bundle: BundlePath,
    key: Annotated[Path, typer.Option("--key", help="Private key, made by 'edge-sdk keygen'.")],
    release: Annotated[
        int, typer.Option("--release", min=0, help="Number of this release, greater than the last one's.")
    ],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="First add this reference, which 'edge-sdk install' probes with."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sign a bundle as it is now, so that a device can tell it from any other."""
    from edge_sdk.bundle import Bundle, sign_bundle
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.update.probe import with_reference

    opened = Bundle.open(bundle)
    if reference is not None:
        opened = with_reference(opened, reference)
    signed = sign_bundle(opened, key, release).signed
    if as_json:
        emit_json({"path": bundle, **signed.model_dump(mode="json")})
    else:
        show(f"{bundle}: {signed.bundle}, release {signed.release}, signed by key {signed.key_id}")
