"""Objects with versions, what happened to them, and how patches change them."""

import copy
import itertools
import threading


class ApiError(Exception):
    def __init__(self, code, reason, message):
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self.status |= {"reason": reason, "message": message, "metadata": {}}


class Store:
    """All objects, by plural, namespace, name; who changes one holds ``changed`` meanwhile."""

    def __init__(self):
        self.changed = threading.Condition(threading.RLock())
        self.version, self._serials = 1, itertools.count(1)
        self.events, self._objects = [], {}

    def get(self, key):
        if key not in self._objects:
            raise ApiError(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return copy.deepcopy(self._objects[key])

    def list(self, plural, namespace="", labels=()):
        with self.changed:
            keys = [k for k in sorted(self._objects) if k[0] == plural and namespace in ("", k[1])]
            return [self.get(key) for key in keys if has(self._objects[key], dict(labels))]

    def put(self, key, new, event="MODIFIED"):
        """Keep an object, with a new generation if its ``spec`` is another."""
        with self.changed:
            old, meta = self._objects.get(key, {}), new["metadata"]
            if new == old and event == "MODIFIED":
                return new
            self.version += 1
            meta["resourceVersion"] = str(self.version)
            meta["generation"] = meta.get("generation", 0) + (new.get("spec") != old.get("spec"))
            self._objects[key] = copy.deepcopy(new)
            if event == "DELETED":
                del self._objects[key]
            self.events.append((self.version, event, key, copy.deepcopy(new)))
            self.changed.notify_all()
            return new

    def create(self, plural, namespace, new):
        with self.changed:
            meta, serial = new["metadata"], next(self._serials)
            meta.setdefault("name", f"{meta.get('generateName')}{serial:04x}")
            meta |= {"namespace": namespace, "uid": f"u{serial}"}
            meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
            key = plural, namespace, meta["name"]
            if key in self._objects:
                raise ApiError(409, "AlreadyExists", f'{plural} "{meta["name"]}" already exists')
            if plural == "deployments":
                new["spec"].setdefault("replicas", 1)
                new["status"] = {"replicas": 0}
            if plural == "pods":
                new["status"] = {"phase": "Pending", "conditions": []}
            return self.put(key, new, "ADDED")


def has(each, labels):
    return labels.items() <= each["metadata"].get("labels", {}).items()


def merge(target, patch, strategic):
    """Change an object as a merge patch says; a strategic one finds containers by name."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.setdefault(key, {}), dict):
            merge(target[key], value, strategic)
        elif strategic and key == "containers":
            for each in value:
                merge(next(t for t in target[key] if t["name"] == each["name"]), each, strategic)
        elif not key.startswith("$"):  # the order of lists
            target[key] = value


def cpu_milli(resources, side="requests"):
    text = str(resources.get(side, {}).get("cpu", 0))
    return int(text[:-1]) if text.endswith("m") else round(float(text) * 1000)


def check_resize(old, new):
    """Refuse what the resize of a pod may not change; those here are Guaranteed."""
    shown = copy.deepcopy([old, new])
    (_, after) = (pod["spec"]["containers"][0].pop("resources") for pod in shown)
    problem = ""
    if shown[0] != shown[1]:
        problem = "Forbidden: only cpu and memory resources are mutable"
    elif after["requests"] != after["limits"]:
        problem = "Invalid value: Pod QOS Class may not change as a result of resizing"
    if problem:
        name = old["metadata"]["name"]
        raise ApiError(422, "Invalid", f'Pod "{name}" is invalid: spec.containers: {problem}')
