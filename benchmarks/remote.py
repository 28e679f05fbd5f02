"""What a replica on a node costs over one here, for one request of 150 KB: the wire and the node.

    python -m benchmarks.remote [--times N]

Batches alternate between the two, and all run at real-time priority where that is allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sponge_env.live.local import LocalLauncher
from sponge_env.live.remote import RemoteLauncher, parse_addresses
from sponge_env.live.replica import Answer, Event, LiveConfig, Replica

MODEL = "efficientnet-lite0-uint8"


def next_event(replica: Replica) -> Event:
    """Wait for an event."""
    while True:
        select.select([replica], [], [])
        if (event := replica.poll()) is not None:
            return event


def overhead_ms(replica: Replica, tensors: list) -> float:
    """Return the time of a batch beyond that in the model."""
    began_s = time.monotonic()
    replica.start(1, tensors)
    answer = next_event(replica)
    replica.answers(len(tensors))
    took_s = time.monotonic() - began_s
    assert isinstance(answer, Answer), answer
    return 1e3 * (took_s - answer.finished_s + answer.started_s)


def children(pid: int) -> list[int]:
    """Return the processes that one has started, from whichever thread."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children")
            for child in path.read_text().split()]  # fmt: skip


def main() -> int:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--times", type=int, default=300)
    times = parser.parse_args().times
    command = ["replica", "--model", MODEL, "--limiter", "outside", "--port", "0"]
    node = subprocess.Popen(
        [sys.executable, "-m", "sponge_env", *command], stdout=subprocess.PIPE, text=True
    )
    addresses = parse_addresses(node.stdout.readline().split(" at ")[1].split(",")[0])
    configs = [LiveConfig(model=MODEL, limiter="none")]
    with (
        contextlib.closing(LocalLauncher(configs)) as local,
        contextlib.closing(RemoteLauncher(configs, addresses, "")) as remote,
        contextlib.closing(local.launch(0, 1.0)) as here,
        contextlib.closing(remote.launch(1, 1.0)) as there,
    ):
        tensors = [local.sample(0)]
        for replica in (here, there):
            next_event(replica)
        with contextlib.suppress(PermissionError):
            for process in (os.getpid(), *children(os.getpid()), *children(node.pid)):
                for thread in map(int, os.listdir(f"/proc/{process}/task")):
                    os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
        pairs = [[overhead_ms(each, tensors) for each in (here, there)] for _ in range(times)]
    node.terminate()
    own, others = map(statistics.median, zip(*pairs, strict=True))
    print(f"here {own:.3f} ms, on a node {others:.3f} ms, difference {others - own:+.3f} ms")
    return node.wait()


if __name__ == "__main__":
    sys.exit(main())
