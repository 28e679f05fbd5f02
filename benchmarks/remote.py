"""What a replica on a node costs over one here, for one request of 150 KB: the wire and the node.

    python -m benchmarks.remote

Batches alternate between the two, and all run at real-time priority where that is allowed.
"""

import contextlib
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sponge_env.live.cpus import prepare_cpus
from sponge_env.live.local import LocalLauncher
from sponge_env.live.protocol import Event, LiveConfig, Replica
from sponge_env.live.remote import RemoteLauncher, parse_addresses

MODEL, TIMES = "efficientnet-lite0-uint8", 300
NODE = ("replica", "--model", MODEL, "--limiter", "outside", "--port", "0")


def next_event(replica: Replica) -> Event:
    """Wait for an event."""
    while (event := replica.poll()) is None:
        select.select([replica], [], [])
    return event


def overhead_ms(replica: Replica, tensors: list) -> float:
    """Return the time of a batch beyond that in the model."""
    began_s = time.monotonic()
    replica.start(1, tensors)
    answer = next_event(replica)
    replica.answers(len(tensors))
    return 1e3 * (time.monotonic() - began_s - answer.finished_s + answer.started_s)


def hurry(node: int) -> None:
    """Give this process, a node, and the children of both real-time priority."""
    for parent in (os.getpid(), node):
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            for process in (parent, *path.read_text().split()):
                for thread in os.listdir(f"/proc/{process}/task"):
                    os.sched_setscheduler(int(thread), os.SCHED_FIFO, os.sched_param(1))


def main() -> None:
    """Measure, and print medians."""
    command = [sys.executable, "-m", "sponge_env", *NODE]
    configs = [LiveConfig(MODEL, limiter="none")]
    prepare_cpus(wait=True, cpus=None)
    with contextlib.ExitStack() as opened:
        node = opened.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        opened.callback(node.terminate)
        addresses = parse_addresses(node.stdout.readline().split(" at ")[1].split(",")[0])
        replicas = []
        for launcher in (LocalLauncher(configs), RemoteLauncher(configs, addresses, "")):
            opened.callback(launcher.close)
            replicas.append(opened.enter_context(contextlib.closing(launcher.launch(0, 1.0))))
            next_event(replicas[-1])
            tensors = [launcher.sample(0)]
        with contextlib.suppress(PermissionError):
            hurry(node.pid)
        pairs = [[overhead_ms(each, tensors) for each in replicas] for _ in range(TIMES)]
    here, there = map(statistics.median, zip(*pairs, strict=True))
    print(f"here {here:.3f} ms, on a node {there:.3f} ms, difference {there - here:+.3f} ms")


if __name__ == "__main__":
    main()
