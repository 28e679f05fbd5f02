"""Generated parts of the documentation.

``python -m sponge_env.results.documentation`` prints ``docs/metrics.md``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby

from sponge_env.results.schema import EpisodeMetrics, IntervalMetrics


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are all words."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def field_table(fields: Iterable[tuple[str, str, str]], first: int = 0) -> str:
    """Return the table of an observation's fields; neighbours that mean the same share a row.

    Args:
        fields: Name, meaning and scale of each field, in order.
        first: Index of the first of them.
    """
    rows = []
    for (meaning, scale), group in groupby(fields, key=lambda field: field[1:]):
        names = [f"`{name}`" for name, *_ in group]
        last = first + len(names) - 1
        entries = f"{first}" if last == first else f"{first}\N{EN DASH}{last}"
        shown = names if len(names) < 4 else [names[0], "…", names[-1]]
        rows.append((entries, " ".join(shown), meaning, scale))
        first = last + 1
    return text_table(("entries", "names", "meaning", "scale"), rows)


def metrics_page() -> str:
    """Return ``docs/metrics.md``."""
    parts = [
        "# Metrics\n\n"
        "Generated from `sponge_env/results/schema.py` by `make docs`; do not edit.\n"
        "The name is the CSV column and the JSON key. The TensorBoard tag is `group/name` per\n"
        "interval, `total/group/name` for the running sums of violations and core-seconds, and\n"
        "`episode/group/name` per episode.\n"
        "\nAt any time `offered = on_time + late + dropped + failed + queued + running`.\n"
    ]
    for cls, title in ((IntervalMetrics, "Per interval"), (EpisodeMetrics, "Per episode")):
        described = [(f.name, f.metadata) for f in dataclasses.fields(cls)]
        rows = [(m["group"], f"`{n}`", m["unit"], m["better"], m["help"]) for n, m in described]
        parts.append(f"\n## {title}: `{cls.__name__}`\n\n")
        parts.append(text_table(("group", "name", "unit", "better", "meaning"), rows))
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(metrics_page())
