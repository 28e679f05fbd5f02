"""The CPUs of live runs: this process keeps off them, and one process at a time has each."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest
from machine import needs_two_cpus

from sponge_env.errors import WorkerError
from sponge_env.live import cpus
from sponge_env.live.cpus import RESERVATIONS, Reservations, choose_cpus, lock_cpu

CPU = max(os.sched_getaffinity(0))
OTHER_RUN = f"""
import pathlib, sys
from sponge_env.live import cpus
cpus.LOCK_FOLDER = pathlib.Path(sys.argv[1])
lock = cpus.lock_cpu({CPU}, wait=len(sys.argv) > 2)
print("locked", flush=True)
input()
"""


@needs_two_cpus
def test_workers_may_end_in_any_order_and_threads_are_released_with_them():
    before, end, reserved = os.sched_getaffinity(0), threading.Event(), frozenset({CPU})
    reservations = Reservations()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(reservations.keep_off(reserved))
        second.enter_context(reservations.keep_off(reserved))
        (thread := threading.Thread(target=end.wait, daemon=True)).start()
        first.close()
        for id in (0, thread.native_id):
            assert os.sched_getaffinity(id) == before - reserved
        assert (reservations.available(), set(reservations._locks)) == (before, reserved)
    for id in (0, thread.native_id):
        assert os.sched_getaffinity(id) == before
    assert not reservations._locks
    end.set()
    thread.join()


@needs_two_cpus
def test_a_thread_that_was_pinned_is_pinned_again():
    ends, begun, cpus = threading.Event(), threading.Barrier(3), sorted(os.sched_getaffinity(0))

    def pinned(cpu):
        os.sched_setaffinity(0, {cpu})
        begun.wait()
        ends.wait()

    threads = [threading.Thread(target=pinned, args=(cpu,)) for cpu in (cpus[0], CPU)]
    for thread in threads:
        thread.start()
    begun.wait()
    ids = [thread.native_id or 0 for thread in threads]
    with Reservations().keep_off(frozenset({CPU})):
        first, second = map(os.sched_getaffinity, ids)
        assert (first, second) == ({cpus[0]}, set(cpus) - {CPU})
    assert [os.sched_getaffinity(id) for id in ids] == [{cpus[0]}, {CPU}]
    ends.set()
    for thread in threads:
        thread.join()


@needs_two_cpus
def test_a_second_worker_takes_the_same_cpu():
    chosen = choose_cpus(1.0)
    with RESERVATIONS.keep_off(chosen):
        assert choose_cpus(1.0) == chosen == {CPU}
        assert len(choose_cpus(2.0)) == 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cpus, "LOCK_FOLDER", tmp_path)
    return tmp_path


def run_elsewhere(*arguments):
    """Take the CPU in another process, which holds it until it reads a line."""
    command, pipe = [sys.executable, "-c", OTHER_RUN, *arguments], subprocess.PIPE
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.fixture
def other(folder):
    with run_elsewhere(str(folder)) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(other):
    reservations, affinity = Reservations(), os.sched_getaffinity(0)
    message = rf"CPU {CPU} is in use by the live run of process {other.pid};.* --wait.* \(--cpus\)$"
    with pytest.raises(WorkerError, match=message), reservations.keep_off(frozenset({CPU})):
        pass
    assert os.sched_getaffinity(0) == affinity


def test_a_patient_run_waits_for_the_first(other, folder):
    with run_elsewhere(str(folder), "wait") as second:
        assert f"process {other.pid}; waiting" in second.stderr.readline()
        other.communicate("\n")
        assert second.stdout.readline() == "locked\n"
        second.communicate("\n")


def test_a_killed_run_leaves_no_lock(other, folder):
    other.kill()
    other.wait()
    lock = lock_cpu(CPU, wait=False)
    (file,) = folder.iterdir()
    assert file.read_text() == f"{os.getpid()}\n"
    assert file.stat().st_mode & 0o777 == 0o666  # other users' runs look at it, too
    lock.close()


def test_without_a_place_for_locks_there_are_none(folder, monkeypatch, caplog):
    monkeypatch.setattr(cpus, "LOCK_FOLDER", folder / "missing")
    assert lock_cpu(CPU, wait=False) is None
    assert "would go unnoticed" in caplog.text


@pytest.mark.parametrize("plant", [lambda _, path: os.mkfifo(path), os.link])
def test_a_planted_file_stops_no_run_and_stays_as_it_is(plant, folder, caplog):
    path, text = folder / f"sponge-env-cpu-{CPU}", b"\xff\x1b[31m"
    (folder / "other").write_bytes(text)
    plant(folder / "other", path)
    assert lock_cpu(CPU, wait=False) is None
    assert f"{path} is no file of its own; remove it" in caplog.text
    assert (folder / "other").read_bytes() == text
    path.unlink()
    first = lock_cpu(CPU, wait=False)
    path.write_bytes(text)
    with pytest.raises(WorkerError, match=r"the live run of process \(\?\);"):
        lock_cpu(CPU, wait=False)
    assert first
    first.close()
