"""The janitor's end of the harness: it never holds up who told it what to clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from sponge_env.live.janitor import Janitor, start_ticks


def test_a_janitor_that_is_closed_cleans_up() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as left:
        janitor = Janitor()
        janitor.send("process", left.pid, start_ticks(left.pid))
        janitor.close()
        janitor.close()
        assert left.wait() == -signal.SIGKILL


def test_a_janitor_that_was_stopped_holds_nobody_up() -> None:
    janitor = Janitor()
    os.kill(janitor._process.pid, signal.SIGSTOP)
    for pid in range(10_000):  # more than a pipe holds
        janitor.send("forget", pid)
    janitor.close()
    assert janitor._process.returncode == -signal.SIGKILL
