"""A Kubernetes cluster of one node in this process: API server, Deployment controller, kubelet.

Pods are real processes in real control groups (version 1), with loopback addresses of their own.
Images, volumes and probes but those of TCP are ignored: a container's command runs as it is. A
bearer token ``sa:NAME`` may do what stored Roles allow that service account, no token everything.
"""

import threading
from http.server import ThreadingHTTPServer

from fake_cluster.api import Handler
from fake_cluster.node import Node
from fake_cluster.store import Store


class FakeCluster(ThreadingHTTPServer):
    """The API server, with a node of some capacity behind it; runs within a ``with`` block."""

    daemon_threads = True

    def __init__(self, capacity_milli, delay_s):  # a range of what a resize takes
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        # While it is away, connections are cut.
        self.store, self.away, self._ended = Store(), threading.Event(), threading.Event()
        self.node = Node(self.store, capacity_milli, delay_s)
        self._loops = [threading.Thread(target=loop) for loop in (self.serve_forever, self._sync)]
        for thread in self._loops:
            thread.start()

    def _sync(self):
        while not self._ended.wait(0.02):
            self.node.sync()

    def __exit__(self, *_):
        self._ended.set()
        self.away.set()
        self.shutdown()
        for thread in self._loops:
            thread.join()
        self.server_close()
        self.node.close()
