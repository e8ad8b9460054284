"""The table of README.md, from what `edge-sdk tune --json` printed:

python benchmarks/camvid/tune/table.py < benchmarks/camvid/tune/results.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

HEAD = ("row", "mIoU", "mean ms", "p99 ms", "times the teacher")
_TEACHER = "teacher"


def table(found: dict[str, Any]) -> str:
    """Rows by rising mean time; the one that was chosen is bold, those that nothing beats in both have a star."""
    points = sorted(found["points"], key=lambda point: point["mean_ms"]["value"])
    slowest = next(point for point in points if point["row"] == _TEACHER)["mean_ms"]["value"]
    lines = ["| " + " | ".join(HEAD) + " |", "| " + " | ".join(["---"] * len(HEAD)) + " |"]
    for point in points:
        mean = point["mean_ms"]
        half = (mean["high"] - mean["low"]) / 2
        name = _name(point)
        name = f"**{name}**" if point["row"] == found["choice"]["row"] else name
        cells = (
            name + (r" \*" if point["row"] in found["choice"]["front"] else ""),
            f"{point['score']:.4f}",
            f"{mean['value']:.2f} ±{half:.2f}",
            f"{point['p99_ms']['value']:.1f}",
            f"{slowest / mean['value']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _name(point: dict[str, Any]) -> str:
    """The row's name; of the bundle as it stands, what it would be called in the grid."""
    settings = point["settings"]
    if point["row"] != "subject":
        return point["row"]
    return f"K={settings['schedule']['interval']} {settings['engine']}"


if __name__ == "__main__":
    sys.stdout.write(table(json.load(sys.stdin)) + "\n")
