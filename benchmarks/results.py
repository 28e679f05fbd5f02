"""Results of the large suites as CSV, and their tables in README.md and docs/results.md.

    python -m benchmarks.results [--standard RUN] [--sensitivity RUN] [--stages RUN]
        [--fidelity FILE ...]

What is named is read and written to docs/results/*.csv. The tables between the marks of both
pages are then made from the CSV files, those of earlier runs included; docs/metrics.md and the
tables of fields in docs/environment.md are made from the code.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from sponge_env import cli
from sponge_env.core.fields import JOINT_FIELDS, OBS_DIM, REQUEST_FIELDS, STAGE_FIELDS
from sponge_env.errors import ConfigError
from sponge_env.fidelity.report import load_fidelity
from sponge_env.metrics import (
    EpisodeMetrics,
    IntervalMetrics,
    StageMetrics,
    column,
    declared,
    unit_of,
)
from sponge_env.results.comparison import RunFolder, load_run
from sponge_env.results.drawing import png, style_of
from sponge_env.results.export import ALL, cell_rows, csv_text, mean_rows, sweep_rows, write_files
from sponge_env.results.layout import MISSING, Table, markdown, with_block
from sponge_env.results.page import draw_all, points_figure, series_name
from sponge_env.results.statistics import Estimate

TIME_SERIES = (("paper-300kb", "cold"), ("flash-crowd", "warm"), ("deep-fade", "warm"))
"""Scenarios and starts whose first episode is drawn, with the first profile."""

SWEEPS = ("resize delay [s]", "service time [times the profile's]")
"""Sweeps that docs/results.md shows; the CSV has all."""

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

SUMMARY = ["agent", "start", "cells", "n", "avoidable_violation_rate", "cores_over_common_bound"]

Measures = Mapping[str, tuple[str, float]]
"""By metric, the format of its numbers and their scale."""

OVER_BOUND: Measures = {
    "avoidable_violation_rate": (".3f", 100),
    "cores_over_common_bound": (".2f", 1),
}
CORES: Measures = {"avoidable_violation_rate": (".2f", 100), "mean_cores": (".2f", 1)}


@cli.command
def main(argv: Sequence[str]) -> int:
    """Write CSV files, pictures and the tables of both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    for suite in ("standard", "sensitivity", "stages"):
        text = f"run of the suite {suite}"
        parser.add_argument(f"--{suite}", type=Path, metavar="RUN", help=text)
    live = "fidelity.json of sponge fidelity"
    parser.add_argument("--fidelity", nargs="+", type=Path, default=[], metavar="FILE", help=live)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_args(argv)
    folder, frames = arguments.docs / "results", dict[str, pd.DataFrame]()
    pictures: dict[str, bytes] = {}
    if arguments.standard:
        run = load_run(arguments.standard)
        means = mean_rows(run.comparison)
        overall = _overall(means).set_index("agent", drop=False)
        shown = [agent for agent in run.featured if agent in overall.index]
        frames["standard-cells"], frames["standard-means"] = cell_rows(run.comparison), means
        frames["summary"] = overall.loc[shown][SUMMARY]
        pictures = _pictures(run)
    if arguments.stages:
        comparison = load_run(arguments.stages).comparison
        frames["stages-cells"] = cell_rows(comparison)
        frames["stages-means"] = mean_rows(comparison)
    if arguments.sensitivity:
        frames["sensitivity"] = sweep_rows(load_run(arguments.sensitivity).comparison)
        if frames["sensitivity"].empty:
            raise ConfigError(f"{str(arguments.sensitivity)!r} has no sweeps")
    if arguments.fidelity:
        frames["fidelity"] = fidelity_rows(arguments.fidelity)
    write_files({folder / f"{name}.csv": csv_text(frame) for name, frame in frames.items()})
    pictures |= _points_pictures(folder)
    write_files({arguments.docs / name: content for name, content in pictures.items()})
    readme, results = arguments.docs.parent / "README.md", arguments.docs / "results.md"
    summary = markdown(_by_start(pd.read_csv(folder / "summary.csv"), OVER_BOUND))
    write_files({readme: with_block(readme.read_text(), "results", summary)})
    write_files({results: with_block(results.read_text(), "tables", tables(folder))})
    if (environment := arguments.docs / "environment.md").exists():
        page = environment_page(environment.read_text())
        write_files({environment: page, arguments.docs / "metrics.md": metrics_page()})
    print(f"wrote {folder}/*.csv, and the tables of {readme} and {results}")
    return 0


def _pictures(run: RunFolder) -> dict[str, bytes]:
    drawn = draw_all(run.comparison, run.featured)
    groups = [run.comparison.cells_of(scenario, start) for scenario, start in TIME_SERIES]
    shown = [series_name(cells[0]) for cells in groups if cells]
    return {f"results-{name}.png": drawn[name].content for name in shown}


