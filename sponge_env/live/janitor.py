"""Cleans up after a run, however it ended: kills its processes, removes its groups.

:class:`Janitor` is the harness's end. It runs this file as a process of its own, in its own
session, so that neither Ctrl-C nor the death of the harness ends it. That process learns
what to watch from lines on its standard input: ``process PID START_TICKS`` and ``group PATH``.
After the line ``end``, or when that pipe ends because the harness crashed or was killed, it cleans
up and exits. So this file imports nothing but the standard library.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

PATIENCE_S = 10.0  # How long to wait for killed processes to leave a group
SANDBOX = os.path.join(os.path.dirname(__file__), "sandbox.py")  # Takes away its other rights
NAMES = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "XDG_CACHE_HOME")
FAMILIES = ("LC_", "LD_", "PYTHON", "MALLOC_", "GLIBC_", "ORT_")
"""Variables that helper processes get, and how others' names begin; the rest may be secrets."""
CLOSE_S = 2.0  # How long it may take to end when there is nothing left to clean up


class Janitor:
    """A helper process that cleans up after this one, even if this one is killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-I", SANDBOX, "cleans", __file__], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0,
            env=environment(),
        )  # fmt: skip
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        # a janitor that is stopped reads nothing, and must not stop us as well
        os.set_blocking(self._stdin.fileno(), False)

    def close(self) -> None:
        """Let it end, for a while only: what it watched is gone. Safe to call twice."""
        # the pipe's end alone would not do: a forked process may hold a copy of it
        self.send("end")
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send(self, *words: object) -> None:
        """Send it a line, as above; a group before those in it."""
        # a janitor that was killed is no reason to stop serving
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.write(f"{' '.join(map(str, words))}\n".encode())


def environment() -> dict[str, str]:
    """Return the variables of this process that its helpers need."""
    names = (name for name in os.environ if name in NAMES or name.startswith(FAMILIES))
    return {name: os.environ[name] for name in names}


def start_ticks(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # the name in parentheses may hold spaces; the start time is field 22
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def kill(pid: int, ticks: str) -> None:
    """Kill a process unless its id has passed to another one."""
    if ticks and start_ticks(pid) == ticks:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def remove_group(path: str) -> None:
    """Remove a control group, waiting for the processes in it to end."""
    end_s = time.monotonic() + PATIENCE_S
    while os.path.exists(path) and time.monotonic() < end_s:
        try:
            os.rmdir(path)
        except OSError:
            time.sleep(0.005)


def watch() -> None:
    """Read what to watch until the pipe ends, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: dict[int, str] = {}
    groups: list[str] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "process":
            pid, _, ticks = rest.partition(" ")
            processes[int(pid)] = ticks
        elif word == "group":
            groups.append(rest)
        elif word == "end":
            break
    for pid, ticks in processes.items():
        kill(pid, ticks)
    for path in groups:  # such as a process that was not announced in time
        with contextlib.suppress(OSError), open(f"{path}/cgroup.procs") as members:
            for line in members:
                kill(int(line), start_ticks(int(line)))
    # a leaf is announced after the group it is in
    for path in reversed(groups):
        remove_group(path)


if __name__ == "__main__":
    watch()
