"""Results of the large suites as CSV, and their tables in README.md and docs/results.md.

    python -m benchmarks.results [--standard RUN] [--sensitivity RUN] [--stages RUN]
        [--fidelity FILE ...]

What is named is read and written to docs/results/*.csv. The tables between the marks of both
pages are then made from the CSV files, those of earlier runs included.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from sponge_env import cli
from sponge_env.errors import ConfigError
from sponge_env.fidelity.report import load_fidelity
from sponge_env.metrics import column
from sponge_env.results.comparison import RunFolder, load_run
from sponge_env.results.export import (
    ALL,
    cell_rows,
    csv_text,
    mean_rows,
    sweep_rows,
    write_files,
)
from sponge_env.results.layout import MISSING, Columns, Table, markdown, with_block
from sponge_env.results.page import Section, featured, series_name

TIME_SERIES = (("paper-300kb", "cold"), ("flash-crowd", "warm"), ("deep-fade", "warm"))
"""Scenarios and starts whose first episode is drawn, with the first profile."""

SWEEPS = ("resize delay [s]", "service time [times the profile's]")
"""Sweeps that docs/results.md shows; the CSV has all."""

SUMMARY = ["agent", "start", "cells", "n", "avoidable_violation_rate", "cores_over_common_bound"]

STARTS = ("cold", "warm")

Measure = tuple[str, float]
"""Format of a number, and its scale."""

Measures = Mapping[str, Measure]
"""By metric."""

OVER_BOUND: Measures = {
    "avoidable_violation_rate": (".3f", 100),
    "cores_over_common_bound": (".2f", 1),
}
CORES: Measures = {"avoidable_violation_rate": (".2f", 100), "mean_cores": (".2f", 1)}

CONTROLLER: tuple[str, Callable[[str], str]] = ("controller", str)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; bad input ends with one sentence and exit code 2."""
    return cli.run_script(write_results, argv)


def write_results(argv: Sequence[str]) -> int:
    """Write CSV files, pictures and the tables of both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    for suite in ("standard", "sensitivity", "stages"):
        parser.add_argument(
            f"--{suite}", type=Path, metavar="RUN", help=f"run of the suite {suite}"
        )
    live = "fidelity.json of sponge fidelity"
    parser.add_argument("--fidelity", nargs="+", type=Path, default=[], metavar="FILE", help=live)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_args(argv)
    folder, files = arguments.docs / "results", dict[Path, str | bytes]()
    if arguments.standard:
        run = load_run(arguments.standard)
        files |= {folder / name: csv_text(frame) for name, frame in _standard(run).items()}
        files |= {arguments.docs / name: content for name, content in _pictures(run).items()}
    if arguments.stages:
        comparison = load_run(arguments.stages).comparison
        files[folder / "stages-cells.csv"] = csv_text(cell_rows(comparison))
        files[folder / "stages-means.csv"] = csv_text(mean_rows(comparison))
    if arguments.sensitivity:
        swept = sweep_rows(load_run(arguments.sensitivity).comparison)
        if swept.empty:
            raise ConfigError(f"{str(arguments.sensitivity)!r} has no sweeps")
        files[folder / "sensitivity.csv"] = csv_text(swept)
    if arguments.fidelity:
        files[folder / "fidelity.csv"] = csv_text(fidelity_rows(arguments.fidelity))
    write_files(files)
    readme, results = arguments.docs.parent / "README.md", arguments.docs / "results.md"
    write_files(
        {
            readme: with_block(readme.read_text(), "results", markdown(summary_table(folder))),
            results: with_block(results.read_text(), "tables", tables(folder)),
        }
    )
    print(f"wrote {folder}/*.csv, and the tables of {readme} and {results}")
    return 0


def _standard(run: RunFolder) -> dict[str, pd.DataFrame]:
    """Return the CSV files of the standard suite."""
    means = mean_rows(run.comparison)
    overall = means[means["scenario"] == ALL].set_index("agent", drop=False)
    shown = [agent for agent in run.featured if agent in overall.index]
    return {
        "standard-cells.csv": cell_rows(run.comparison),
        "standard-means.csv": means,
        "summary.csv": overall.loc[shown][SUMMARY],
    }


def _pictures(run: RunFolder) -> dict[str, bytes]:
    """Return the pictures of both pages by file name."""
    drawn = Section(run, featured(run)).pictures()
    groups = [run.comparison.cells_of(scenario, start) for scenario, start in TIME_SERIES]
    shown = ["pareto", *(series_name(cells[0]) for cells in groups if cells)]
    pictures = {f"results-{name}.png": drawn[name].content for name in shown}
    return {"comparison.png": drawn["summary"].content, **pictures}


def fidelity_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """Return a row for each run, scenario, agent and quantity."""
    names = ["run", "scenario", "agent", "quantity", "live", "live_min", "live_max", "simulated"]
    names += ["difference", "verdict", "replayed", "replayed_difference"]
    rows = [row.data() | {"run": path.stem} for path in paths for row in load_fidelity(path).rows]
    return pd.DataFrame(rows, columns=names)


def summary_table(folder: Path) -> Table:
    """Return the README's table: violations and cores of a few agents."""
    return _by_start(pd.read_csv(folder / "summary.csv"), OVER_BOUND)


