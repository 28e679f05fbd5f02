"""What clients that we did not write make of the fake cluster: kubectl, two of Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, fake_cluster
from fake_cluster.node import ROOT
from machine import needs_cgroup, wait_until

pytestmark = [
    pytest.mark.cgroup,
    needs_cgroup,
    pytest.mark.skipif(not ROOT.is_dir(), reason="needs control groups of version 1"),
]
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/resize"], "verbs": ["patch"]},
    {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
]


def resources(cpu: str) -> dict[str, Any]:
    return {side: {"cpu": cpu, "memory": "64Mi"} for side in ("limits", "requests")}


def resize(cpu: str) -> dict[str, Any]:
    sides = {side: {"cpu": cpu} for side in ("limits", "requests")}
    return {"spec": {"containers": [{"name": "main", "resources": sides}]}}


def objects(cpu: str = "200m") -> list[dict[str, Any]]:
    """Return a Deployment of something that waits, and a service account that may resize it."""
    labels = {"app": "waits"}
    container = {"name": "main", "image": "none", "command": ["sleep", "600"]}
    pod = {"containers": [container | {"resources": resources(cpu)}]}
    spec = {"selector": {"matchLabels": labels}}
    template = {"metadata": {"labels": labels}, "spec": pod}
    meta, rbac = {"metadata": {"name": "waits"}}, {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "waits"}
    subject = {"kind": "ServiceAccount", "name": "waits"}
    return [
        meta
        | {"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec | {"template": template}},
        meta | rbac | {"kind": "Role", "rules": RULES},
        meta | rbac | {"kind": "RoleBinding", "roleRef": role, "subjects": [subject]},
    ]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        for each in objects():
            cluster.store.create(f"{each['kind'].lower()}s", "default", each)
        wait_until(lambda: bool(cluster.node.boxes))
        yield cluster


def quota(cluster: FakeCluster, pod: str) -> int:
    """Return the cores that the kernel grants a pod, in percent."""
    return int((cluster.node.boxes[pod].group / "cpu.cfs_quota_us").read_text()) // 1000


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl(cluster: FakeCluster, tmp_path: Path) -> None:
    def kubectl(line: str, *more: str, fails: str = "") -> str:
        words = ["kubectl", "--server", cluster.url, "--cache-dir", str(tmp_path), *line.split()]
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(fails), done.stderr
        assert fails in done.stderr
        return done.stdout

    def resized(cpu: str, fails: str = "") -> None:
        kubectl(f"patch pod {pod} --subresource resize -p", json.dumps(resize(cpu)), fails=fails)

    def pending(reason: str) -> None:
        path = "-o=jsonpath={.status.conditions[?(@.type=='PodResizePending')].reason}"
        wait_until(lambda: kubectl(f"get pod {pod}", path) == reason, reason)

    pod = next(iter(cluster.node.boxes))
    assert f"pod/{pod}" in kubectl("get pods -l app=waits -o name")
    assert quota(cluster, pod) == 20
    resized("605m")
    wait_until(lambda: quota(cluster, pod) == 61, "rounded up to a whole percent")
    resized("3")
    pending("Infeasible")
    kubectl("scale deployment waits --replicas 2")
    wait_until(lambda: len(cluster.node.boxes) == 2)
    resized("900m")
    pending("Deferred")
    assert quota(cluster, pod) == 61
    (other,) = cluster.node.boxes.keys() - {pod}
    kubectl("scale deployment waits --replicas 1")
    wait_until(lambda: other not in cluster.node.boxes, "the younger one goes")
    wait_until(lambda: quota(cluster, pod) == 90)
    pending("")
    kubectl("wait --for=condition=Ready --timeout=9s pod", pod)
    half = {"name": "main", "resources": {"limits": {"cpu": "950m"}}}
    spec = json.dumps({"spec": {"containers": [half]}})
    kubectl(f"patch pod {pod} --subresource resize -p", spec, fails="QOS")
    spec = json.dumps({"spec": {"containers": [{"name": "main", "image": "other"}]}})
    kubectl(f"patch pod {pod} --subresource resize -p", spec, fails="only cpu and memory")
    kubectl(f"patch pod {pod} -p", json.dumps(resize("1")), fails="may not change")
    kubectl("get nothing", fails="doesn't have a resource type")
    kubectl(f"delete pod {pod} --wait=false")
    wait_until(lambda: bool(cluster.node.boxes) and pod not in cluster.node.boxes)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its own sockets
def test_the_official_client(cluster: FakeCluster) -> None:
    client = pytest.importorskip("kubernetes.client")
    watch = pytest.importorskip("kubernetes.watch")

    def connect(token: str = "") -> Any:
        configuration = client.Configuration(host=cluster.url)
        configuration.api_key = {"authorization": f"Bearer {token}"} if token else {}
        return client.ApiClient(configuration)

    with connect() as free, connect("sa:waits") as bound:
        core, own = client.CoreV1Api(free), client.CoreV1Api(bound)
        (pod,) = own.list_namespaced_pod("default", label_selector="app=waits").items
        name = pod.metadata.name
        answer = own.patch_namespaced_pod_resize(name, "default", resize("500m"))
        assert answer.spec.containers[0].resources.limits["cpu"] == "500m"
        for event in watch.Watch().stream(own.list_namespaced_pod, "default", timeout_seconds=30):
            status = event["object"].status
            running = status.container_statuses or []
            if [each.resources.limits["cpu"] for each in running] == ["500m"]:
                break
        assert status.observed_generation == 2
        assert quota(cluster, name) == 50
        scale = client.AppsV1Api(free).read_namespaced_deployment_scale("waits", "default")
        assert (scale.spec.replicas, scale.status.selector) == (1, "app=waits")
        with pytest.raises(client.ApiException, match="403"):
            own.read_namespaced_pod(name, "default")
        with pytest.raises(client.ApiException, match="404"):
            core.read_namespaced_pod("other", "default")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lightkube(cluster: FakeCluster) -> None:
    lightkube = pytest.importorskip("lightkube")
    resource = pytest.importorskip("lightkube.resources.core_v1")
    apps = pytest.importorskip("lightkube.resources.apps_v1")
    models = pytest.importorskip("lightkube.config.models")
    config = lightkube.KubeConfig.from_one(
        cluster=models.Cluster(server=cluster.url), user=models.User(token="sa:waits")
    )
    client = lightkube.Client(config=config, namespace="default")
    (pod,) = client.list(resource.Pod, labels={"app": "waits"})
    client.patch(resource.PodResize, pod.metadata.name, resize("300m"))
    wait_until(lambda: quota(cluster, pod.metadata.name) == 30)
    client.patch(apps.Deployment.Scale, "waits", {"spec": {"replicas": 2}})
    wait_until(lambda: len(cluster.node.boxes) == 2)
