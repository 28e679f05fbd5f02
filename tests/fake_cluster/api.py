"""The API server: discovery, list, watch, patches, scale and resize, rights."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fake_cluster.store import ApiError, Object, Store, check_resize, has, merge

PLURALS = {
    "": {"pods": "Pod", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps": {"deployments": "Deployment"},
    "rbac.authorization.k8s.io": {"roles": "Role", "rolebindings": "RoleBinding"},
    "policy": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io": {"networkpolicies": "NetworkPolicy"},
}
SUBRESOURCES = {
    "": {"name": "pods/resize", "kind": "Pod"},
    "apps": {"name": "deployments/scale", "kind": "Scale", "group": "autoscaling", "version": "v1"},
}
PATH = re.compile(
    r"/(?:api|apis/([^/]+))/v1(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+)(?:/([a-z]+))?)?"
)
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Handler(BaseHTTPRequestHandler):
    """Answers one client. Its server has a ``store``, and may be ``away``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if not self.server.away.is_set():
                return self.route(body)
        except ApiError as error:
            return self.answer(error.status, error.code)
        except OSError:
            pass  # the client is gone
        self.close_connection = True

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def answer(self, data: Object, code: int = 200) -> None:
        self.begin(code, "Content-Length", len(body := json.dumps(data).encode()))
        self.wfile.write(body)

    def begin(self, code: int, header: str, value: object) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header(header, str(value))
        self.end_headers()

    def route(self, body: bytes) -> None:
        url = urlsplit(self.path)
        if found := discovery(url.path.rstrip("/")):
            return self.answer(found)
        if (match := PATH.fullmatch(url.path)) is None or match[3] not in PLURALS[match[1] or ""]:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        group, space, plural, name, sub = (part or "" for part in match.groups())
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        labels = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
        reads = "watch" if query.get("watch") in ("1", "true") else "get" if name else "list"
        verb = VERBS.get(self.command, reads)
        what = f"{plural}/{sub}".rstrip("/")
        store, account = self.server.store, self.headers.get("Authorization")
        if account is not None:
            authorize(store, account.removeprefix("Bearer sa:"), (verb, group, space, what, name))
        if verb == "watch":
            return self.watch(plural, space, labels, query)
        with store.changed:
            if verb == "create":
                return self.answer(store.create(plural, space, json.loads(body)), 201)
            if verb == "list":
                version = {"resourceVersion": str(store.version)}
                kind = {
                    "kind": f"{PLURALS[group][plural]}List",
                    "apiVersion": f"{group}/v1".lstrip("/"),
                }
                return self.answer(
                    kind | {"metadata": version, "items": store.list(plural, space, labels)}
                )
            old = store.get(key := (plural, space, name))
            if verb == "patch":
                strategic = "strategic" in self.headers["Content-Type"]
                old = patched(store, key, old, sub, json.loads(body), strategic)
            elif verb == "delete" and plural == "pods":  # it goes when it has ended
                old["metadata"]["deletionTimestamp"] = old["metadata"]["creationTimestamp"]
                store.put(key, old)
            elif verb == "delete":
                store.put(key, old, "DELETED")
            self.answer(scale_of(old) if sub == "scale" else old)

    def watch(
        self, plural: str, space: str, labels: dict[str, str], query: Mapping[str, str]
    ) -> None:
        store, since = self.server.store, int(query.get("resourceVersion") or 0)
        end_s = time.monotonic() + float(query.get("timeoutSeconds", 300))
        self.close_connection = True
        self.begin(200, "Transfer-Encoding", "chunked")
        while time.monotonic() < end_s:
            with store.changed:
                if not (news := [event for event in store.events if event[0] > since]):
                    store.changed.wait(0.1)
            if self.server.away.is_set():
                return
            for _, event, key, each in news:
                if key[0] == plural and space in ("", key[1]) and has(each, labels):
                    line = json.dumps({"type": event, "object": each}).encode() + b"\n"
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
            since = news[-1][0] if news else since
        self.wfile.write(b"0\r\n\r\n")


def discovery(path: str) -> Object | None:
    """Return what tells clients which kinds there are."""
    if path == "/version":
        return {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = {
            name: {"groupVersion": f"{name}/v1", "version": "v1"} for name in PLURALS if name
        }
        groups = [{"name": n, "versions": [v], "preferredVersion": v} for n, v in versions.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for group, plurals in PLURALS.items():
        if path == (f"/apis/{group}/v1" if group else "/api/v1"):
            common = {
                "singularName": "",
                "namespaced": True,
                "verbs": ["get", "list", "patch", "watch", "create", "delete"],
            }
            rows = [{"name": plural, "kind": kind} for plural, kind in plurals.items()]
            rows += [SUBRESOURCES[group]] if group in SUBRESOURCES else []
            head = {"kind": "APIResourceList", "groupVersion": f"{group}/v1".lstrip("/")}
            return head | {"resources": [common | row for row in rows]}
    return None


def authorize(store: Store, account: str, call: tuple[str, str, str, str, str]) -> None:
    """Refuse what no Role allows that is bound to a service account."""
    verb, group, space, what, name = call
    for binding in store.list("rolebindings", space):
        if account in [subject["name"] for subject in binding["subjects"]]:
            for rule in store.get(("roles", space, binding["roleRef"]["name"]))["rules"]:
                fits = verb in rule["verbs"] and what in rule["resources"]
                if (
                    fits
                    and group in rule["apiGroups"]
                    and name in rule.get("resourceNames", [name])
                ):
                    return
    user = f'User "system:serviceaccount:{space}:{account}" cannot {verb} resource "{what}"'
    raise ApiError(403, "Forbidden", f'{what} is forbidden: {user} in API group "{group}"')


def patched(
    store: Store, key: tuple[str, str, str], old: Object, sub: str, patch: Object, strategic: bool
) -> Object:
    """Patch an object, or its scale, and return the whole."""
    new = store.get(key)
    if sub == "scale":
        new["spec"]["replicas"] = patch["spec"]["replicas"]
        return store.put(key, new)
    merge(new, patch, strategic)
    if sub == "resize":
        check_resize(old, new)
    elif key[0] == "pods" and new["spec"] != old["spec"]:
        raise ApiError(422, "Invalid", "spec: Forbidden: pod updates may not change these fields")
    return store.put(key, new)


def scale_of(deployment: Object) -> Object:
    labels = deployment["spec"]["selector"]["matchLabels"].items()
    status = {"replicas": deployment["status"]["replicas"]}
    status["selector"] = ",".join(f"{name}={value}" for name, value in labels)
    spec = {"replicas": deployment["spec"]["replicas"]}
    head = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": deployment["metadata"]}
    return head | {"spec": spec, "status": status}
