"""What is asked of Kubernetes, from what the fleet wants and what the pods are."""

import pytest

from sponge_env.errors import WorkerError
from sponge_env.k8s.api import Api
from sponge_env.k8s.plan import Pod, Want, next_calls, read_pod, resize_patch


def pod(name, asked=250, granted=250, ready=True, **more):
    common = {"node": "n1", "asked_milli": asked, "granted_milli": granted}
    return Pod(name, ready=ready, **common | more)


A, B, C = pod("a"), pod("b"), pod("c", ready=False)
FULL = pod("a", 900, pending="Deferred")
ONE = [Want(0, "a")]
CASES = {
    "a pod is on its way": ([], [Want(0)], "", 1, ""),
    "the first ready pod": ([C, B, A], [Want(0)], "", 1, "assign a"),
    "none that is not ready": ([C], [Want(0)], "", 1, ""),
    "none that is set aside": ([A], [Want(0)], "a", 1, "release a"),
    "a further pod": ([A], [*ONE, Want(1)], "", 1, "scale  2"),
    "another size": ([A], [Want(0, "a", 500)], "", 1, "resize a 500"),
    "the size that it has": ([A], [Want(0, "a", 250)], "", 1, ""),
    "nobody has wanted any yet": ([A, B], [], "", 2, ""),
    "not all have theirs": ([A, pod("b", ready=False), C], [*ONE, Want(1)], "", 3, ""),
    "its pod is gone": ([B], [Want(0, "x", 500)], "", 1, ""),
    "cores are given back first": (
        [A, B], [Want(0, "a", 500), Want(1, "b", 100)], "", 2, "resize b 100, resize a 500"),
    "first it is made unready": ([A, B], ONE, "", 2, "retire b"),
    "then it is removed": ([A, C], ONE, "c", 2, "scale  1"),
    "one that is not there yet": ([A], ONE, "", 2, "scale  1"),
    "no replica's pod for it": ([pod("a", ready=False), C], ONE, "c", 2, ""),
    "one of two is unready": ([A, B, C], ONE, "c", 3, "retire b"),
    "wanted after all": ([A, C], [*ONE, Want(1)], "c", 2, "release c"),
    "it ends already": ([A, pod("b", ending=True)], [*ONE, Want(1)], "", 2, ""),
    "a full node is asked for no more": (
        [FULL, B], [Want(0, "a", 950), Want(1, "b", 500)], "", 2, ""),
    "but for less": (
        [FULL, pod("b", 500, 400)], [Want(0, "a", 300), Want(1, "b", 500)], "", 2,
        "resize a 300, resize b 400"),
    "another node has room": (
        [FULL, pod("b", node="n2")], [Want(0, "a", 900), Want(1, "b", 500)], "", 2, "resize b 500"),
    "never so much": ([pod("a", 3000, pending="Infeasible")], [Want(0, "a", 4000)], "", 1, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_next_calls(case):
    pods, wants, set_aside, scale, expected = CASES[case]
    calls = next_calls({each.name: each for each in pods}, wants, set_aside, scale)
    told = (f"{kind} {name} {value or ''}".strip() for kind, name, value in calls)
    assert ", ".join(told) == expected


def test_a_pod_is_read_as_the_api_shows_it():
    def cpu(name, cpu, **more):
        return {"name": name, "resources": {"limits": {"cpu": cpu}}} | more

    main = cpu("main", "1", ports=[{"name": "batches", "containerPort": 7700}])
    spec = {"nodeName": "n1", "containers": [cpu("sidecar", "2", ports=[{}]), main]}
    conditions = [{"type": "PodResizePending", "status": "True", "reason": "Deferred"}]
    conditions += [{"type": "Ready", "status": "True"}]
    running = [cpu("sidecar", "2"), cpu("main", "250m")]
    status = {"podIP": "10.0.0.7", "conditions": conditions, "containerStatuses": running}
    meta = {"name": "a", "generation": 3, "deletionTimestamp": "now"}
    whole, address = {"metadata": meta, "spec": spec, "status": status}, ("10.0.0.7", 7700)
    assert read_pod(whole) == Pod("a", 3, "main", "n1", address, True, True, 1000, 250, "Deferred")
    assert not read_pod(whole | {"status": {}}).ready
    for phase, ending in (("Running", False), ("Failed", True), ("Succeeded", True)):
        found = whole | {"metadata": {"name": "a"}, "status": status | {"phase": phase}}
        assert read_pod(found).ending == ending
    with pytest.raises(WorkerError, match="container main of pod a names no port"):
        read_pod(whole | {"spec": {"containers": [cpu("main", "1")]}})


def test_a_resize_keeps_requests_at_limits():
    sides = {side: {"cpu": "63m"} for side in ("requests", "limits")}
    containers = [{"name": "main", "resources": sides}]
    assert resize_patch(A._replace(container="main"), 63) == {"spec": {"containers": containers}}


def test_a_path_in_the_address_of_the_api_stands_before_all_others(monkeypatch):
    asked = []

    def request(self, verb, path, *_):
        asked.append((self.host, self.port, path))
        raise OSError("enough")

    monkeypatch.setattr("http.client.HTTPConnection.request", request)
    with pytest.raises(WorkerError, match="no answer of Kubernetes at here:80: enough"):
        Api("http://here:80/k8s/clusters/a/").call("GET", "/api/v1/pods")
    assert asked == [("here", 80, "/k8s/clusters/a/api/v1/pods")]
