"""The door to numba: code is kept on disk, never old, and the same as ordinary Python."""

import importlib
import io
import logging
import multiprocessing
import os
import shutil
import sys
from multiprocessing import forkserver
from types import SimpleNamespace

import numpy as np
import pytest
from project import ROOT, python

from sponge_env.app.precompile import steps
from sponge_env.core import compiled, records
from sponge_env.core.settings import SETTINGS
from sponge_env.utils import kernel_cache
from sponge_env.utils.kernel_cache import source_mark

PROCESSES = multiprocessing.get_context("forkserver")

KERNEL = """\
from sponge_env.core.compiled import compiled, entry_point
from tiny.parts import (  # (in brackets)
    grown,
)
@entry_point
def scaled(value: float) -> float:
    return 10.0 * grown(value)
@entry_point
def grown_twice(value: float) -> float:
    return grown(grown(value))
"""
PARTS = """\
from sponge_env.core.compiled import compiled
from .constants import STEP
@compiled
def grown(value: float) -> float:
    return value + STEP
"""


def call(package, cache, home):
    """Import the package and call it, in a process that has done neither."""
    os.environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    compiled.numba.config.CACHE_DIR = str(cache or "")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(package.parent))
    notices = io.StringIO()
    logging.basicConfig(stream=notices, format="%(message)s")
    kernel = importlib.import_module("tiny.kernel")
    answer = kernel.scaled(1.0) + kernel.grown_twice(1.0)
    hits = [sum(f.stats.cache_hits.values()) for f in (kernel.scaled, kernel.grown_twice)]
    return answer, hits, notices.getvalue().splitlines()


class Tiny:
    """A package with two entry points, and a folder for its compiled code."""

    def __init__(self, folder):
        self.source, self.home = folder / "tiny", folder / "home"
        self.cache = folder / "cache"
        self.source.mkdir()
        self.home.mkdir()
        self.write(__init__="", kernel=KERNEL, parts=PARTS, constants="STEP = 1.0\n")

    def write(self, **files):
        for name, content in files.items():
            (self.source / f"{name}.py").write_text(content)

    def run(self):
        """Call it in a new process; return answer, entry points' loads from the cache, notices."""
        with PROCESSES.Pool(1) as pool:
            return pool.apply(call, (self.source, self.cache, self.home))

    def kept(self, suffix):
        """Return a file that belongs to the first entry point."""
        (file,) = self.cache.rglob(f"*scaled*.{suffix}")
        return file


@pytest.fixture(scope="module")
def processes():
    """Keep a process that has numba ready, from which the others are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        PROCESSES.set_forkserver_preload(["compiler_ready"])
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def tiny(tmp_path, processes):
    return Tiny(tmp_path)


def test_a_second_process_compiles_nothing(tiny):
    assert (tiny.run(), tiny.run()) == ((23.0, [0, 0], []), (23.0, [1, 1], []))


@pytest.mark.parametrize(("suffix", "left"), [("nbi", 0), ("nbc", 100)])
def test_a_file_that_was_cut_is_made_anew_with_a_line_of_notice(tiny, suffix, left):
    tiny.run()
    file = tiny.kept(suffix)
    file.write_bytes(file.read_bytes()[:left])
    answer, hits, notice = tiny.run()
    assert (answer, hits, len(notice)) == (23.0, [0, 0], 1)
    assert "is made anew" in notice[0]
    assert tiny.run() == (23.0, [1, 1], [])


def test_code_is_kept_in_the_user_s_cache_or_nowhere(tiny):
    (tiny.source.parent / "cache").touch()
    assert (tiny.run(), tiny.run()) == ((23.0, [0, 0], []), (23.0, [1, 1], []))
    shutil.rmtree(tiny.home / "cache")
    (tiny.home / "cache").touch()
    for _ in range(2):
        answer, hits, notice = tiny.run()
        assert (answer, hits, len(notice)) == (23.0, [0, 0], 1)


def test_a_constant_of_another_module_is_part_of_the_code(tiny):
    tiny.cache = None  # beside the source
    assert tiny.run() == (23.0, [0, 0], [])
    tiny.write(constants="STEP = 2.0\n")
    assert (tiny.run(), tiny.run()) == ((35.0, [0, 0], []), (35.0, [1, 1], []))
    assert len([*(tiny.source / "__pycache__").glob("tiny.kernel-*")]) == 1, "the older is removed"


@pytest.mark.parametrize(
    "importing", ["from .constants import STEP", "from . import constants",
     "from marked.constants import (\n    STEP as step, OTHER\n)", "from marked import constants",
     "import marked.constants", "import sys, marked.constants as known",
     "from .between import STEP"],
)  # fmt: skip
def test_any_import_counts_for_the_mark(tmp_path, monkeypatch, importing):
    monkeypatch.setitem(sys.modules, "marked", SimpleNamespace(__path__=[str(tmp_path)]))
    (tmp_path / "between.py").write_text("from .constants import STEP\n")
    (tmp_path / "kernel.py").write_text(f"{importing}\n")

    def mark(step, unrelated):
        (tmp_path / "constants.py").write_text(f"STEP = {step}\n")
        (tmp_path / "unrelated.py").write_text(f"STEP = {unrelated}\n")
        for cached in (source_mark, kernel_cache._file, kernel_cache._imports):
            cached.cache_clear()
        return source_mark("marked.kernel")

    assert mark(1, 1) == mark(1, 2)
    assert mark(1, 1) != mark(2, 1)


def test_code_that_lies_where_nothing_can_be_written_is_copied(tmp_path, monkeypatch):
    installed, cache = tmp_path / "installed", tmp_path / "cache"
    installed.mkdir()
    (installed / "kernel.py").touch()
    monkeypatch.setitem(sys.modules, "lent", SimpleNamespace(__path__=[str(installed)]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    folder_of = kernel_cache.code_folder.__wrapped__
    (folder_of("lent.kernel") / "code.nbc").touch()
    monkeypatch.setattr("os.access", lambda path, _: path.is_relative_to(cache))
    assert list(folder_of("lent.kernel").iterdir()) == [next(cache.rglob("code.nbc"))]


def test_code_that_was_typed_in_is_not_kept():
    assert kernel_cache.code_folder("no_such_module") is None


def test_the_mark_of_the_core_covers_what_its_kernels_read():
    files = kernel_cache.sources("sponge_env.core.entry")
    names = {name.removeprefix("sponge_env.") for name in files}
    core = {f"core.{path.stem}" for path in (ROOT / "sponge_env" / "core").glob("*.py")}
    assert core - {"core.__init__"} <= names
    assert {"scenario.config", "core.fields", "interfaces", "latency"} <= names


def test_controllers_are_compiled_ahead_and_the_bound_where_asked():
    assert "controllers" in dict(steps(oracle=False))
    assert dict(steps(oracle=True)).keys() == {"oracle", "joint oracle"}


CHECKED = (
    "tests/test_golden.py::test_it_is_computed_as_recorded[sequences-15/single/joint/late-fifo]",
    "tests/test_serving.py::test_lone_work_takes_as_long_as_it_did_on_linux",
    "tests/test_system.py::test_no_resize_overtakes_another_and_none_is_lost",
    "tests/test_live_system.py::test_deaths_lead_to_every_outcome",
    "tests/test_pipeline.py::test_a_request_that_is_given_up_leaves_no_tasks_behind",
)


def test_the_interpreter_computes_the_same():
    done = python("-m", "pytest", "-q", *CHECKED, cwd=ROOT, NUMBA_DISABLE_JIT="1")
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
        assert not {*dir(np.recarray), *dir(np.record)} & set(fields_of(dtype))
