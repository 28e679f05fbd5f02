"""What the pages name exists: links, anchors, files, modules, imports."""

from __future__ import annotations

import importlib.util
import pydoc
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("sponge_env", "agents", "baselines", "benchmarks", "examples", "traces", "docs", "tests")
FILES = {f"/{path.relative_to(ROOT)}" for each in FOLDERS for path in (ROOT / each).rglob("*.*")}
FILES |= {f"/{path.name}" for path in ROOT.glob("*.*")}
OF_A_USER = re.compile(r"mine|my-.*|out|run|versions|host|learn|fidelity")
"""Names of files that a user has, or that a run writes."""

PAGES = [
    pytest.param(path.read_text(), path, id=str(path.relative_to(ROOT)))
    for pattern in ("*.md", "docs/*.md", "traces/*.md", "agents/policies/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"
]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_demo_claims_no_more_than_it_shows() -> None:
    command = ["make", "--dry-run", "--always-make", "demo"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "for show" in run.stdout
    assert re.search(r"evaluate.py .*--scenario ocr .*--duration 60", run.stdout)


@pytest.mark.parametrize(("text", "page"), PAGES)
def test_links_lead_somewhere(text: str, page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("text", "page"), PAGES)
def test_files_and_modules_exist(text: str, page: Path) -> None:
    for name, stem in re.findall(r"`((?:[\w\-]+/)*([\w\-]+)\.(?:py|toml|json|csv|png))\b", text):
        assert OF_A_USER.fullmatch(stem) or any(f.endswith(f"/{name}") for f in FILES), name
    for module in re.findall(r"python -m ((?:sponge_env|agents|baselines|benchmarks)[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for name in re.findall(r"`(sponge_env(?:\.\w+)+)", text):
        assert pydoc.locate(name) is not None, name


@pytest.mark.parametrize(("text", "page"), PAGES)
def test_imports_can_be_made(text: str, page: Path) -> None:
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    exec("\n".join(re.findall(r"^(?:from [\w.]+ )?import .*$", blocks, re.MULTILINE)), {})
