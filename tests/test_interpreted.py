"""With compilation switched off, the core is ordinary Python that computes the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sponge_env.core import records
from sponge_env.core.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
CHECKED = (
    "tests/test_golden.py::test_it_is_computed_as_recorded[sequences-15/single/joint/late-fifo]",
    "tests/test_service.py::test_lone_work_takes_as_long_as_it_did_on_linux",
    "tests/test_resize_delay.py::test_no_resize_overtakes_another_and_none_is_lost",
    "tests/test_live_system.py::test_deaths_lead_to_every_outcome",
    "tests/test_pipeline.py::test_a_request_that_is_given_up_leaves_no_tasks_behind",
)


def test_the_interpreter_computes_the_same():
    command = [sys.executable, "-m", "pytest", "-q", *CHECKED]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(CHECKED)} passed" in done.stdout


def fields_of(dtype):
    """Yield the names of a record's fields and of those within them."""
    for name in dtype.names or ():
        yield name
        yield from fields_of(dtype[name].base)


@pytest.mark.parametrize("name", [n for n in dir(records) if n.isupper()] + ["SETTINGS"])
def test_no_field_bears_the_name_of_a_numpy_attribute(name):
    """The interpreter could not tell them apart."""
    dtype = SETTINGS if name == "SETTINGS" else getattr(records, name)
    if isinstance(dtype, np.dtype):
        taken = {*dir(np.recarray), *dir(np.record)}
        assert not taken & set(fields_of(dtype))
