"""What the package offers by name, and what its pages and examples import."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sponge_env

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.py")]
IMPORT = re.compile(r"^\s*from (sponge_env[\w.]*) import \(?([^)#\n]+)", re.MULTILINE)


def test_public_names_are_there_documented_and_quick_to_import() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name in sponge_env.__all__:
        assert getattr(sponge_env, name).__doc__
        assert f"`{name}`" in page, name
    assert set(sponge_env.__all__) <= set(dir(sponge_env))
    with pytest.raises(AttributeError, match="no attribute 'Elephant'"):
        _ = sponge_env.Elephant
    code = (
        "import sys, sponge_env; sponge_env.Allocation; sponge_env.Scenario\n"
        "assert not {'numba', 'torch', 'pandas', 'onnxruntime'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_pages_and_examples_import_what_is_there() -> None:
    found = [pair for path in PAGES for pair in IMPORT.findall(path.read_text())]
    assert found
    for module, names in found:
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.split(" as ")[0].strip()), name
