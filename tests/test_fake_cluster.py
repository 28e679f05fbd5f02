"""What clients that we did not write make of the fake cluster: kubectl, two of Python."""

import json
import shutil
import subprocess

import pytest
from machine import needs_cgroup, wait_until
from pods import BASE, needs_v1, pods

# Clients of others leave sockets open.
left_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.cgroup, pytest.mark.slow, needs_cgroup, needs_v1, left_open]
NAME = "sponge-replica"
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


@pytest.fixture
def cluster(tmp_path):
    with pods(tmp_path, cpu="200m", milli=1000) as cluster:
        wait_until(lambda: bool(cluster.node.boxes))
        yield cluster


def resize(cpu, *sides, **more):
    resources = {side: {"cpu": cpu} for side in sides or ("limits", "requests")}
    return {"spec": {"containers": [{"name": "replica", "resources": resources} | more]}}


def quota(cluster, pod):
    """Return the cores that the kernel grants a pod, in percent."""
    return int((cluster.node.boxes[pod].group / "cpu.cfs_quota_us").read_text()) // 1000


@needs_kubectl
def test_kubectl(cluster, tmp_path):
    def kubectl(line, *more, fails=""):
        words = ["kubectl", "--server", cluster.url, "--cache-dir", str(tmp_path), *line.split()]
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(fails), done.stderr
        assert fails in done.stderr
        return done.stdout

    def patch(body, how="--subresource resize", fails=""):
        kubectl(f"patch pod {pod} {how} -p", json.dumps(body), fails=fails)

    def pending(reason):
        path = "-o=jsonpath={.status.conditions[?(@.type=='PodResizePending')].reason}"
        wait_until(lambda: kubectl(f"get pod {pod}", path) == reason, reason)

    (pod,) = cluster.node.boxes
    assert kubectl(f"get pods -l app={NAME} -o name") == f"pod/{pod}\n"
    assert quota(cluster, pod) == 20
    patch(resize("605m"))
    wait_until(lambda: quota(cluster, pod) == 61, "rounded up to a whole percent")
    patch(resize("3"))
    pending("Infeasible")
    kubectl(f"scale deployment {NAME} --replicas 2")
    wait_until(lambda: len(cluster.node.boxes) == 2)
    patch(resize("900m"))
    pending("Deferred")
    assert quota(cluster, pod) == 61
    kubectl("wait --for=condition=Ready --timeout=60s pod --all")
    kubectl(f"scale deployment {NAME} --replicas 1")
    wait_until(lambda: list(cluster.node.boxes) == [pod], "the younger one goes")
    wait_until(lambda: quota(cluster, pod) == 90)
    pending("")
    patch(resize("950m", "limits"), fails="QOS")
    patch(resize("950m", image="other"), fails="only cpu and memory")
    patch(resize("950m"), how="", fails="may not change")
    kubectl("get nothing", fails="doesn't have a resource type")
    # that it sets no number of replicas keeps the one in force
    kubectl(f"scale deployment {NAME} --replicas 3")
    for _ in range(2):
        kubectl(f"apply --validate=false -k {BASE}")
    assert kubectl(f"get deployment {NAME}", "-o=jsonpath={.spec.replicas}") == "3"
    kubectl(f"delete pod {pod} --wait=false")
    wait_until(lambda: pod not in cluster.node.boxes)


@needs_kubectl
@pytest.mark.parametrize("overlay", ["vertical", "joint"])
def test_the_manifests_fit_the_schemas(overlay):
    schemas, yaml = map(pytest.importorskip, ("kubernetes_validate", "yaml"))
    command = ["kubectl", "kustomize", BASE.parent / "overlays" / overlay]
    built = list(yaml.safe_load_all(subprocess.check_output(command)))
    for each in built:
        schemas.validate(each, "1.35", strict=True)
    assert [each["kind"] for each in built].count("Deployment") == 2


def test_the_official_client(cluster):
    client, watch = map(pytest.importorskip, ("kubernetes.client", "kubernetes.watch"))
    configuration = client.Configuration(host=cluster.url)
    configuration.api_key = {"authorization": "Bearer sa:sponge"}
    with client.ApiClient(configuration) as own:
        core, apps = client.CoreV1Api(own), client.AppsV1Api(own)
        (pod,) = core.list_namespaced_pod("default", label_selector=f"app={NAME}").items
        name = pod.metadata.name
        answer = core.patch_namespaced_pod_resize(name, "default", resize("500m"))
        assert answer.spec.containers[0].resources.limits["cpu"] == "500m"
        for event in watch.Watch().stream(core.list_namespaced_pod, "default", timeout_seconds=60):
            status = event["object"].status
            running = status.container_statuses or []
            if [each.resources.limits["cpu"] for each in running] == ["500m"]:
                break
        assert (status.observed_generation, quota(cluster, name)) == (2, 50)
        scale = apps.read_namespaced_deployment_scale(NAME, "default")
        assert (scale.spec.replicas, scale.status.selector) == (1, f"app={NAME}")
        for forbidden in (core.read_namespaced_pod, core.delete_namespaced_pod):
            with pytest.raises(client.ApiException, match="403"):
                forbidden(name, "default")


def test_lightkube(cluster):
    modules = ("lightkube", "lightkube.config.models", "lightkube.resources.core_v1")
    lightkube, models, core = map(pytest.importorskip, modules)
    apps = pytest.importorskip("lightkube.resources.apps_v1")
    server, user = models.Cluster(server=cluster.url), models.User(token="sa:sponge")
    config = lightkube.KubeConfig.from_one(cluster=server, user=user)
    with lightkube.Client(config=config, namespace="default") as client:
        (pod,) = client.list(core.Pod, labels={"app": NAME})
        client.patch(core.PodResize, pod.metadata.name, resize("300m"))
        wait_until(lambda: quota(cluster, pod.metadata.name) == 30)
        client.patch(apps.Deployment.Scale, NAME, {"spec": {"replicas": 2}})
        wait_until(lambda: len(cluster.node.boxes) == 2)
