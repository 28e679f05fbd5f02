"""Replicas that are pods of a Deployment, which are resized in place and scaled.

Requests go over connections to the pods and never through the API. One thread watches the pods,
another makes one call after another of those that :mod:`sponge_env.k8s.plan` names; serving waits
for neither. While the API server is away, it goes on with what was granted.
"""

import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from sponge_env.errors import ConfigError, WorkerError
from sponge_env.k8s.api import STRATEGIC, Api, own_namespace, server_url
from sponge_env.k8s.plan import ApiCall, Pod, Want, next_calls, read_pod, resize_patch
from sponge_env.live import wire
from sponge_env.live.child import Job
from sponge_env.live.protocol import LiveConfig
from sponge_env.live.remote import Address, RemoteLauncher, RemoteReplica, dial, in_thread

LOG = logging.getLogger("sponge_env")

PREFIX = "k8s:"
PERIOD_S, TICK_S = 0.1, 0.004  # Period of the quota that a kubelet sets, and the kernel's tick
RETRY_S, LOOK_S = 1.0, 0.25  # Pause before a call is made again; longest time between two looks
CLOSING_S = 2.0  # How long calls may take to end when nobody waits for their answers


class Resizes(NamedTuple):
    """How far Kubernetes has brought about what was asked for."""

    asked_cores: float
    granted_cores: float  # Physical cores of all pods with a replica
    pending: Mapping[str, int]  # Replicas that wait, by the reason
    ended: int  # Resizes that came into force
    lag_s: float  # From asking to that, all together


class PodReplica(RemoteReplica):
    """A replica in a pod, which it may not have yet."""

    def __init__(
        self, id: int, job: Job, cores: float, granted_cores: float, changed: threading.Condition
    ) -> None:
        super().__init__(id, job, "without a pod", cores, granted_cores)
        self.pod, self.placed, self.milli, self._changed = "", False, 0, changed

    def limit(self, cores: float) -> None:
        """Have its threads follow, and its pod when Kubernetes comes to it; the newest counts."""
        super().limit(cores)
        with self._changed:
            self.milli = math.ceil(round(cores * 1000, 3))
            self._changed.notify_all()