def tables(folder: Path) -> str:
    """Return the tables of docs/results.md in Markdown."""
    standard, stages, swept, live, few = (
        pd.read_csv(folder / f"{name}.csv", dtype={"value": str})
        for name in ("standard-means", "stages-means", "sensitivity", "fidelity", "summary")
    )
    of_scenarios = standard[standard["agent"].isin(few["agent"]) & (standard["scenario"] != ALL)]
    titled = {"All scenarios and models": _by_start(_overall(standard), OVER_BOUND)}
    for start in STARTS:
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


def _text(value: float, form: str, scale: float = 1.0) -> str:
    return MISSING if pd.isna(value) else format(value * scale, form)


def _by_start(rows: pd.DataFrame, measures: Measures) -> Table:
    """Return agents with some metrics of each start."""
    values = rows.set_index(["start", "agent"])
    shown = [
        (f"{column(name).label}, {start} start", partial(_entry, values[name], measure, start))
        for start in STARTS
        for name, measure in measures.items()
    ]
    return Table.of([CONTROLLER, *shown], rows["agent"].unique())


def _grid(rows: pd.DataFrame, start: str, across: str, measures: Measures) -> Table:
    """Return agents with some metrics at each value of a column."""
    rows = rows[rows["start"] == start]
    values = rows.set_index([across, "agent"])

    def entry(place: str, agent: str) -> str:
        return " · ".join(_entry(values[name], m, place, agent) for name, m in measures.items())

    shown = [(place, partial(entry, place)) for place in rows[across].unique()]
    return Table.of([CONTROLLER, *shown], rows["agent"].unique())


def _entry(values: pd.Series[float], measure: Measure, *key: str) -> str:
    return _text(values.get(key, math.nan), *measure)


def _fidelity(rows: pd.DataFrame) -> Table:
    """Return violations live and simulated, and differences of latency and cores."""
    by_quantity = rows.set_index(["quantity", "run", "scenario", "agent"])
    shown = [("violations live", "violation_rate", "live", ".2f")]
    shown += [("simulated", "violation_rate", "simulated", ".2f")]
    for name in ("latency_mean_s", "latency_p99_s", "mean_cores"):
        shown.append((f"{column(name).heading} off by", name, "difference", "+.1f"))
    columns: Columns[tuple[str, ...]] = [
        ("scenario, controller", lambda key: f"{key[1]}, {key[2]}"),
        *(
            (heading, partial(_at, by_quantity.loc[quantity][field], form))
            for heading, quantity, field, form in shown
        ),
    ]
    return Table.of(columns, dict.fromkeys(key[1:] for key in by_quantity.index))


def _at(values: pd.Series[float], form: str, key: tuple[str, ...]) -> str:
    return _text(values[key], form, 100)


if __name__ == "__main__":
    sys.exit(main())
