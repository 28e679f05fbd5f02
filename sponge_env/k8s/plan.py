"""What to ask of Kubernetes next, given fleet and pods: pure functions without API and clock."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from sponge_env.errors import WorkerError

PORT = "batches"  # Name of the port on which a pod's replica listens


class Pod(NamedTuple):
    """What counts of a pod; CPU in thousandths of a core."""

    name: str
    generation: int = 1  # Grows with each change of what is asked for
    container: str = ""
    node: str = ""
    address: tuple[str, int] = ("", 0)  # And its port
    ready: bool = False
    ending: bool = False
    asked_milli: int = 0
    granted_milli: int = 0  # In force, as the kubelet reports it
    pending: str = ""  # Why a resize is not allocated: ``Deferred`` or ``Infeasible``


class Want(NamedTuple):
    """A replica by its place, its pod if it has one, and its CPU, 0 for what a pod starts with."""

    id: int
    pod: str = ""
    milli: int = 0


class ApiCall(NamedTuple):
    """Something to do."""

    kind: Literal["assign", "resize", "scale", "retire", "release"]
    """``retire`` makes a pod unready, so that the Deployment removes it, ``release`` undoes it."""
    pod: str
    value: int = 0  # The replica, thousandths of a core, or the number of pods


def next_calls(
    pods: Mapping[str, Pod], wants: Collection[Want], set_aside: Collection[str], scale: int
) -> list[ApiCall]:
    """Return what brings the pods closer to what is wanted, the most urgent first."""
    # ``scale`` pods were last asked for; those ``set_aside`` are retired or could not be reached.
    staying = {name: pod for name, pod in pods.items() if not pod.ending}
    taken = {want.pod for want in wants}
    free = [pod for name, pod in sorted(staying.items()) if name not in taken]
    usable = (pod.name for pod in free if pod.ready and pod.name not in set_aside)
    waiting = (want.id for want in wants if not want.pod)
    calls = [ApiCall("assign", name, id) for name, id in zip(usable, waiting, strict=False)]
    if (wanted := len(wants)) > scale:
        calls.append(ApiCall("scale", "", wanted))
    calls += _resizes(staying, wants)
    if wanted >= scale:
        calls += [ApiCall("release", pod.name) for pod in free if pod.name in set_aside]
    elif wants and all(want.pod in staying and staying[want.pod].ready for want in wants):
        # a Deployment removes first what is not ready, which must be no replica's
        unready = sum(not pod.ready for pod in free) + max(0, scale - len(staying))
        if (more := scale - wanted - unready) <= 0:
            calls.append(ApiCall("scale", "", wanted))
        calls += [ApiCall("retire", pod.name) for pod in free if pod.ready][: max(0, more)]
    return calls


def _resizes(pods: Mapping[str, Pod], wants: Iterable[Want]) -> list[ApiCall]:
    """Return the resizes that make sense now, those that give back cores first."""
    # While one is pending on a node, no other pod there is asked to grow, and that one no further.
    full, resizes = {pod.node for pod in pods.values() if pod.pending}, []
    for want in wants:
        if (pod := pods.get(want.pod)) is None or not want.milli:
            continue
        milli = want.milli
        if pod.node in full:
            milli = min(milli, pod.asked_milli if pod.pending else pod.granted_milli)
        if milli not in (0, pod.asked_milli):
            resizes.append((milli > pod.asked_milli, ApiCall("resize", pod.name, milli)))
    return [resize for _, resize in sorted(resizes)]


def read_pod(found: Mapping[str, Any]) -> Pod:
    """Return what counts of a pod as the API shows it."""
    meta, spec, status = found["metadata"], found["spec"], found.get("status", {})
    # others, such as a mesh's proxy, may have been put beside it
    has = (c for c in spec["containers"] if any(p.get("name") == PORT for p in c.get("ports", ())))
    container = next(has, spec["containers"][0])
    name = container["name"]
    if not container.get("ports"):
        raise WorkerError(f"container {name} of pod {meta['name']} names no port")
    running = [each for each in status.get("containerStatuses", ()) if each["name"] == name]
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    pod = Pod(
        name=meta["name"], generation=meta.get("generation", 0), container=name,
        node=spec.get("nodeName", ""),
        address=(status.get("podIP", ""), container["ports"][0]["containerPort"]),
        ready=conditions.get("Ready", {}).get("status") == "True",
        ending="deletionTimestamp" in meta or status.get("phase") in ("Failed", "Succeeded"),
        asked_milli=_cpu_milli(container),
        granted_milli=_cpu_milli(running[0]) if running else 0,
        pending=conditions.get("PodResizePending", {}).get("reason", ""),
    )  # fmt: skip
    texts, numbers = (pod.name, name, pod.node, pod.address[0], pod.pending), pod.address[1:]
    if set(map(type, texts)) != {str} or {*map(type, numbers), type(pod.generation)} != {int}:
        raise WorkerError("a pod has values of other types than it should")
    return pod


def _cpu_milli(container: Mapping[str, Any]) -> int:
    text = str((container.get("resources") or {}).get("limits", {}).get("cpu", 0))
    return int(text[:-1]) if text.endswith("m") else round(float(text) * 1000)


def resize_patch(pod: Pod, milli: int) -> dict[str, Any]:
    """Return the strategic merge patch of a resize; requests are limits, as in each pod here."""
    cpu = {"cpu": f"{milli}m"}
    resources = {"requests": cpu, "limits": cpu}
    return {"spec": {"containers": [{"name": pod.container, "resources": resources}]}}