def _points_pictures(folder: Path) -> dict[str, bytes]:
    few, all_means = (pd.read_csv(folder / f"{n}.csv") for n in ("summary", "standard-means"))
    styles = style_of([*few["agent"].unique()])
    pictures = {}
    for name, rows in (("comparison", few), ("results-pareto", _overall(all_means))):
        panels = [
            (f"{start} start", {row["agent"]: _point(row) for row in own.to_dict("records")})
            for start, own in rows.dropna(subset="cores_over_common_bound").groupby("start")
        ]
        pictures[f"{name}.png"] = png(points_figure(panels, styles, relative=True))
    return pictures


def _point(row: Mapping[str, float]) -> tuple[Estimate, Estimate]:
    """Return cores over the bound, and avoidable violations in per cent with their interval."""
    name, nan = "avoidable_violation_rate", float("nan")
    rates = (100 * row.get(f"{name}{end}", nan) for end in ("", "_low", "_high"))
    return Estimate(row["cores_over_common_bound"], nan, nan), Estimate(*rates)


def fidelity_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """Return a row for each run, scenario, agent and quantity."""
    names = ["live", "live_min", "live_max", "simulated", "difference", "verdict"]
    names += ["replayed", "replayed_difference"]
    rows = [
        [path.stem, row.scenario, row.agent, row.quantity.metric, *(getattr(row, n) for n in names)]
        for path in paths
        for row in load_fidelity(path).rows
    ]
    frame = pd.DataFrame(rows, columns=["run", "scenario", "agent", "quantity", *names])
    return frame.replace([math.inf, -math.inf], math.nan)


def tables(folder: Path) -> str:
    """Return the tables of docs/results.md in Markdown."""
    standard, stages, swept, live, few = (
        pd.read_csv(folder / f"{name}.csv", dtype={"value": str})
        for name in ("standard-means", "stages-means", "sensitivity", "fidelity", "summary")
    )
    of_scenarios = standard[standard["agent"].isin(few["agent"]) & (standard["scenario"] != ALL)]
    titled = {"All scenarios and models": _by_start(_overall(standard), OVER_BOUND)}
    for start in ("cold", "warm"):
        title = f"By scenario, {start} start: avoidable violations [%] · cores over bound"
        titled[title] = _grid(of_scenarios, start, "scenario", OVER_BOUND)
    for what in SWEEPS:
        title = f"{what.capitalize()}, warm start: avoidable violations [%] · mean cores"
        titled[title] = _grid(swept[swept["sweep"] == what], "warm", "value", CORES)
    titled["Model variants and pipelines"] = _by_start(_overall(stages), CORES)
    titled["Simulator against the real worker [%]"] = _fidelity(live)
    return "\n\n".join(f"### {title}\n\n{markdown(table)}" for title, table in titled.items())


def _overall(means: pd.DataFrame) -> pd.DataFrame:
    return means[means["scenario"] == ALL]


def _texts(values: pd.Series[float], form: str, scale: float) -> pd.Series[str]:
    return values.map(lambda value: MISSING if pd.isna(value) else format(value * scale, form))


def _by_start(rows: pd.DataFrame, measures: Measures) -> Table:
    shown = {
        f"{column(name).label}, {start} start": _texts(own[name], *measure)
        for start, own in rows.set_index("agent").groupby("start")
        for name, measure in measures.items()
    }
    return _table("controller", pd.DataFrame(shown, index=rows["agent"].unique()))


def _grid(rows: pd.DataFrame, start: str, across: str, measures: Measures) -> Table:
    rows = rows[rows["start"] == start]
    pairs = zip(*(_texts(rows[name], *m) for name, m in measures.items()), strict=True)
    entries = rows.assign(entry=[" · ".join(pair) for pair in pairs])
    wide = entries.pivot(index="agent", columns=across, values="entry")
    return _table("controller", wide.loc[rows["agent"].unique(), rows[across].unique()])


def _fidelity(rows: pd.DataFrame) -> Table:
    rows = rows.assign(key=rows["scenario"] + ", " + rows["agent"])
    by_quantity = dict(iter(rows.set_index(["run", "key"]).groupby("quantity")))
    violations = by_quantity["violation_rate"]
    shown = {
        "violations live": _texts(violations["live"], ".2f", 100),
        "simulated": _texts(violations["simulated"], ".2f", 100),
    }
    for name in ("latency_mean_s", "latency_p99_s", "mean_cores"):
        differences = by_quantity[name]["difference"]
        shown[f"{column(name).heading} off by"] = _texts(differences, "+.1f", 100)
    return _table("scenario, controller", pd.DataFrame(shown, index=violations.index).droplevel(0))


def _table(name: str, texts: pd.DataFrame) -> Table:
    """Return texts as a table whose first column, of that name, is the index."""
    rows = texts.fillna(MISSING).itertuples()
    return Table([name, *texts.columns], list(rows))


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
    sys.exit(main())
