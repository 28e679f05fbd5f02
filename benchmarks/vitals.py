"""Memory, descriptors and threads of a server and its replicas, once a second."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import pandas as pd

from benchmarks.servers import children

ALLOWED = {"memory_mb": 2.0, "replicas_mb": 8.0, "descriptors": 8, "threads": 2}
"""Growth that is none: what quiet seconds differ in."""
ESTABLISHED = "01"
"""State of a connection in ``/proc/PID/net/tcp``."""
PER_REQUEST_MB = 100e-6
"""Memory that a request may leave behind: what measuring cannot tell from nothing."""


def resident_mb(pid: int) -> float:
    """Return the memory of a process that no file is behind; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


def descriptors(pid: int) -> int:
    """Return how many files a process holds.

    Without TCP connections that both sides keep open: they are as many as the clients have.
    """
    rows = []
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # of a machine without IPv6
            rows += Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    connections = [row.split() for row in rows]
    established = {f"socket:[{each[9]}]" for each in connections if each[3] == ESTABLISHED}
    held = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held += str(file.readlink()) not in established
    return held


def vitals(pid: int) -> dict[str, float]:
    """Return what a server holds, under the names of :data:`ALLOWED`; OSError if it has ended."""
    return {
        "memory_mb": resident_mb(pid),
        "replicas_mb": sum(map(resident_mb, children(pid))),
        "descriptors": descriptors(pid),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
    }


class VitalsWatch:
    """Samples a server once a second, in a thread of its own."""

    def __init__(self, pid: int, every_s: float = 1.0) -> None:
        """Sample this server."""
        self._pid, self._every_s = pid, every_s
        self.samples: list[dict[str, float]] = []
        """In order of time."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):
            while not self._stop.wait(self._every_s):
                self.samples.append(vitals(self._pid))

    def growth(self) -> dict[str, float]:
        """Return how much more there was of everything in the last quarter than in the second.

        That is in the quietest second of each, which has the fewest requests running. The first
        quarter is left out: a new server has yet to fill its queues.
        """
        samples = pd.DataFrame(self.samples, columns=[*ALLOWED])
        quarter = max(1, len(samples) // 4)
        before, after = samples[quarter : 2 * quarter], samples[-quarter:]
        return {str(name): float(more) for name, more in (after.min() - before.min()).items()}


def grown(growth: dict[str, float], requests: int) -> list[str]:
    """Return what grew more than is allowed while so many requests were served."""
    more_mb = requests * PER_REQUEST_MB
    return [
        name
        for name, more in growth.items()
        if not more <= ALLOWED[name] + more_mb * name.endswith("_mb")
    ]
