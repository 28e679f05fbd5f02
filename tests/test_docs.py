"""What the pages and the mutants name exists: links, anchors, files, modules, imports, lines."""

from __future__ import annotations

import importlib.util
import pydoc
import re
import subprocess
from pathlib import Path
from typing import Any

import mutations
import pytest

import sponge_env

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = "sponge_env agents baselines benchmarks deploy examples traces docs tests".split()
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


def test_public_names_are_there_and_documented() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name in sponge_env.__all__:
        assert getattr(sponge_env, name).__doc__
        assert f"`{name}`" in page, name
    assert set(sponge_env.__all__) <= set(dir(sponge_env))
    with pytest.raises(AttributeError, match="no attribute 'Elephant'"):
        _ = sponge_env.Elephant


@pytest.mark.parametrize("mutant", [*mutations.mutants()], ids=lambda mutant: mutant.name)
def test_a_mutant_changes_a_line_that_there_is_and_names_its_tests(mutant: Any) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for file, _, test in (name.partition("::") for name in mutant.tests):
        text = (ROOT / "tests" / f"{file}.py").read_text()
        assert f"def {test.partition('[')[0]}" in text, test
