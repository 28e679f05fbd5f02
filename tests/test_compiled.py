"""The door to numba: compiled code is kept on disk, and never answers with old or damaged code."""

from __future__ import annotations

import importlib
import io
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from sponge_env.app.precompile import steps
from sponge_env.core import compiled

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = multiprocessing.get_context("forkserver")
Called = tuple[float, list[int], list[str]]

KERNEL = """\
from sponge_env.core.compiled import compiled, entry_point
from tiny.parts import grown


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


def call(package: Path, cache: Path, home: Path, meanwhile: Callable[[Path], None]) -> Called:
    """Import the package and call it, in a process that has done neither."""
    os.environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    compiled.numba.config.CACHE_DIR = str(cache)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(package.parent))
    notices = io.StringIO()
    logging.basicConfig(stream=notices, format="%(message)s")
    kernel = importlib.import_module("tiny.kernel")
    meanwhile(cache)
    answer = kernel.scaled(1.0) + kernel.grown_twice(1.0)
    hits = [sum(f.stats.cache_hits.values()) for f in (kernel.scaled, kernel.grown_twice)]
    return answer, hits, notices.getvalue().splitlines()


def nothing(cache: Path) -> None:
    pass


def replace_by_file(cache: Path) -> None:
    shutil.rmtree(cache)
    cache.touch()


class Tiny:
    """A package with two entry points, and a folder for its compiled code."""

    def __init__(self, folder: Path) -> None:
        self.source, self.cache, self.home = folder / "tiny", folder / "cache", folder / "home"
        self.source.mkdir()
        self.home.mkdir()
        self.write(__init__="", kernel=KERNEL, parts=PARTS, constants="STEP = 1.0\n")

    def write(self, **files: str) -> None:
        for name, content in files.items():
            (self.source / f"{name}.py").write_text(content)

    def run(self, meanwhile: Callable[[Path], None] = nothing) -> Called:
        """Call it in a new process.

        Returns:
            Its answer, how often each entry point was loaded from the cache, lines of notice.
        """
        with PROCESSES.Pool(1) as pool:
            return pool.apply(call, (self.source, self.cache, self.home, meanwhile))

    def kept(self, suffix: str) -> Path:
        """Return a file that belongs to the first entry point."""
        (file,) = self.cache.rglob(f"*scaled*.{suffix}")
        return file


@pytest.fixture(scope="module")
def processes() -> Iterator[None]:
    """Keep a process that has numba ready, from which the others are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        PROCESSES.set_forkserver_preload(["compiler_ready"])
        forkserver.ensure_running()
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def tiny(tmp_path: Path, processes: None) -> Tiny:
    return Tiny(tmp_path)


def test_a_second_process_compiles_nothing(tiny: Tiny) -> None:
    assert tiny.run() == (23.0, [0, 0], [])
    assert tiny.run() == (23.0, [1, 1], [])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda content: b"",
    "other": lambda content: b"\x80\x05nothing of ours",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["nbi", "nbc"], ids=["index", "code"])
def test_what_is_damaged_is_made_anew_with_a_line_of_notice(
    tiny: Tiny, suffix: str, damage: str
) -> None:
    tiny.run()
    file = tiny.kept(suffix)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    answer, hits, notice = tiny.run()
    assert (answer, hits) == (23.0, [0, 1])
    assert len(notice) == 1
    assert "a damaged cache is made anew" in notice[0]
    assert str(tiny.cache) in notice[0]
    assert tiny.run() == (23.0, [1, 1], [])


def test_without_any_folder_to_write_to_it_says_so_and_goes_on(tiny: Tiny) -> None:
    for file in (tiny.cache, tiny.source / "__pycache__", tiny.home / "cache"):
        file.touch()
    (tiny.home / ".cache").touch()
    for _ in range(2):
        answer, hits, notice = tiny.run()
        assert (answer, hits) == (23.0, [0, 0])
        assert len(notice) == 1
        assert "compiled code cannot be kept" in notice[0]


def test_a_folder_that_becomes_unwritable_costs_one_line(tiny: Tiny) -> None:
    answer, hits, notice = tiny.run(replace_by_file)
    assert (answer, hits) == (23.0, [0, 0])
    assert len(notice) == 1
    assert "compiled code cannot be kept" in notice[0]


@pytest.mark.parametrize(
    "importing", ["from .constants import STEP", "from tiny.constants import STEP"]
)
def test_a_constant_of_another_module_is_part_of_the_code(tiny: Tiny, importing: str) -> None:
    tiny.write(parts=PARTS.replace("from .constants import STEP", importing))
    assert tiny.run() == (23.0, [0, 0], [])
    tiny.write(constants="STEP = 2.0\n")
    assert tiny.run() == (35.0, [0, 0], [])
    assert tiny.run() == (35.0, [1, 1], [])


@pytest.mark.parametrize(
    "importing",
    [
        "from .constants import STEP",
        "from . import constants",
        "from marked.constants import STEP",
        "from marked import constants",
        "import marked.constants",
        "import marked.constants as known",
        "from .between import STEP",
    ],
)
def test_any_import_counts_for_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importing: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "marked"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "between.py").write_text("from .constants import STEP\n")
    (package / "kernel.py").write_text(f"{importing}\n")

    def mark(step: int, unrelated: int) -> str:
        (package / "constants.py").write_text(f"STEP = {step}\n")
        (package / "unrelated.py").write_text(f"STEP = {unrelated}\n")
        compiled.source_mark.cache_clear()
        return compiled.source_mark("marked.kernel")

    try:
        assert mark(1, 1) == mark(1, 2)
        assert mark(1, 1) != mark(2, 1)
    finally:
        compiled.source_mark.cache_clear()
        for name in [name for name in sys.modules if name.startswith("marked")]:
            del sys.modules[name]


def test_the_mark_of_the_core_covers_what_its_kernels_read() -> None:
    files = compiled.sources("sponge_env.core.entry")
    names = {name.removeprefix("sponge_env.") for name in files}
    core = {f"core.{path.stem}" for path in (ROOT / "sponge_env" / "core").glob("*.py")}
    assert core - {"core.__init__"} <= names
    assert {"scenario.config", "core.fields", "interfaces", "latency"} <= names


@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("sponge_env.core.entry", "the simulator"),
        ("sponge_env.oracle.beam", "the bound's solver"),
        ("agents.enumeration", "a controller"),
    ],
)
def test_what_is_compiled_is_named(
    module: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled._say_compiling.cache_clear()
    for _ in range(2):
        compiled._say_compiling(compiled._part(module))
    assert capsys.readouterr().err == f"compiling {part}, once on this machine ...\n"


def test_controllers_are_compiled_ahead_and_the_bound_where_asked() -> None:
    ahead, everything = (dict(steps(everything=asked)) for asked in (False, True))
    assert "controllers" in ahead
    assert everything.keys() - ahead.keys() == {"oracle"}
