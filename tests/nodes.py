"""Nodes in processes of their own, and a link to them that can be cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sponge_env.live.remote import RemoteLauncher, parse_addresses
from sponge_env.live.replica import LiveConfig

HERE = Path(__file__).parent


class NodeProcess:
    """A ``sponge replica`` on a free port of this machine."""

    def __init__(self, *options: str, token: str = "", host: str = "127.0.0.1") -> None:
        command = [
            sys.executable,
            "-m",
            "sponge_env",
            "replica",
            "--host",
            host,
            "--port",
            "0",
            "--wait",
        ]
        path = {"PYTHONPATH": f"{HERE.parent}:{HERE}", "SPONGE_REPLICA_TOKEN": token}
        self.process = subprocess.Popen(
            [*command, *(options or ("--model", "busy_model:Busy"))],
            env=os.environ | path,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        (self.address,) = parse_addresses(self.line.split(" at ")[1].split(",")[0])

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its exit code."""
        self.process.send_signal(how)
        if self.process.stdout:
            self.process.stdout.close()
        return self.process.wait(30)


def remote_launcher(configs: Sequence[LiveConfig]) -> RemoteLauncher:
    """Return a launcher with a node of its own, which ends with it."""
    node = NodeProcess()
    launcher = RemoteLauncher(configs, [node.address], "")
    close = launcher.close

    def close_both() -> None:
        close()
        node.end()

    launcher.close = close_both  # type: ignore[method-assign]
    return launcher
