"""Live runs on the same CPUs: the second one refuses or waits, whatever became of the first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sponge_env.errors import WorkerError
from sponge_env.files import runtime_dir
from sponge_env.live.local import Reservations
from sponge_env.live.locks import lock_cpu

CPU = min(os.sched_getaffinity(0))
OTHER_RUN = f"""
from sponge_env.live.locks import lock_cpu
held = lock_cpu({CPU}, wait=False)
print("locked", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "sponge-env"


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that has the CPU."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", OTHER_RUN], text=True, **pipes) as process:  # type: ignore[call-overload] # of mixed types
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


def test_a_patient_run_waits_for_the_first(
    other: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    waiting = [sys.executable, "-c", OTHER_RUN.replace("False", "True")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(waiting, text=True, **pipes) as second:  # type: ignore[call-overload] # of mixed types
        assert f"process {other.pid}; waiting" in second.stderr.readline()
        other.communicate("\n")
        assert second.stdout.readline() == "locked\n"
        second.communicate("\n")


def test_a_killed_run_leaves_no_lock(other: subprocess.Popen[str]) -> None:
    other.kill()
    other.wait()
    lock = lock_cpu(CPU, wait=False)
    assert lock is not None
    assert (runtime_dir() / f"cpu-{CPU}.lock").read_text() == f"{os.getpid()}\n"
    lock.close()


def test_workers_of_one_process_share_a_lock() -> None:
    reservations = Reservations()
    with reservations.keep_off(frozenset({CPU})):
        with reservations.keep_off(frozenset({CPU})):
            pass
        assert set(reservations._locks) == {CPU}
    assert not reservations._locks


def test_without_a_place_for_locks_there_are_none(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("no folder")
    assert lock_cpu(CPU, wait=False) is None
    assert f"another live run on CPU {CPU} would go unnoticed" in caplog.text
