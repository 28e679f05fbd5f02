"""Generated parts of the documentation.

``python -m sponge_env.results.documentation`` writes ``docs/metrics.md`` and the tables of fields
in ``docs/environment.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sponge_env.core.fields import JOINT_FIELDS, OBS_DIM, REQUEST_FIELDS, STAGE_FIELDS
from sponge_env.metrics import EpisodeMetrics, IntervalMetrics, StageMetrics, declared, unit_of
from sponge_env.results.layout import with_block

METRICS = """# Metrics

Generated from `sponge_env/metrics.py` by `make docs`; do not edit.
The name is the CSV column and the JSON key. TensorBoard shows an interval's metrics as `slo/name`,
`resources/name` and `system/group/name`, running sums below `total/`, and an episode's below
`whole_episode/`. It hides spikes, such as the violations of a few intervals, unless *Ignore
outliers in chart scaling* is off.

At any time `offered = on_time + late + dropped + failed + queued + running`.
"""


STAGES = """
A scenario with several stages or variants has them: in the interval files as `STAGE/name`
(`detector/queued`), in TensorBoard below `stages/`, in an episode's summary (`--json`) below
`stages`, where counts are sums and the others means. `share/VARIANT` is the share of the stage's
tasks that a variant did.
"""

SECTIONS = {
    IntervalMetrics: "Per interval",
    EpisodeMetrics: "Per episode",
    StageMetrics: "Per stage and interval",
}


def text_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are all words."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def field_table() -> str:
    """Return the table of the observation's fields in ``docs/environment.md``."""
    joint = ("", " *(joint control only)*")
    rows = [
        (str(entry), f"`{field.name}`", field.meaning + joint[entry >= OBS_DIM], field.scale)
        for entry, field in enumerate(JOINT_FIELDS)
    ]
    return text_table(("entry", "name", "meaning", "divided by"), rows)


def stage_table() -> str:
    """Return the table of the fields that controllers of variants and stages see."""
    rows = [(f"`{field.name}`", field.meaning, field.scale) for field in REQUEST_FIELDS]
    rows += [(f"`STAGE.{field.name}`", field.meaning, field.scale) for field in STAGE_FIELDS]
    return text_table(("name", "meaning", "divided by"), rows)


def metrics_page() -> str:
    """Return ``docs/metrics.md``."""
    text = METRICS
    for cls, title in SECTIONS.items():
        described = [(f.name, f.metadata) for f in declared(cls)]
        rows = [(m["group"], f"`{n}`", unit_of(n), m["better"], m["help"]) for n, m in described]
        text += f"\n## {title}: `{cls.__name__}`\n\n"
        text += text_table(("group", "name", "unit", "better", "meaning"), rows)
        text += STAGES * (cls is StageMetrics)
    return text


def environment_page(page: str) -> str:
    """Return ``docs/environment.md`` with the tables of today between their marks."""
    page = with_block(page, "fields", field_table())
    return with_block(page, "stage-fields", stage_table())


if __name__ == "__main__":
    docs = Path("docs")
    (docs / "metrics.md").write_text(metrics_page())
    environment = docs / "environment.md"
    environment.write_text(environment_page(environment.read_text()))
