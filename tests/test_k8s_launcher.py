"""Replicas in pods of the fake cluster: resized, scaled, killed, and with the API away."""

import itertools
import os
import signal
from contextlib import closing

import pytest
from machine import needs_cgroup, needs_two_cpus, wait_until
from pods import BUSY, launcher, needs_v1, pods

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.interfaces import Allocation, Batch
from sponge_env.k8s import api
from sponge_env.k8s.api import Api, own_namespace, server_url
from sponge_env.k8s.launcher import KubernetesLauncher
from sponge_env.live.worker import LiveWorker

pytestmark = [pytest.mark.cgroup, needs_cgroup, needs_v1]
SCALE = "/apis/apps/v1/namespaces/default/deployments/sponge-replica/scale"
REAL = pytest.param("real", marks=[pytest.mark.live, pytest.mark.slow, needs_two_cpus])


class Serving:
    """A worker whose replicas always have a batch, of one request that none else has."""

    def __init__(self, cluster):
        self.cluster, self.launcher = cluster, launcher(BUSY)
        self.worker = LiveWorker(BUSY, launcher=self.launcher)
        self._ids, self._again = itertools.count(), list[int]()
        self._running, self.answered = 0, []

    def turn(self, *, more=True):
        """Start batches, and wait a moment for some to end."""
        while self.worker.idle() and (self._again or more):
            request = self._again.pop() if self._again else next(self._ids)
            self.worker.start(Batch(request, (request,)))
            self._running += 1
        for ended in self.worker.wait(self.worker.now() + 0.01):
            self._running -= 1
            (self.answered if ended.ok else self._again).extend(ended.batch.requests)
            self.worker.forget(ended.batch.requests if ended.ok else ())

    def until(self, condition, what):
        wait_until(lambda: (self.turn(), condition())[1], what)

    def resize(self, cores, replicas=1):
        self.worker.resize(Allocation(cores=cores, batch=1, replicas=replicas))

    def percents(self):
        """Return the cores of each pod as the kernel has them, after asking the replicas."""
        boxes = [*self.cluster.node.boxes.values()]  # its thread changes them
        return sorted(int((b.group / "cpu.cfs_quota_us").read_text()) // 1000 for b in boxes)

    def has(self, *percents):
        """Return whether pods have these sizes, and the replicas in them say the same."""

        def same():
            told = sorted(round(each.granted_cores() * 100) for each in self.worker.replicas)
            return self.percents() == told == list(percents)

        return same

    def goes_on(self):
        enough = len(self.answered) + 5
        self.until(lambda: len(self.answered) >= enough, "more answers")


@pytest.fixture(params=[REAL])
def serving(tmp_path):
    with pods(tmp_path, cpu="300m", milli=900) as cluster:
        serving = Serving(cluster)
        with serving.worker:
            yield serving
            wait_until(lambda: (serving.turn(more=False), not serving._running)[1])
        assert sorted(serving.answered) == list(range(next(serving._ids)))  # each of them once


def test_pods_are_resized_and_the_right_one_is_removed(serving):
    boxes = serving.cluster.node.boxes
    (old,) = boxes
    for cores, percent in ((4, 25), (12, 75), (4, 25)):
        serving.resize(cores)
        serving.until(serving.has(percent), f"{percent} % of a core")
    serving.resize(4, replicas=2)
    serving.until(serving.has(25, 25), "a second pod")
    (young,) = boxes.keys() - {old}
    os.kill(boxes[old].process.pid, signal.SIGKILL)
    serving.until(lambda: serving.worker.status().restarts == 1, "its death")
    serving.until(lambda: serving.worker.status().ready == 2, "its container starts again")
    serving.resize(4)  # the replica that started last goes, and its pod is the older one
    serving.until(lambda: list(boxes) == [young], "the other pod stays")
    serving.until(lambda: not serving.launcher._retired, "the connection that kept it unready ends")
    serving.goes_on()
    assert serving.worker.status().restarts == 1


def test_without_the_api_serving_goes_on_and_the_newest_wish_wins(serving, caplog):
    serving.resize(4)
    serving.until(serving.has(25), "a quarter of a core")
    (before,) = serving.cluster.store.list("pods")
    serving.cluster.away.set()
    for cores in (12, 10, 8):
        serving.resize(cores)
        serving.goes_on()
    assert serving.has(25)()
    serving.cluster.away.clear()
    serving.until(serving.has(50), "the last of them")
    (after,) = serving.cluster.store.list("pods")
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert "going on with what was granted: no answer of Kubernetes" in caplog.text
    role = serving.cluster.store.get(("roles", "default", "sponge"))
    serving.cluster.store.put(("roles", "default", "sponge"), role | {"rules": []})
    serving.resize(4)
    serving.goes_on()
    serving.until(lambda: "cannot patch resource" in caplog.text, "a 403")
    assert serving.has(50)()
    serving.cluster.store.put(("roles", "default", "sponge"), role)
    serving.until(serving.has(25), "its right is back")


def test_a_full_node_keeps_sizes_and_is_asked_for_no_more(serving):
    serving.resize(4, replicas=2)
    serving.until(serving.has(25, 25), "two pods")
    serving.resize(8, replicas=2)
    deferred = {"NoPod": 0, "Deferred": 1, "Infeasible": 0}
    serving.until(lambda: serving.launcher.resizes().pending == deferred, "a full node")
    serving.until(serving.has(25, 50), "one of them grows")
    serving.resize(16)
    serving.goes_on()
    serving.cluster.node.capacity = 1100
    serving.until(serving.has(100), "there is room")
    serving.until(lambda: serving.launcher.resizes()[:2] == (1.0, 1.0), "the API says so, too")


def test_calls_name_what_goes_wrong_and_read_the_token_each_time(tmp_path):
    with pods(tmp_path) as cluster:
        client = Api(cluster.url)
        assert client.call("GET", SCALE)["spec"] == {"replicas": 1}
        (tmp_path / "token").write_text("sa:another")
        with pytest.raises(WorkerError, match=r"refuses: .*cannot get"):
            client.call("GET", SCALE)
        for token in (b"SECRET\nSECRET", b"SECRET\xff"):
            (tmp_path / "token").write_bytes(token)
            with pytest.raises(WorkerError, match=r"what .*token holds is no token$"):
                client.call("GET", SCALE)
        (tmp_path / "token").write_text("sa:sponge\n")
        with pytest.raises(WorkerError, match="cannot get resource"):  # but that of the manifest
            launcher(BUSY, "other")
        cluster.away.set()
        with pytest.raises(WorkerError, match="no answer of Kubernetes at 127"):
            client.call("GET", SCALE)
        cluster.away.clear()
        assert client.call("PATCH", SCALE, {"spec": {"replicas": 0}})["spec"] == {}
        KubernetesLauncher([BUSY], "sponge-replica", "").close()


def test_malformed_answers_end_nothing_and_old_ones_change_nothing(tmp_path, monkeypatch, caplog):
    with pods(tmp_path) as cluster, closing(launcher(BUSY)) as own:
        wait_until(lambda: all(pod.ready for pod in own._pods.values()), "a pod")
        (found,) = cluster.store.list("pods")
        own._take(found | {"status": {}}, asked=True)
        assert all(pod.ready for pod in own._pods.values())
        other = {**found, "metadata": {**found["metadata"], "name": "other"}}
        odd = {**found, "metadata": {**found["metadata"], "generation": "x"}}
        with own._changed:
            own._take(None, found | {"spec": {}}, found | {"status": {"conditions": 3}}, odd, other)
            assert "other" in own._pods, "those that cannot be read hide none"
        plan, planned = own._next_call, []
        monkeypatch.setattr(own, "_next_call", lambda: planned.append(1) or None + 1)
        wait_until(lambda: "a malformed answer, TypeError" in caplog.text, "a warning")
        assert len(planned) < 5, "it is not tried all the time"
        monkeypatch.setattr(own, "_next_call", plan)
        monkeypatch.setattr(own._api, "call", lambda *_: {})
        own._api.interrupt()
        wait_until(lambda: "a malformed answer, KeyError('items')" in caplog.text, "a warning")
        assert all(thread.is_alive() for thread in own._loops)


def test_where_the_api_is(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "ACCOUNT", tmp_path)
    for name in (api.URL, "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    outside = f"no pod of a Kubernetes cluster; elsewhere set {api.URL}"
    with pytest.raises(ConfigError, match=outside):
        server_url()
    with pytest.raises(ConfigError, match="needs k8s:"):
        KubernetesLauncher([BUSY], "a/b/c", "")
    assert own_namespace() == "default"
    (tmp_path / "namespace").write_text("ml")
    assert own_namespace() == "ml"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert server_url() == "https://[fd00::1]:443"
    for wrong in ("127.0.0.1:8001", "http://[abc", "http://a:b"):
        monkeypatch.setenv(api.URL, wrong)
        with pytest.raises(ConfigError, match="must be an http:// or https:// URL"):
            server_url()
    monkeypatch.setenv(api.URL, "http://127.0.0.1:8001")
    assert server_url() == "http://127.0.0.1:8001"
