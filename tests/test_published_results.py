"""The published results: CSV files of one format, and the tables that are made from them."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from report_runs import COLD, write_suite

from benchmarks import freeze, results
from benchmarks.results import main
from sponge_env.results.suite_tables import read_rows, score_rows
from sponge_env.run.suite import arranged, load_suite

pytestmark = pytest.mark.usefixtures("unpainted")

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"
SUITES = "standard-v1 cold-v1 robust-v1 real-v1 rules-v1 stages-v1 systems-v2".split()
AGENTS = {"sponge-ip": ([0, 1] * 3, 8.0), "hpa": ([40, 41] * 3, 5.0), "fa2": ([0] * 6, 4.0)}


@pytest.fixture
def docs(tmp_path):
    """Return a folder with the published results, and pages whose tables are to be made."""
    shutil.copytree(RESULTS, tmp_path / "docs" / "results")
    (tmp_path / "README.md").write_text("a\n<!-- results:begin -->\n<!-- results:end -->\nb\n")
    page = "# Results\n<!-- tables:begin -->\nformer\n<!-- tables:end -->\n"
    (tmp_path / "docs" / "results.md").write_text(page)
    return tmp_path / "docs"


def block(page, name):
    """Return what stands between the marks of a page."""
    text = page.read_text()
    return text.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0].strip()


def test_the_tables_of_the_pages_are_made_of_the_published_numbers(docs):
    assert main(["--docs", str(docs)]) == 0
    check_scores(RESULTS)
    assert block(docs.parent / "README.md", "results") in (DOCS.parent / "README.md").read_text()
    tables = block(docs / "results.md", "tables").split("\n\n### ")
    published = (DOCS / "results.md").read_text()
    assert all(table in published for table in tables), "run: python -m benchmarks.results"
    assert "| flash-crowd-local, hpa | 0.00 | 0.00 | 15.00 | 15.00 | -5.0 |" in tables[-1]
    assert "ocr" not in tables[-1], "live runs of earlier versions are in the CSV only"
    assert "former" not in (docs / "results.md").read_text()


def check_scores(folder):
    """Check that scores follow from the cells beside them; return whose they are."""
    suites = sorted(path.name.removesuffix("-score.csv") for path in folder.glob("*-score.csv"))
    for suite in suites:
        cells, scores = (read_rows(folder / f"{suite}-{name}.csv") for name in ("cells", "score"))
        again = score_rows(cells, scores["reference"].iloc[0])
        pd.testing.assert_frame_equal(again, scores, rtol=1e-4, check_dtype=False)
    return suites


def test_runs_are_written_in_the_published_format(docs, tmp_path):
    steps, slow = ("steps-0.4", "lite0", "warm"), ("slow", "lite0", "warm")
    both = [("swing-8-60s-0.4", "yolov5s", "warm"), steps]
    bounds = {"oracle": 4.0, "oracle-joint": 3.0}
    shown = {"reference": "fa2", "groups": {"swing-8-60s-0.4": "peak 0.4", "steps-0.4": "peak 0.1"}}
    standard = write_suite(tmp_path / "standard", AGENTS, both, bounds=bounds, arrangement=shown)
    stages = write_suite(tmp_path / "stages", AGENTS, [COLD])
    shown = {"groups": {"steps-0.4": "delay 0", "slow": "delay 2"}, "reference": "sponge-ip"}
    robust = write_suite(tmp_path / "robust", AGENTS, [steps, slow], arrangement=shown)
    argv = ["--standard", str(standard), "--stages", str(stages), "--robust", str(robust)]
    argv += ["--fidelity", *map(str, sorted(DOCS.glob("fidelity*.json"))), "--docs", str(docs)]
    assert main(argv) == 0
    assert {*check_scores(docs / "results")} >= {"standard", "stages", "robust"}
    key = ["run", "scenario", "agent", "quantity"]
    frames = (pd.read_csv(folder / "results/fidelity.csv") for folder in (docs, DOCS))
    made, published = (frame.sort_values(key, ignore_index=True) for frame in frames)
    pd.testing.assert_frame_equal(made, published, rtol=1e-5)
    series = {f"results-series-{'-'.join(cell)}.png" for cell in both}
    assert {path.name for path in docs.glob("*.png")} == {"comparison.png", *series}
    readme = block(docs.parent / "README.md", "results")
    assert "| controller | met | cores over fa2 | worst cell | cores over bound |" in readme
    assert "| sponge-ip | 2 of 2 | 2.00 | 2.00 | 2.67 | 0.050 |" in readme
    assert "| hpa | 0 of 2 | - | - | - | 4.050 |" in readme
    page = (docs / "results.md").read_text()
    assert "### All scenarios and models: by group, warm start: met · cores over fa2" in page
    assert "| controller | delay 0 | delay 2 |" in page
    assert "| fa2 | 1/1 · 0.50 | 1/1 · 0.50 |" in page


def test_the_leaderboard_has_entries_and_the_suites_agents_best_first(docs, monkeypatch, capsys):
    (docs / "leaderboard.md").write_text("a\n<!-- entries:begin -->\n<!-- entries:end -->\nb\n")
    assert main(["--docs", str(docs)]) == 0
    board = block(docs / "leaderboard.md", "entries")
    assert board == block(DOCS / "leaderboard.md", "entries"), "run: python -m benchmarks.results"
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in board.splitlines()[2:]]
    assert "**closed/keep-up**" in {name for name, _ in rows}
    met = [int(text.split(" of ")[0]) for _, text in rows]
    assert met == sorted(met, reverse=True)
    entries = docs / "entries"
    mine = entries / "open" / "mine"
    shutil.copytree(results.ENTRIES / "closed" / "keep-up", mine)
    monkeypatch.setattr(results, "ENTRIES", entries)
    entry = pd.read_csv(mine / "cells.csv")
    for wrong in (entry[1:], pd.concat([entry, entry]), entry.assign(n=1)):
        wrong.to_csv(mine / "cells.csv", index=False)
        assert main(["--docs", str(docs)]) == 2
        assert "mine/cells.csv is not one agent on the cells" in capsys.readouterr().err


def test_seeds_follow_from_the_hash_of_the_controllers(tmp_path):
    (frozen,) = re.findall("[0-9a-f]{64}", (DOCS / "fairness.md").read_text())
    first = {name: load_suite(name).first_seed for name in SUITES}
    assert {*first.values()} == {freeze.first_seed(frozen)}
    for name in ("agents", "baselines"):
        (tmp_path / name).mkdir()
    (tmp_path / "agents" / "a.py").write_text("a")
    before = freeze.digest(tmp_path)
    (tmp_path / "baselines" / "tuned.json").write_text("{}")
    assert freeze.digest(tmp_path) != before
    (tmp_path / "agents" / "a.pyc").write_text("")
    (tmp_path / "baselines" / "tuned.json").unlink()
    assert freeze.digest(tmp_path) == before


@pytest.mark.parametrize("name", SUITES)
def test_published_cells_are_those_of_the_suite(name):
    shown, cells = arranged(load_suite(name)), read_rows(RESULTS / f"{name[:-3]}-cells.csv")
    found = cells[["scenario", "profile", "start", "group"]].itertuples(index=False, name=None)
    assert {*found} == {(*cell, shown.groups.get(cell[0], "")) for cell in shown.cells}
