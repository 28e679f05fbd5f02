"""A Kubernetes cluster of one node in this process: API server, Deployment controller, kubelet.

Pods are real processes in real control groups (version 1), with addresses of their own (127.0.1.x).
Images, volumes and probes but those of TCP are ignored: a container's command runs as it is. The
service account in a bearer token ``sa:NAME`` may do what stored Roles say; without a token,
everything is allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from fake_cluster.api import Handler
from fake_cluster.node import Node
from fake_cluster.store import Store


class FakeCluster(ThreadingHTTPServer):
    """The API server, and the node behind it."""

    daemon_threads = True

    def __init__(self, milli: int, delay_s: Sequence[float]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.away = threading.Event()
        """While it is set, connections are cut."""
        self.store = Store()
        self.node = Node(self.store, milli, delay_s)


@contextmanager
def fake_cluster(
    milli: int = 1000, delay_s: Sequence[float] = (0.16, 0.16)
) -> Iterator[FakeCluster]:
    """Run a cluster, on which a resize comes into force after a time drawn from a range."""
    cluster, ended = FakeCluster(milli, delay_s), threading.Event()

    def live() -> None:
        while not ended.wait(0.02):
            cluster.node.sync()

    threads = [threading.Thread(target=work) for work in (cluster.serve_forever, live)]
    for thread in threads:
        thread.start()
    try:
        yield cluster
    finally:
        ended.set()
        cluster.away.set()
        cluster.shutdown()
        for thread in threads:
            thread.join()
        cluster.server_close()
        cluster.node.close()
