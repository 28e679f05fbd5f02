"""Results of the large suites as CSV, and their tables in README.md and docs/results.md.

    python -m benchmarks.results [--standard RUN] [--cold RUN] [--robust RUN] [--real RUN]
        [--systems RUN] [--stages RUN] [--prove] [--fidelity FILE ...]

What is named is read and written to docs/results/*.csv. The tables between the marks of both
pages are then made from the CSV files, those of earlier runs included; docs/metrics.md and the
tables of fields in docs/environment.md are made from the code.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd

from sponge_env import cli, metrics
from sponge_env.core.fields import JOINT_FIELDS, OBS_DIM, REQUEST_FIELDS, STAGE_FIELDS
from sponge_env.errors import ConfigError
from sponge_env.fidelity.report import load_fidelity
from sponge_env.oracle import least_cores
from sponge_env.results import suite_tables
from sponge_env.results.comparison import RunFolder, load_run
from sponge_env.results.drawing import featured_of
from sponge_env.results.page import draw_all, series_name
from sponge_env.results.suite_tables import read_rows, score_table
from sponge_env.results.tables import MISSING, Table, markdown, with_block
from sponge_env.run.store import identity
from sponge_env.run.suite import BOUND_AGENTS, arranged, load_suite
from sponge_env.run.suite import cells as suite_cells
from sponge_env.utils.files import read_json, write_all

TIME_SERIES = ("swing-8-60s-0.4", "steps-0.4")  # Scenarios whose first episode is drawn

SUITES = {  # What their tables are called
    "standard": "All scenarios and models",
    "cold": "Cold starts",
    "robust": "Slow resizes and slow service",
    "real": "Recorded traces",
    "rules": "What the queue's rule is worth",
    "systems": "Random systems",
    "stages": "Pipelines",
}
SHOWN = {"robust": "by group", "real": "all", "stages": "all"}  # Beginnings of titles; else all
MISSED = {"cold": ["group", "profile"], "rules": ["group"]}  # Shown by these: few are met
ENTRIES = Path(__file__).parent / "leaderboard"  # Of others: DIVISION/NAME/cells.csv


@cli.command
def main(argv: Sequence[str]) -> int:
    """Write CSV files, pictures and the tables of both pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    for suite in SUITES:
        text = f"run of the suite {suite}"
        parser.add_argument(f"--{suite}", type=Path, metavar="RUN", help=text)
    text = "bound the cores of the standard cells first, in half an hour"
    parser.add_argument("--prove", action="store_true", help=text)
    live = "fidelity.json of sponge fidelity"
    parser.add_argument("--fidelity", nargs="+", type=Path, default=[], metavar="FILE", help=live)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the pages")
    arguments = parser.parse_args(argv)
    docs, folder = arguments.docs, arguments.docs / "results"
    files: dict[str, str | bytes] = {}
    for suite in SUITES:
        if path := getattr(arguments, suite):
            run = load_run(path)
            if arguments.prove and suite == "standard":
                prove(path)
            proven = [read_rows(path / "bounds.csv")] if (path / "bounds.csv").exists() else []
            found = suite_tables.csv_files(run.comparison, *proven)
            files |= {f"results/{suite}-{name}": text for name, text in found.items()}
            files |= _pictures(run) if suite == "standard" else {}
    if arguments.fidelity:
        files["results/fidelity.csv"] = suite_tables.csv_text(fidelity_rows(arguments.fidelity))
    write_all(docs, files)
    readme = docs.parent / "README.md"
    if (scores := folder / "standard-score.csv").exists():
        rows = read_rows(scores)
        featured = featured_of([*rows["agent"].unique()])
        shown = [score_table(own, featured) for _, own in rows.groupby("start", sort=False)]
        summary = "\n\n".join(map(markdown, shown))
        write_all(docs.parent, {readme.name: with_block(readme.read_text(), "results", summary)})
    pages = {"environment.md": environment_page, "metrics.md": metrics_page}
    pages["results.md"] = partial(with_block, name="tables", content=tables(folder))
    if (docs / "leaderboard.md").exists():
        table = leaderboard(read_rows(folder / "standard-cells.csv"), rows["reference"].iloc[0])
        pages["leaderboard.md"] = partial(with_block, name="entries", content=markdown(table))
    for name, page_of in pages.items():
        if (page := docs / name).exists():
            write_all(docs, {name: page_of(page.read_text())})
    print(f"wrote {folder}/*.csv, and the tables of {readme} and {docs / 'results.md'}")
    return 0


