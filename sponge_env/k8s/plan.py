"""What to ask of Kubernetes next, given what the fleet wants and what the pods are.

Pure functions: they know no API, no clock and no sockets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sponge_env.errors import WorkerError


class Pod(NamedTuple):
    """What counts of a pod; CPU in thousandths of a core."""

    name: str
    generation: int
    """Grows with each change of what is asked for."""
    container: str
    node: str = ""
    address: str = ""
    port: int = 0
    ready: bool = False
    ending: bool = False
    asked_milli: int = 0
    granted_milli: int = 0
    """In force, as the kubelet reports it; 0 where it does not."""
    pending: str = ""
    """Why a resize is not allocated: ``Deferred`` or ``Infeasible``."""


class Want(NamedTuple):
    """A replica of the fleet."""

    id: int
    pod: str = ""
    """Its pod; none at first."""
    milli: int | None = None
    """Its CPU; None for what its pod starts with."""


class Assign(NamedTuple):
    """Give a replica a pod."""

    pod: str
    id: int


class Resize(NamedTuple):
    """Ask for another size of a pod."""

    pod: str
    milli: int


class Retire(NamedTuple):
    """Make a pod unready, so that the Deployment removes it and no other."""

    pod: str


class Release(NamedTuple):
    """Let a retired pod be ready again."""

    pod: str


class Scale(NamedTuple):
    """Ask for a number of pods."""

    pod: str
    """Empty: it concerns them all."""
    replicas: int


Call = Assign | Resize | Retire | Release | Scale


def next_calls(
    pods: Mapping[str, Pod], wants: Collection[Want], retired: Collection[str], scale: int
) -> list[Call]:
    """Return what brings the pods closer to what is wanted, the most urgent first.

    ``scale`` is the number of pods last asked for; ``retired`` are pods that were made unready.
    """
    staying = {name: pod for name, pod in pods.items() if not pod.ending}
    taken = {want.pod for want in wants}
    free = [pod for name, pod in sorted(staying.items()) if name not in taken]
    usable = (pod.name for pod in free if pod.ready and pod.name not in retired)
    waiting = (want.id for want in wants if not want.pod)
    calls: list[Call] = [Assign(*pair) for pair in zip(usable, waiting, strict=False)]
    wanted = max(1, len(wants))
    if wanted > scale:
        calls.append(Scale("", wanted))
    calls += _resizes(staying, wants)
    if wanted >= scale:
        calls += [Release(pod.name) for pod in free if pod.name in retired]
    elif all(staying[want.pod].ready for want in wants if want.pod in staying):
        # pods that are not ready, or not there, go first; a replica's must not be among them
        more = scale - wanted - sum(not pod.ready for pod in free) - max(0, scale - len(staying))
        if more <= 0:
            calls.append(Scale("", wanted))
        calls += [Retire(pod.name) for pod in free if pod.ready][: max(0, more)]
    return calls


def _resizes(pods: Mapping[str, Pod], wants: Iterable[Want]) -> Iterator[Resize]:
    """Return the resizes that make sense now, those that give back cores first.

    While a resize is pending on a node, no other pod there is asked to grow, and itself no further.
    """
    full = {pod.node for pod in pods.values() if pod.pending}
    resizes = []
    for want in wants:
        pod = pods.get(want.pod)
        if pod is None or want.milli is None:
            continue
        most = want.milli
        if pod.node in full:
            most = pod.asked_milli if pod.pending else pod.granted_milli or pod.asked_milli
        if (milli := min(want.milli, most)) != pod.asked_milli:
            resizes.append((milli > pod.asked_milli, Resize(pod.name, milli)))
    return (resize for _, resize in sorted(resizes))


def read_pod(found: Mapping[str, Any]) -> Pod:
    """Return what counts of a pod as the API shows it; a ``WorkerError`` where that is missing."""
    meta, spec, status = found["metadata"], found["spec"], found.get("status", {})
    container = spec["containers"][0]
    ports = container.get("ports")
    if not ports:
        raise WorkerError(f"pod {meta['name']} names no port: its container needs one in ports")
    running = [
        each for each in status.get("containerStatuses", ()) if each["name"] == container["name"]
    ]
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    return Pod(
        name=meta["name"],
        generation=meta.get("generation", 0),
        container=container["name"],
        node=spec.get("nodeName", ""),
        address=status.get("podIP", ""),
        port=ports[0]["containerPort"],
        ready=conditions.get("Ready", {}).get("status") == "True",
        ending="deletionTimestamp" in meta,
        asked_milli=_cpu_milli(container),
        granted_milli=_cpu_milli(running[0]) if running else 0,
        pending=conditions.get("PodResizePending", {}).get("reason", ""),
    )


def resize_patch(pod: Pod, milli: int) -> dict[str, Any]:
    """Return the strategic merge patch of a resize: requests are limits, so it stays Guaranteed."""
    cpu = {"cpu": f"{milli}m"}
    resources = {"requests": cpu, "limits": cpu}
    return {"spec": {"containers": [{"name": pod.container, "resources": resources}]}}


def _cpu_milli(container: Mapping[str, Any]) -> int:
    text = str((container.get("resources") or {}).get("limits", {}).get("cpu", 0))
    return int(text[:-1]) if text.endswith("m") else round(float(text) * 1000)
