"""Memory, descriptors and threads of a server and its replicas, once a second."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from benchmarks.servers import children


@dataclass(frozen=True)
class Vitals:
    """What a server holds."""

    memory_mb: float
    """Of its own process, not backed by files."""
    replicas_mb: float
    """Of those that it has started."""
    descriptors: int
    """Without connections that both sides keep open: as many as the clients have."""
    threads: int


ALLOWED = Vitals(memory_mb=2.0, replicas_mb=8.0, descriptors=8, threads=2)
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
    """Return how many files a process holds, without established TCP connections."""
    established, held = _established(pid), 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held += str(each.readlink()) not in established
    return held


def _established(pid: int) -> set[str]:
    """Return such connections, as they stand in ``/proc/PID/fd``."""
    lines = []
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # of a machine without IPv6
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
            lines += [row.split() for row in rows]
    return {f"socket:[{fields[9]}]" for fields in lines if fields[3] == ESTABLISHED}


def vitals(pid: int) -> Vitals:
    """Return the vitals of a server; ``OSError`` if it has ended."""
    return Vitals(
        memory_mb=resident_mb(pid),
        replicas_mb=sum(map(resident_mb, children(pid))),
        descriptors=descriptors(pid),
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
    )


class VitalsWatch:
    """Samples a server once a second, in a thread of its own."""

    def __init__(self, pid: int, every_s: float = 1.0) -> None:
        """Sample this server."""
        self._pid, self._every_s = pid, every_s
        self.samples: list[Vitals] = []
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
        while not self._stop.wait(self._every_s):
            try:
                self.samples.append(vitals(self._pid))
            except OSError:
                return

    def growth(self) -> dict[str, float]:
        """Return how much more there was of everything in the last quarter than in the second.

        That is in the quietest second of each, which has the fewest requests running. The first
        quarter is left out: a new server has yet to fill its queues.
        """
        if not self.samples:
            raise RuntimeError("the server ended before it was sampled")
        quarter = max(1, len(self.samples) // 4)
        before, after = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return {
            each.name: min(getattr(v, each.name) for v in after)
            - min(getattr(v, each.name) for v in before or after)
            for each in fields(Vitals)
        }


def grown(growth: dict[str, float], requests: int) -> list[str]:
    """Return what grew more than is allowed while so many requests were served."""
    more_mb = requests * PER_REQUEST_MB
    return [
        name
        for name, more in growth.items()
        if more > getattr(ALLOWED, name) + more_mb * name.endswith("_mb")
    ]