def prove(run: Path) -> None:
    """Write the fewest cores that any schedule needs to meet each cell, into a run without them."""
    if (run / "bounds.csv").exists():
        return
    suite = load_suite(read_json(run / "run.json")["suite"])
    seeds, shown = range(suite.first_seed, suite.first_seed + suite.seeds), arranged(suite)
    with ProcessPoolExecutor() as pool:
        cores = [*pool.map(least_cores, suite_cells(suite), repeat(seeds), repeat(metrics.MET))]
    rows = pd.DataFrame(shown.cells, columns=[*metrics.CELL])
    rows["group"] = rows["scenario"].map(lambda name: shown.groups.get(name, ""))
    more = {"agent": BOUND_AGENTS["joint"], "n": suite.seeds, "mean_cores": cores}
    write_all(run, {"bounds.csv": suite_tables.csv_text(rows.assign(**more))})


def _pictures(run: RunFolder) -> dict[str, bytes]:
    drawn = draw_all(run.comparison)
    groups = [[c for c in run.comparison.shown.cells if c[0] == name] for name in TIME_SERIES]
    names = [series_name(cells[0]) for cells in groups if cells]
    pictures = {f"results-{name}.png": drawn[name].content for name in names}
    return pictures | {"comparison.png": drawn["profile"].content}


def fidelity_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """Return a row for each run, scenario, agent and quantity."""
    names = ["live", "live_min", "live_max", "simulated", "difference", "verdict"]
    names += ["replayed", "replayed_difference"]
    rows = [
        [path.stem, row.scenario, row.agent, row.quantity.metric, *(getattr(row, n) for n in names)]
        for path in paths
        for row in load_fidelity(path)
    ]
    frame = pd.DataFrame(rows, columns=["run", "scenario", "agent", "quantity", *names])
    return frame.replace([math.inf, -math.inf], math.nan)


def tables(folder: Path) -> str:
    """Return the tables of docs/results.md in Markdown: those whose CSV files are there."""
    titled: dict[str, Table] = {}
    for suite, title in SUITES.items():
        if (scores := folder / f"{suite}-score.csv").exists():
            reference = read_rows(scores)["reference"].iloc[0]
            cells = read_rows(folder / f"{suite}-cells.csv")
            found = suite_tables.score_tables(cells, reference, [*cells["agent"].unique()])
            if suite in MISSED:
                found = {"avoidable violations [%] · mean cores": _missed(cells, MISSED[suite])}
            found = {name: found[name] for name in found if name.startswith(SHOWN.get(suite, ""))}
            titled |= {f"{title}: {name}": table for name, table in found.items()}
    if (live := folder / "fidelity.csv").exists():
        titled["Simulator against the real worker"] = _fidelity(pd.read_csv(live))
    return "\n\n".join(f"### {title}\n\n{markdown(table)}" for title, table in titled.items())


def _missed(cells: pd.DataFrame, by: Sequence[str]) -> Table:
    """Return what each agent misses, and on how many cores: means by some columns."""
    named = cells.assign(place=cells[[*by]].agg(", ".join, axis=1))
    means = named.groupby(["agent", "place"])[["avoidable_violation_rate", "mean_cores"]].mean()
    texts = means["avoidable_violation_rate"].map("{:.1%}".format).str.removesuffix("%")
    grid = (texts + " · " + means["mean_cores"].map("{:.1f}".format)).unstack()
    order = grid.loc[named["agent"].unique(), named["place"].unique()]
    return Table(["controller", *order.columns], list(order.itertuples()))


