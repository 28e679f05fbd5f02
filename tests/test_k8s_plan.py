"""What is asked of Kubernetes, from what the fleet wants and what the pods are."""

from __future__ import annotations

from typing import Any

import pytest

from sponge_env.errors import WorkerError
from sponge_env.k8s.plan import Call, Pod, Want, next_calls, read_pod, resize_patch


def pod(name: str, asked: int = 250, granted: int | None = None, **more: Any) -> Pod:
    granted = asked if granted is None else granted
    common = {"ready": True, "node": "n1", "asked_milli": asked, "granted_milli": granted}
    return Pod(name, **common | more)


A, B, C = pod("a"), pod("b"), pod("c")
UNREADY = pod("c", ready=False)
DEFERRED = pod("a", 900, 250, pending="Deferred")


@pytest.mark.parametrize(
    ("pods", "wants", "set_aside", "scale", "calls"),
    [
        pytest.param([], [Want(0)], "", 1, [], id="a pod is on its way"),
        pytest.param([A], [Want(0)], "", 1, ["assign a 0"], id="the first ready pod"),
        pytest.param([UNREADY], [Want(0)], "", 1, [], id="none that is not ready"),
        pytest.param([A], [Want(0)], "a", 1, ["release a"], id="none that is set aside"),
        pytest.param([A], [Want(0, "a"), Want(1)], "", 1, ["scale  2"], id="a further pod"),
        pytest.param([A], [Want(0, "a", 500)], "", 1, ["resize a 500"], id="another size"),
        pytest.param([A], [Want(0, "a", 250)], "", 1, [], id="the size that it has"),
        pytest.param([A], [], "", 1, [], id="the last pod stays"),
        pytest.param([A], [Want(0, "x", 500)], "", 1, [], id="its pod is gone"),
        pytest.param(
            [A, B],
            [Want(0, "a", 500), Want(1, "b", 100)],
            "",
            2,
            ["resize b 100", "resize a 500"],
            id="cores are given back first",
        ),
        pytest.param([A, B], [Want(0, "a")], "", 2, ["retire b"], id="first it is made unready"),
        pytest.param([A, UNREADY], [Want(0, "a")], "c", 2, ["scale  1"], id="then it is removed"),
        pytest.param([A], [Want(0, "a")], "", 2, ["scale  1"], id="one that is not there yet"),
        pytest.param(
            [pod("a", ready=False), UNREADY],
            [Want(0, "a")],
            "c",
            2,
            [],
            id="not while a replica's pod might be taken for it",
        ),
        pytest.param(
            [A, B, UNREADY], [Want(0, "a")], "c", 3, ["retire b"], id="one of two is unready"
        ),
        pytest.param(
            [A, UNREADY], [Want(0, "a"), Want(1)], "c", 2, ["release c"], id="wanted after all"
        ),
        pytest.param(
            [A, pod("b", ending=True)], [Want(0, "a"), Want(1)], "", 2, [], id="it ends already"
        ),
        pytest.param(
            [DEFERRED, B],
            [Want(0, "a", 950), Want(1, "b", 500)],
            "",
            2,
            [],
            id="a full node is asked for no more",
        ),
        pytest.param(
            [DEFERRED, pod("b", 500, 400)],
            [Want(0, "a", 300), Want(1, "b", 500)],
            "",
            2,
            ["resize a 300", "resize b 400"],
            id="but for less",
        ),
        pytest.param(
            [DEFERRED, pod("b", node="n2")],
            [Want(0, "a", 900), Want(1, "b", 500)],
            "",
            2,
            ["resize b 500"],
            id="another node has room",
        ),
        pytest.param(
            [pod("a", 3000, 250, pending="Infeasible")],
            [Want(0, "a", 4000)],
            "",
            1,
            [],
            id="never so much",
        ),
    ],
)
def test_next_calls(
    pods: list[Pod], wants: list[Want], set_aside: str, scale: int, calls: list[str]
) -> None:
    found = next_calls({each.name: each for each in pods}, wants, set_aside, scale)
    assert [f"{kind} {name} {value or ''}".rstrip() for kind, name, value in found] == [
        call.removesuffix(" 0") for call in calls
    ]


def test_a_pod_is_read_as_the_api_shows_it() -> None:
    container: dict[str, Any] = {"name": "main", "ports": [{"containerPort": 7700}]}
    found: dict[str, Any] = {
        "metadata": {"name": "a", "generation": 3, "deletionTimestamp": "now"},
        "spec": {
            "nodeName": "n1",
            "containers": [container | {"resources": {"limits": {"cpu": "1"}}}],
        },
        "status": {
            "podIP": "10.0.0.7",
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "PodResizePending", "status": "True", "reason": "Deferred"},
            ],
            "containerStatuses": [
                {"name": "sidecar", "resources": {"limits": {"cpu": "2"}}},
                {"name": "main", "resources": {"limits": {"cpu": "250m"}}},
            ],
        },
    }
    expected = Pod("a", 3, "main", "n1", ("10.0.0.7", 7700), True, True, 1000, 250, "Deferred")
    assert read_pod(found) == expected
    del found["status"], found["spec"]["nodeName"]
    assert not read_pod(found).ready
    del container["ports"]
    found["spec"]["containers"] = [container]
    with pytest.raises(WorkerError, match="container main of pod a names no port"):
        read_pod(found)


def test_a_resize_keeps_requests_at_limits() -> None:
    cpu = {"cpu": "63m"}
    containers = [{"name": "main", "resources": {"requests": cpu, "limits": cpu}}]
    assert resize_patch(A._replace(container="main"), 63) == {"spec": {"containers": containers}}
    assert Call("resize", "a", 63)
