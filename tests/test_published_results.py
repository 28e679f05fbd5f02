"""The published results: CSV files of one format, and the tables that are made from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from report_runs import COLD, WARM, write_suite

from benchmarks.results import main

DOCS = Path(__file__).parent.parent / "docs"
AGENTS = {"sponge-ip": ([0, 1] * 3, 8.0), "hpa": ([40, 41] * 3, 5.0), "static-8": ([0] * 6, 8.0)}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Return a folder with the published results, and pages whose tables are to be made."""
    shutil.copytree(DOCS / "results", tmp_path / "docs" / "results")
    (tmp_path / "README.md").write_text("a\n<!-- results:begin -->\n<!-- results:end -->\nb\n")
    page = "# Results\n<!-- tables:begin -->\nformer\n<!-- tables:end -->\n"
    (tmp_path / "docs" / "results.md").write_text(page)
    return tmp_path / "docs"


def block(page: str, name: str) -> str:
    """Return what stands between the marks of a page."""
    return page.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]


def test_the_tables_of_the_pages_are_made_of_the_published_numbers(docs: Path) -> None:
    assert main(["--docs", str(docs)]) == 0
    readme = (docs.parent / "README.md").read_text().splitlines()
    published = (DOCS.parent / "README.md").read_text()
    assert block(published, "results") == block("\n".join(readme), "results")
    rows = [line.strip("| ").split(" | ") for line in readme if line.startswith("| ")][2:]
    summary = pd.read_csv(DOCS / "results/summary.csv")
    assert [agent for agent, *_ in rows] == [*summary["agent"].unique()]
    assert len(rows) <= 7
    for agent, *numbers in rows:
        cold, warm = (
            summary[(summary["agent"] == agent) & (summary["start"] == start)].iloc[0]
            for start in ("cold", "warm")
        )
        names = "avoidable_violation_rate", "cores_over_common_bound"
        expected = [own[name] * (100, 1)[k] for own in (cold, warm) for k, name in enumerate(names)]
        assert [*map(float, numbers)] == pytest.approx(expected)
    page = (docs / "results.md").read_text()
    published = (DOCS / "results.md").read_text()
    assert block(published, "tables") == block(page, "tables"), "run: python -m benchmarks.results"
    assert "former" not in page
    assert "| ocr, sponge-ip | 1.98 | 0.90 | -7.0 | -9.9 | +0.1 |" in page
    assert "| sponge-joint | 0.00 · 2.96 | 0.00 · 3.40 |" in page
    assert len(page.split()) < 2500


def test_runs_are_written_in_the_published_format(docs: Path, tmp_path: Path) -> None:
    slow = ("paper-300kb-delay-2", *COLD[1:])
    bounds = {"oracle": 4.0, "oracle-joint": 3.0}
    standard = write_suite(tmp_path / "standard", AGENTS, [COLD, WARM], bounds=bounds)
    stages = write_suite(tmp_path / "stages", AGENTS, [COLD])
    sweeps = {"cells": [COLD], "sweeps": {"delay [s]": {"0": [COLD], "2": [slow]}}}
    swept = write_suite(tmp_path / "swept", AGENTS, [COLD, slow], arrangement=sweeps)
    argv = ["--standard", str(standard), "--stages", str(stages), "--sensitivity", str(swept)]
    argv += ["--fidelity", *map(str, sorted(DOCS.glob("fidelity*.json"))), "--docs", str(docs)]
    assert main(argv) == 0
    files = sorted(path.name for path in (docs / "results").glob("*.csv"))
    assert len(files) == 7
    for name in files:
        written, published = (pd.read_csv(folder / "results" / name) for folder in (docs, DOCS))
        assert [*written] == [*published], name
        if name == "fidelity.csv":
            key = ["run", "scenario", "agent", "quantity"]
            pd.testing.assert_frame_equal(
                *(frame.sort_values(key, ignore_index=True) for frame in (written, published)),
                rtol=1e-5,
            )
    pictures = {"comparison.png", "results-pareto.png"}
    assert {path.name for path in docs.glob("*.png")} >= pictures
    readme = (docs.parent / "README.md").read_text()
    assert "| hpa | 4.050 | 1.67 | 4.050 | 1.67 |" in readme


def test_a_run_without_sweeps_is_refused(
    docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_suite(tmp_path / "plain", AGENTS, [COLD])
    assert main(["--sensitivity", str(plain), "--docs", str(docs)]) == 2
    assert "has no sweeps" in capsys.readouterr().err