def leaderboard(cells: pd.DataFrame, reference: str) -> Table:
    """Return the scores of all entries beside the suite's agents, the best first."""
    suite, key = load_suite("standard-v1"), [*metrics.CELL, "n"]
    places = sorted((*scenario.cell, suite.seeds) for scenario in suite_cells(suite))
    wanted = {name: value for name, value in identity(suite).items() if name != "code"}
    for path in sorted(ENTRIES.glob("*/*/cells.csv")):
        entry, run = read_rows(path), read_json(path.parent / "run.json")
        same = all(run.get(name) == wanted[name] for name in wanted)
        same &= entry["agent"].nunique() == 1
        if not same or sorted(entry[key].itertuples(index=False, name=None)) != places:
            raise ConfigError(f"{path} is not one agent on the cells and seeds of {suite.name}")
        cells = pd.concat([cells, entry.assign(agent=f"**{'/'.join(path.parts[-3:-1])}**")])
    rows = suite_tables.score_rows(cells, reference)
    rows = rows.sort_values(["met", "cores_over_reference"], ascending=[False, True])
    return score_table(rows, [*rows["agent"]])


def _texts(values: "pd.Series[float]", form: str) -> "pd.Series[str]":
    return values.map(lambda share: MISSING if pd.isna(share) else format(share * 100, form))


def _fidelity(rows: pd.DataFrame) -> Table:
    # Other scenarios were played by earlier versions: they are in the CSV only.
    names = {Path(name).stem for group in load_suite("live").cells for name in group.scenarios}
    rows = rows[rows["scenario"].isin(names)].assign(key=rows["scenario"] + ", " + rows["agent"])
    by_quantity = dict(iter(rows.set_index("key").groupby("quantity")))
    violations, cores = by_quantity["violation_rate"], by_quantity["mean_cores"]
    shown = {f"violations {k} [%]": _texts(violations[k], ".2f") for k in ("live", "simulated")}
    shown |= {f"cores {k}": cores[k].map("{:.2f}".format) for k in ("live", "simulated")}
    shown["p99 off by [%]"] = _texts(by_quantity["latency_p99_s"]["difference"], "+.1f")
    texts = pd.DataFrame(shown, index=violations.index).fillna(MISSING)
    return Table(["scenario, controller", *texts.columns], list(texts.itertuples()))


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


def metric_table(cls: type[Any]) -> str:
    """Return the table of a schema's metrics in ``docs/metrics.md``."""
    own = [(f.name, f.metadata) for f in metrics.declared(cls)]
    rows = [(m["group"], f"`{n}`", metrics.unit_of(n), m["better"], m["help"]) for n, m in own]
    return text_table(("group", "name", "unit", "better", "meaning"), rows)


def metrics_page(page: str) -> str:
    """Return ``docs/metrics.md`` with the tables of today between their marks."""
    for cls in (metrics.IntervalMetrics, metrics.EpisodeMetrics, metrics.StageMetrics):
        page = with_block(page, cls.__name__, metric_table(cls))
    return page


def environment_page(page: str) -> str:
    """Return ``docs/environment.md`` with the tables of today between their marks."""
    own = [("", field) for field in REQUEST_FIELDS] + [("STAGE.", field) for field in STAGE_FIELDS]
    names = ", ".join(f"`{prefix}{field.name}`" for prefix, field in own)
    more = [
        (f"`{prefix}{field.name}`", field.meaning, field.scale)
        for prefix, field in own
        if field not in JOINT_FIELDS
    ]
    table = text_table(("not above", "meaning", "divided by"), more)
    page = with_block(page, "fields", field_table())
    return with_block(page, "stage-fields", f"{names}\n\n{table}")


if __name__ == "__main__":
    sys.exit(main())
