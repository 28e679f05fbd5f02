"""The node: a Deployment controller, and a kubelet whose pods are processes in control groups."""

import contextlib
import copy
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from fake_cluster.store import cpu_milli

ROOT = Path("/sys/fs/cgroup/cpu")
PERIOD_US = 100_000
# Of the pods: another in each process.
NETWORK = f"127.{os.getpid() // 256 % 254 + 1}.{os.getpid() % 256}"


class Box:
    """A pod's process in its control group, with the resources that are allocated and in force."""

    def __init__(self, group, address, pod):
        group.mkdir()
        self.group, self.address, self.starts = group, address, 0
        self.due_s = self.killed_s = 0.0
        """When what is allocated comes into force, and when it is killed, if it is to be."""
        self.allocate(pod)
        self.enforce()
        self.run(pod)

    def allocate(self, pod):
        self.seen, self.allocated = pod["metadata"]["generation"], container_of(pod)["resources"]

    def enforce(self):
        self.due_s, self.resources = 0.0, self.allocated
        percents = -(-cpu_milli(self.resources, "limits") // 10)  # rounded up, as by systemd
        (self.group / "cpu.cfs_quota_us").write_text(str(percents * PERIOD_US // 100))

    def run(self, pod):
        container = container_of(pod)
        values = {e["name"]: e["value"] for e in container.get("env", ()) if "value" in e}
        values["POD_IP"] = self.address
        words = [*container["command"], *container.get("args", ())]
        command = [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], word) for word in words]
        # a shell that joins the group becomes the command
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.group / "cgroup.procs")]
        self.process = subprocess.Popen(enter + command, env=os.environ | values)
        self.starts += 1

    def kill(self):
        while pids := (self.group / "cgroup.procs").read_text().split():
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.005)  # until the kernel has taken them out
        self.process.wait()

    def listens(self, container):
        with contextlib.suppress(OSError):
            port = container["readinessProbe"]["tcpSocket"]["port"]
            socket.create_connection((self.address, port), 0.2).close()
            return True
        return False


class Node:
    """Brings about what the store's Deployments and pods say, a step at each :meth:`sync`."""

    def __init__(self, store, capacity, delay_s):
        self.capacity, self.boxes = capacity, dict[str, Box]()
        """Boxes are known by the names of their pods."""
        self._store, self._delay_s = store, delay_s
        self._random, self._hosts = random.Random(0), itertools.count(1)
        self.group = ROOT / f"fake-cluster-{os.getpid()}-{id(self)}"
        self.group.mkdir()
        (self.group / "cpu.shares").write_text("262144")  # as if it had no neighbours

    def sync(self):
        for deployment in self._store.list("deployments"):
            self._replicate(deployment)
        for pod in self._store.list("pods"):
            if "deletionTimestamp" in pod["metadata"]:
                self._end(pod)
            elif box := self.boxes.get(pod["metadata"]["name"]):
                self._go_on(pod, box)
            else:
                self._place(pod)

    def _change(self, each, event="MODIFIED", **parts):
        """Put parts of an object back; others may have changed since."""
        meta, plural = each["metadata"], f"{each['kind'].lower()}s"
        with self._store.changed:
            old = self._store.get(key := (plural, meta["namespace"], meta["name"]))
            self._store.put(key, old | parts, event)

    def _replicate(self, deployment):
        meta, spec = deployment["metadata"], deployment["spec"]
        pods = self._store.list("pods", meta["namespace"], spec["selector"]["matchLabels"])
        own = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        for _ in range(spec["replicas"] - len(own)):
            pod = {"kind": "Pod", "apiVersion": "v1"} | copy.deepcopy(spec["template"])
            pod["metadata"]["generateName"] = f"{meta['name']}-"
            self._store.create("pods", meta["namespace"], pod)
        # as a ReplicaSet does: first who is not ready, then the youngest
        own.sort(key=lambda pod: (is_ready(pod), -int(pod["metadata"]["uid"][1:])))
        for pod in own[: max(0, len(own) - spec["replicas"])]:
            gone = {"deletionTimestamp": pod["metadata"]["creationTimestamp"]}
            self._change(pod, metadata=pod["metadata"] | gone)
        ready = sum(map(is_ready, own))
        self._change(deployment, status={"replicas": len(own), "readyReplicas": ready})

    def _room(self, without=None):
        """Return what is free; who shrinks holds the old size until the new one is in force."""
        others = (box for box in self.boxes.values() if box is not without)
        held = (max(cpu_milli(box.allocated), cpu_milli(box.resources)) for box in others)
        return self.capacity - sum(held)

    def _place(self, pod):
        if cpu_milli(container_of(pod)["resources"]) > self._room():
            self._report(pod, {"PodScheduled": ("False", "Unschedulable")})
            return
        group, address = self.group / pod["metadata"]["uid"], f"{NETWORK}.{next(self._hosts)}"
        self.boxes[pod["metadata"]["name"]] = Box(group, address, pod)

    def _go_on(self, pod, box):
        if box.process.poll() is not None:
            box.kill()
            box.run(pod)
        conditions = {"Ready": (str(box.listens(container_of(pod))), "")}
        wanted, now_s = cpu_milli(container_of(pod)["resources"]), time.monotonic()
        if pod["metadata"]["generation"] == box.seen:
            pass
        elif wanted > self.capacity:
            conditions["PodResizePending"] = "True", "Infeasible"
        elif wanted > max(self._room(box), cpu_milli(box.allocated)):
            conditions["PodResizePending"] = "True", "Deferred"
        else:
            box.allocate(pod)
            # what is on its way takes a newer one along
            box.due_s = box.due_s or now_s + self._random.uniform(*self._delay_s)
        if box.due_s and now_s >= box.due_s:
            box.enforce()
        if box.due_s:
            conditions["PodResizeInProgress"] = "True", ""
        self._report(pod, conditions, box)

    def _end(self, pod):
        if box := self.boxes.get(name := pod["metadata"]["name"]):
            if not box.killed_s:
                box.killed_s = time.monotonic() + pod["spec"]["terminationGracePeriodSeconds"]
                box.process.terminate()
            if box.process.poll() is None and time.monotonic() < box.killed_s:
                return
            self._remove(name)
        self._change(pod, "DELETED")

    def _remove(self, name):
        box = self.boxes.pop(name)
        box.kill()
        box.group.rmdir()

    def _report(self, pod, conditions, box=None):
        generation = {"observedGeneration": pod["metadata"]["generation"]}
        status = {"phase": "Pending"}
        status["conditions"] = [
            generation | {"type": kind, "status": value, "reason": reason}
            for kind, (value, reason) in conditions.items()
        ]
        if box:
            running = {"name": container_of(pod)["name"], "image": "", "imageID": "", "ready": True}
            running |= {"restartCount": box.starts - 1, "resources": box.resources}
            running["allocatedResources"] = box.allocated["requests"]
            status |= {"phase": "Running", "podIP": box.address, "containerStatuses": [running]}
            status["observedGeneration"] = box.seen
        self._change(pod, status=status)

    def close(self):
        for name in list(self.boxes):
            self._remove(name)
        self.group.rmdir()


def container_of(pod):
    return pod["spec"]["containers"][0]


def is_ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
