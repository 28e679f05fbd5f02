"""With compilation switched off, the core is ordinary Python that computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from played import play

from sponge_env.core import records
from sponge_env.core.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent


def test_the_interpreter_computes_the_same_bytes() -> None:
    """Ledgers, metrics and observations of simulated, live and batch systems."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "played.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    played = json.loads(done.stdout)
    assert played["interpreted"]
    expected, hashes = play(), played["hashes"]
    assert list(hashes) == list(expected)
    assert [name for name in expected if hashes[name] != expected[name]] == []


def fields_of(dtype: np.dtype[np.void]) -> Iterator[str]:
    """Yield the names of a record's fields and of those within them."""
    for name in dtype.names or ():
        yield name
        yield from fields_of(dtype[name].base)


@pytest.mark.parametrize("name", [n for n in dir(records) if n.isupper()] + ["SETTINGS"])
def test_no_field_bears_the_name_of_a_numpy_attribute(name: str) -> None:
    """The interpreter could not tell them apart."""
    dtype = SETTINGS if name == "SETTINGS" else getattr(records, name)
    if isinstance(dtype, np.dtype):
        taken = {*dir(np.recarray), *dir(np.record)}
        assert not taken & set(fields_of(dtype))
