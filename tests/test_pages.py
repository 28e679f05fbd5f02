"""The site is built without a warning, and the notebook runs."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from project import ROOT


def test_the_site_has_every_page_and_no_dead_link(tmp_path):
    subprocess.run([sys.executable, "-m", "benchmarks.pages", tmp_path], cwd=ROOT, check=True)
    shown = (tmp_path / "site" / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="{page.stem}/"' in shown, f"{page.name} is not in the navigation"
    tour = (tmp_path / "site" / "examples" / "tour.ipynb" / "index.html").read_text()
    assert "data:image/png" in tour
    assert "requests violated" in tour


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are Jupyter's
def test_the_tour_runs_and_ships_with_what_it_prints(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 5
    assert all(cell.outputs for cell in cells)
    monkeypatch.setenv("TOUR_STEPS", "1000")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "runs" / "tour-learned" / "report" / "report.html").exists()
