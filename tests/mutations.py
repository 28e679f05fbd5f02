"""Break the product's rules, one after the other, and see a test fail for each.

    python -m tests.mutations [AREA or NAME ...]

It takes some minutes and is no part of the test run: it asks whether the tests can fail. Each file
of ``tests/mutants`` is an area: the tests that shall notice (``tests``, which a mutant may name
itself), and its mutants: a file, what stands there exactly once, and what it becomes.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = "sponge_env agents baselines benchmarks deploy traces tests docs".split()
FILES = ("pyproject.toml", "train.py", "evaluate.py", "README.md", "Makefile")
PATIENCE_S = 300.0


class Mutant(NamedTuple):
    """One broken rule, and the test files of which one shall fail."""

    area: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    interpreted: bool
    """Whether the core is run as ordinary Python: it need not be compiled for every mutant."""


def mutants():
    for path in sorted((ROOT / "tests" / "mutants").glob("*.toml")):
        area = tomllib.loads(path.read_text())
        for each in area["mutant"]:
            tests = tuple(each.pop("tests", area["tests"]))
            interpreted = each.pop("interpreted", area.get("interpreted", False))
            yield Mutant(path.stem, tests=tests, interpreted=interpreted, **each)


def copied(folder):
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)


def survives(mutant, folder):
    """Return whether the tests pass all the same, in a copy that is then as it was."""
    path = folder / mutant.file
    text = path.read_text()
    if (times := text.count(mutant.old)) != 1:
        raise SystemExit(f"{mutant.file}: {mutant.old!r} stands there {times} times, not once")
    if not whole(mutant.tests, mutant.interpreted, folder):
        raise SystemExit(f"{mutant.area}: {', '.join(mutant.tests)} fail without any mutant")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return passes(mutant.tests, mutant.interpreted, folder)
    finally:
        path.write_text(text)


def passes(tests, interpreted, folder, patience_s=PATIENCE_S):
    places = (name.partition("::") for name in tests)
    paths = [f"tests/{file}.py{colons}{test}" for file, colons, test in places]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HYPOTHESIS_PROFILE": "mutants"}
    environment |= {"NUMBA_DISABLE_JIT": "1"} if interpreted else {}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not (live or cgroup)", *paths]
    where = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL}
    try:
        code = subprocess.run(command, **where, timeout=patience_s).returncode
    except subprocess.TimeoutExpired:
        return False
    if code > 2:
        raise SystemExit(f"{', '.join(tests)}: there is no such test")
    return not code


whole = functools.cache(functools.partial(passes, patience_s=None))  # without a mutant


def main(chosen):
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for mutant in mutants():
            if chosen and not {mutant.area, mutant.name} & set(chosen):
                continue
            found = survives(mutant, Path(folder))
            survivors += found
            verdict = "SURVIVES" if found else "noticed "
            sys.stdout.write(f"{verdict}  {mutant.area}: {mutant.name}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} survive\n")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
