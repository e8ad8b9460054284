"""The comparison as one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
from importlib import resources

from edge_sdk.optional import require
from edge_sdk.parity import table
from edge_sdk.parity.comparison import Comparison

_TEMPLATE = "report.html.j2"


def render(comparison: Comparison) -> str:
    """HTML of a comparison.

    Raises:
        DependencyError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "the report of edge-sdk compare (--out)")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    )
    shown = table.distances(comparison)
    engines = comparison.engines
    html: str = template.render(
        comparison=comparison,
        title=table.title(comparison),
        headings=table.headings(comparison),
        rows=[table.cells(engine, comparison) for engine in engines],
        meanings=table.meanings(comparison),
        notes=table.notes(comparison),
        distances=shown,
        by_distance=[[engine.engine, *table.distance_cells(engine, shown)] for engine in engines],
        output_headings=table.OUTPUT_HEADINGS,
        outputs=[
            (name, [table.output_cells(engine, one) for engine in engines for one in getattr(engine, kind)])
            for name, kind in (("On the reference's own inputs", "steps"), ("In the stream", "stream"))
        ],
        layers=[
            (trace, [(layer, table.percent(layer.relative)) for layer in trace.layers])
            for trace in comparison.traces
        ],
        conditions=json.dumps(comparison.conditions.model_dump(mode="json"), indent=2),
        reference=json.dumps(comparison.reference.model_dump(mode="json"), indent=2),
    )
    return html
