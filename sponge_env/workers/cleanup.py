"""The harness's end of the janitor: starts it and tells it what to watch."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from sponge_env.workers.janitor import PATIENCE_S, start_ticks


class Janitor:
    """A helper process that cleans up after this one, even if this one is killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(Path(__file__).with_name("janitor.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin

    @property
    def pid(self) -> int:
        """Process id of the helper."""
        return self._process.pid

    def watch_process(self, pid: int) -> None:
        """Have a process killed in the end."""
        self._tell(f"process {pid} {start_ticks(pid)}")

    def forget_process(self, pid: int) -> None:
        """Leave a process alone: it has ended."""
        self._tell(f"forget {pid}")

    def watch_group(self, path: Path) -> None:
        """Have a control group removed in the end; announce a group before those in it."""
        self._tell(f"group {path}")

    def close(self) -> None:
        """Let it clean up, and wait for it. Safe to call twice."""
        # the pipe's end alone would not do: a forked process may hold a copy of it
        self._tell("end")
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.close()
        try:
            self._process.wait(2 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        # a janitor that somebody killed is no reason to stop serving
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stdin.write(line + "\n")
            self._stdin.flush()