class KubernetesLauncher(RemoteLauncher):
    """Runs replicas in the pods of a Deployment. Implements ``Launcher``.

    That ``where``, ``[NAMESPACE/]DEPLOYMENT``, is not there, or no API, is a ``SpongeError``.
    """

    def __init__(self, configs: Sequence[LiveConfig], where: str, token: str) -> None:
        namespace, _, deployment = where.rpartition("/")
        if not deployment or "/" in namespace:
            raise ConfigError(f"--replicas needs {PREFIX}[NAMESPACE/]DEPLOYMENT, not {where!r}")
        space = f"namespaces/{quote(namespace or own_namespace())}"
        self._pods_path = f"/api/v1/{space}/pods"
        self._scale_path = f"/apis/apps/v1/{space}/deployments/{quote(deployment)}/scale"
        self._api = Api(server_url())
        found = self._api.call("GET", self._scale_path)
        try:
            self._scale = int(found["spec"].get("replicas", 0))  # JSON of Go: 0 is left out
            self._labels = quote(found["status"]["selector"])
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise WorkerError(f"Kubernetes gives no scale of {where}: {error!r}") from None
        self._changed, self._ended = threading.Condition(), threading.Event()
        """The first guards all that follows."""
        self._pods: dict[str, Pod] = {}
        self._wanting: list[PodReplica] = []
        self._retired: dict[str, socket.socket] = {}  # Connections that keep pods unready
        self._resumes_s: dict[tuple[str, str], float] = {}  # By kind and pod, until when calls wait
        self._sent: dict[str, tuple[int, float]] = {}  # Resizes not in force, and when asked for
        self._resized, self._lag_s = 0, 0.0
        self._trouble: dict[tuple[str, str], str] = {}  # What went wrong last, by kind and pod
        self._cores_max = max(config.physical_cores(config.cores_max) for config in configs)
        super().__init__(configs, [], token)
        self._dial = partial(dial, token=token, own=self.facts)
        self.limiter, self.period_s, self.tick_s = "remote-outside", PERIOD_S, TICK_S
        self._loops = [in_thread(loop) for loop in (self._follow, self._act)]

    def launch(
        self, id: int, cores: float, *, stage: int = 0, node: int = 0, full_speed: bool = False
    ) -> PodReplica:
        """Return a replica that gets a pod when there is one; at full speed, as large as it is."""
        granted_cores = self._cores_max if full_speed else cores  # until a pod says more
        replica = PodReplica(id, self.jobs[stage], cores, granted_cores, self._changed)
        with self._changed:
            self._wanting.append(replica)
            self._changed.notify_all()
        self.start(replica, partial(self._reach, replica), stage, full_speed)
        if not full_speed:
            replica.limit(cores)
        return replica

    def resizes(self) -> Resizes:
        """Return the present state, from any thread."""
        with self._changed:
            wanting = [each for each in self._wanting if not each.closed]
            pods = [self._pods[each.pod] for each in wanting if each.pod in self._pods]
            pending = dict.fromkeys(("NoPod", "Deferred", "Infeasible"), 0)
            pending |= Counter(pod.pending for pod in pods if pod.pending)
            pending["NoPod"] = len(wanting) - len(pods)
            asked = sum(each.milli for each in wanting) / 1000
            granted = sum(pod.granted_milli for pod in pods) / 1000
            return Resizes(asked, granted, pending, self._resized, self._lag_s)

    def _reach(self, replica: PodReplica) -> Address:
        """Return where a replica's pod listens, once it has one that does."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: replica.pod, LOOK_S)
                pod = self._pods.get(replica.pod)
            if replica.closed or self._ended.is_set():
                raise WorkerError("it is not wanted any more")
            with suppress(OSError):
                if pod:
                    socket.create_connection(pod.address, RETRY_S).close()
                    return Address(*pod.address)
            if replica.pod:  # its readiness is news of yesterday
                with self._changed:
                    self._pause("assign", replica.pod)
                    replica.pod, replica.placed = "", False

    def _follow(self) -> None:
        """Keep the account of the pods."""
        path = f"{self._pods_path}?labelSelector={self._labels}"
        while not self._ended.is_set():
            try:
                found = self._api.call("GET", path)
                items = [*found["items"]]
                with self._changed:
                    self._pods = {}
                    self._take(*items)
                version = found["metadata"]["resourceVersion"]
                self._trouble.pop(("watch", ""), None)
                for event in self._api.watch(f"{path}&resourceVersion={version}"):
                    if event["type"] == "ERROR":  # the version is too old, for one
                        break
                    self._take(event["object"], gone=event["type"] == "DELETED")
                self._ended.wait(LOOK_S)  # a proxy may end each watch at once
            except Exception as error:  # whatever a malformed answer leads to
                self._warn(("watch", ""), error)
                self._ended.wait(RETRY_S)

    def _take(self, *found: Mapping[str, Any], gone: bool = False, asked: bool = False) -> None:
        """Note what pods are now, unless newer is known."""
        # An answer to what was asked may be older than an event of the same generation.
        with self._changed:
            for item in found:
                try:
                    pod = read_pod(item)
                except Exception as error:  # one that cannot be read hides no other
                    if asked:
                        raise
                    self._warn(("pod", ""), error)
                    continue
                if gone:
                    self._pods.pop(pod.name, None)
                elif pod.generation >= self._pods.get(pod.name, pod).generation + asked:
                    self._pods[pod.name] = pod
                milli, since_s = self._sent.get(pod.name, (-1, 0.0))
                if pod.granted_milli == milli:
                    del self._sent[pod.name]
                    self._resized += 1
                    self._lag_s += time.monotonic() - since_s
            self._changed.notify_all()

    def _act(self) -> None:
        """Make one call after another, none that failed before a while has passed."""
        while not self._ended.is_set():
            kind, pod = "plan", ""
            try:
                with self._changed:
                    if (call := self._next_call()) is None:
                        self._changed.wait(LOOK_S)
                        continue
                self._trouble.pop((kind, pod), None)
                kind, pod, _ = call
                self._make(*call)
                self._trouble.pop((kind, pod), None)
            except Exception as error:  # whatever a malformed answer leads to
                self._warn((kind, pod), error)
                with self._changed:
                    self._pause(kind, pod)
                if kind == "plan":
                    self._ended.wait(RETRY_S)

    def _next_call(self) -> ApiCall | None:
        now_s = time.monotonic()
        # let go of what is kept for pods that are gone
        for gone in self._retired.keys() - self._pods.keys():
            self._retired.pop(gone).close()
        self._sent = {pod: sent for pod, sent in self._sent.items() if pod in self._pods}
        for what in list(self._trouble):
            if what[1] and what[1] not in self._pods:
                del self._trouble[what]
        self._resumes_s = {key: at_s for key, at_s in self._resumes_s.items() if at_s > now_s}
        self._wanting = [each for each in self._wanting if not each.closed]
        unreachable = {pod for kind, pod in self._resumes_s if kind == "assign"}
        wants = [Want(at, each.pod, each.milli) for at, each in enumerate(self._wanting)]
        calls = next_calls(self._pods, wants, unreachable | self._retired.keys(), self._scale)
        return next((each for each in calls if (each.kind, each.pod) not in self._resumes_s), None)

    def _pause(self, kind: str, pod: str) -> None:
        self._resumes_s[kind, pod] = time.monotonic() + RETRY_S

    def _warn(self, what: tuple[str, str], error: Exception) -> None:
        """Say what goes wrong, once as long as it is the same."""
        told = str(error) if isinstance(error, WorkerError) else f"a malformed answer, {error!r}"
        if told != self._trouble.get(what) and not self._ended.is_set():
            LOG.warning("going on with what was granted: %s", told)
        self._trouble[what] = told

    def _make(self, kind: str, name: str, value: int) -> None:
        pod, begin_s = self._pods.get(name), time.monotonic()
        if kind == "scale":
            self._api.call("PATCH", self._scale_path, {"spec": {"replicas": value}})
            self._scale = value
        elif pod is None:
            return  # gone meanwhile
        elif kind == "assign":
            with self._changed:
                chosen = self._wanting[value]
                chosen.pod, chosen.placed, chosen.where = name, True, f"pod {name}"
                self._changed.notify_all()
        elif kind == "resize":
            path, patch = f"{self._pods_path}/{name}/resize", resize_patch(pod, value)
            found = self._api.call("PATCH", path, patch, STRATEGIC)
            with self._changed:
                self._sent[name] = value, begin_s
                self._take(found, asked=True)
        else:
            with self._changed:
                self._pause(kind, name)  # until the kubelet has noticed
            if sock := self._retired.pop(name, None):
                sock.close()
            if kind == "retire":
                sock, _ = self._dial(Address(*pod.address))
                with suppress(OSError):
                    sock.sendall(wire.HEAD.pack(*wire.Frame(wire.RETIRE)))
                with self._changed:
                    self._retired[name] = sock
                    if self._ended.is_set():
                        sock.close()

    def close(self) -> None:
        """Let go of the pods, which stay as many as they are."""
        super().close()
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        until_s = time.monotonic() + CLOSING_S  # a call that connects still is left alone then
        for thread in self._loops:
            while thread.is_alive() and time.monotonic() < until_s:
                self._api.interrupt()
                thread.join(LOOK_S)
        with self._changed:
            for sock in self._retired.values():
                sock.close()
