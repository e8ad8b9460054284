"""HTML reports: one file each, filled from a template, with the style sheet that they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import Any

from edge_sdk.evaluate.table import size
from edge_sdk.optional import require


def fill(
    package: str, template: str, purpose: str, filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """A page from a template.

    Args:
        package: that holds the template.
        template: its file name; ``style`` in it is the shared style sheet, everything else is escaped. It may include
            the templates that lie beside this module.
        purpose: for the message where jinja2 is missing.
        filters: by name, beside ``pretty`` (as indented JSON) and ``size`` (of bytes).
        values: by name in the template; a name that is missing is an error.

    Raises:
        DependencyError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", purpose)
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(partial(_text, __package__)),
    )
    environment.filters |= {"pretty": _pretty, "size": size, **filters}
    style = jinja2.utils.markupsafe.Markup(_text(__package__, "page.css"))
    html: str = environment.from_string(_text(package, template)).render(style=style, **values)
    return html


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
