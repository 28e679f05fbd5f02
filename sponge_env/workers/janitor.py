"""Cleans up after a run, however it ended: kills its processes, removes its groups.

Runs as a process of its own (``python -S -E janitor.py``), in its own session, so that
neither Ctrl-C nor the death of the harness ends it. It learns what to watch from lines on
its standard input: ``process PID START_TICKS``, ``group PATH``, and ``forget PID``. When
that pipe ends, because the harness closed it, crashed or was killed, it cleans up and exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

PATIENCE_S = 10.0
"""How long to wait for killed processes to leave a group."""


def start_ticks(pid: int) -> str:
    """Return when a process started, which tells it from a later one of the same id.

    Returns:
        Clock ticks since boot; empty if there is no such process.
    """
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


def kill_members(path: str) -> None:
    """Kill what is left in a group, such as a process not announced in time."""
    with contextlib.suppress(OSError), open(f"{path}/cgroup.procs") as file:
        for line in file:
            kill(int(line), start_ticks(int(line)))


def remove_group(path: str, patience_s: float = PATIENCE_S) -> bool:
    """Remove a control group, waiting for the processes in it to end.

    Returns:
        Whether it is gone.
    """
    end_s = time.monotonic() + patience_s
    while True:
        try:
            os.rmdir(path)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > end_s:
                return False
            time.sleep(0.005)


def main() -> None:
    """Watch until the pipe ends, then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    processes: dict[int, str] = {}
    groups: list[str] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "process":
            pid, _, ticks = rest.partition(" ")
            processes[int(pid)] = ticks
        elif word == "forget":
            processes.pop(int(rest), None)
        elif word == "group":
            groups.append(rest)
        elif word == "end":
            break
    for pid, ticks in processes.items():
        kill(pid, ticks)
    for path in groups:
        kill_members(path)
    # a leaf is announced after the group it is in
    for path in reversed(groups):
        remove_group(path)


if __name__ == "__main__":
    main()
