"""``edge-sdk keygen``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_sdk.cli.options import JsonFlag


def keygen(
    key: Annotated[
        Path, typer.Argument(metavar="KEY.pem", help="File for the private key; *.pub is beside it.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Make a key to sign bundles with: the private half stays with you, the public half goes to the devices."""
    from edge_sdk.cli.output import emit_json, show
    from edge_sdk.signing import make_key

    private, public, name = make_key(key)
    if as_json:
        emit_json({"private": private, "public": public, "key_id": name})
    else:
        show(f"private key: {private} (keep it off every device)", f"public key: {public}", f"id: {name}")
