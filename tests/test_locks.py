"""Live runs on the same CPUs: the second one refuses or waits, whatever became of the first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sponge_env.errors import WorkerError
from sponge_env.live import locks
from sponge_env.live.local import Reservations
from sponge_env.live.locks import lock_cpu

CPU = min(os.sched_getaffinity(0))
OTHER_RUN = f"""
import pathlib, sys
from sponge_env.live import locks
locks.FOLDERS = (pathlib.Path(sys.argv[1]),)
held = locks.lock_cpu({CPU}, wait=False)
print("locked", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    closed, everybodys = tmp_path / "closed", tmp_path / "everybody's"
    closed.mkdir(0o755)
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    monkeypatch.setattr(locks, "FOLDERS", (closed, everybodys))
    return everybodys


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that has the CPU."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", OTHER_RUN, str(folder)]
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload] # of mixed types
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_names_the_first(other: subprocess.Popen[str]) -> None:
    reservations = Reservations()
    affinity = os.sched_getaffinity(0)
    said = rf"CPU {CPU} is in use by the live run of process {other.pid};.* --wait"
    with pytest.raises(WorkerError, match=said), reservations.keep_off(frozenset({CPU})):
        pass
    assert os.sched_getaffinity(0) == affinity


def test_a_patient_run_waits_for_the_first(other: subprocess.Popen[str], folder: Path) -> None:
    waiting = [sys.executable, "-c", OTHER_RUN.replace("False", "True"), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(waiting, text=True, **pipes) as second:  # type: ignore[call-overload] # of mixed types
        assert f"process {other.pid}; waiting" in second.stderr.readline()
        other.communicate("\n")
        assert second.stdout.readline() == "locked\n"
        second.communicate("\n")


def test_a_killed_run_leaves_no_lock(other: subprocess.Popen[str], folder: Path) -> None:
    other.kill()
    other.wait()
    lock = lock_cpu(CPU, wait=False)
    assert lock is not None
    (file,) = folder.iterdir()
    assert file.read_text() == f"{os.getpid()}\n"
    assert file.stat().st_mode & 0o777 == 0o666  # other users' runs look at it, too
    lock.close()


def test_workers_of_one_process_share_a_lock() -> None:
    reservations = Reservations()
    with reservations.keep_off(frozenset({CPU})):
        with reservations.keep_off(frozenset({CPU})):
            pass
        assert set(reservations._locks) == {CPU}
    assert not reservations._locks


def test_without_a_place_for_locks_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(locks, "FOLDERS", (tmp_path / "file",))
    assert lock_cpu(CPU, wait=False) is None
    assert f"another live run on CPU {CPU} would go unnoticed" in caplog.text
