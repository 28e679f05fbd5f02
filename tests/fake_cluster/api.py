"""The API server: discovery, list, watch, patches, scale and resize, rights."""

import json
import re
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from fake_cluster.store import ApiError, check_resize, has, merge

KINDS = {
    "": {"pods": "Pod", "services": "Service", "serviceaccounts": "ServiceAccount"},
    "apps": {"deployments": "Deployment"},
    "rbac.authorization.k8s.io": {"roles": "Role", "rolebindings": "RoleBinding"},
    "policy": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io": {"networkpolicies": "NetworkPolicy"},
}
PATH = re.compile(
    r"/(?:api|apis/([^/]+))/v1(?:/namespaces/([^/]+))?/([a-z]+)(?:/([^/]+)(?:/([a-z]+))?)?"
)
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


class Handler(BaseHTTPRequestHandler):
    """Answers one client. Its server has a ``store``, and may be ``away``."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if not self.server.away.is_set():
                return self.route(body)
        except ApiError as error:
            return self.answer(error.status, error.status["code"])
        except OSError:
            pass  # the client is gone
        self.close_connection = True

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def answer(self, data, code=200):
        body = json.dumps(data).encode()
        self.begin(code, "Content-Length", str(len(body)))
        self.wfile.write(body)

    def begin(self, code, *header):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header(*header)
        self.end_headers()

    def route(self, body):
        url = urlsplit(self.path)
        if found := discovery(url.path):
            return self.answer(found)
        match = PATH.fullmatch(url.path)
        group, space, plural, name, sub = (part or "" for part in match.groups(""))
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        labels = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
        reads = "watch" if query.get("watch") in ("1", "true") else "get" if name else "list"
        verb, key, store = VERBS.get(self.command, reads), (plural, space, name), self.server.store
        if account := self.headers.get("Authorization"):
            what = f"{plural}/{sub}".rstrip("/")
            authorize(store, account.removeprefix("Bearer sa:"), verb, group, what, space, name)
        if verb == "watch":
            return self.watch(plural, space, labels, query)
        with store.changed:
            if verb == "create":
                return self.answer(store.create(plural, space, json.loads(body)), 201)
            if verb == "list":
                head = {"kind": f"{KINDS[group][plural]}List", "apiVersion": version_of(group)}
                head["metadata"] = {"resourceVersion": str(store.version)}
                return self.answer(head | {"items": store.list(plural, space, labels)})
            found = store.get(key)
            if verb == "patch":
                strategic = "strategic" in self.headers["Content-Type"]
                found = patched(store, key, sub, json.loads(body), strategic)
            elif verb == "delete" and plural == "pods":  # it goes when it has ended
                found["metadata"]["deletionTimestamp"] = found["metadata"]["creationTimestamp"]
                store.put(key, found)
            elif verb == "delete":
                store.put(key, found, "DELETED")
            self.answer(scale_of(found) if sub == "scale" else found)

    def watch(self, plural, space, labels, query):
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


def version_of(group):
    return f"{group}/v1".lstrip("/")


def discovery(path):
    """Return what tells clients which kinds there are."""
    if path == "/version":
        return {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = {each: {"groupVersion": version_of(each), "version": "v1"} for each in KINDS}
        groups = [{"name": n, "versions": [v], "preferredVersion": v} for n, v in versions.items()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups[1:]}
    for group, kinds in KINDS.items():
        if path == (f"/apis/{group}/v1" if group else "/api/v1"):
            subs = {"": {"pods/resize": "Pod"}, "apps": {"deployments/scale": "Scale"}}
            verbs = ["create", "delete", "get", "list", "patch", "watch"]
            rows = [
                {"name": n, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
                for n, kind in (kinds | subs.get(group, {})).items()
            ]
            head = {"kind": "APIResourceList", "groupVersion": version_of(group)}
            return head | {"resources": rows}
    return None


def authorize(store, account, verb, group, what, *at):
    """Refuse what no Role allows that is bound to a service account."""
    space, name = at
    for binding in store.list("rolebindings", space):
        if account in [subject["name"] for subject in binding["subjects"]]:
            for rule in store.get(("roles", space, binding["roleRef"]["name"]))["rules"]:
                fits = verb in rule["verbs"] and what in rule["resources"]
                named = name in rule.get("resourceNames", [name])
                if fits and named and group in rule["apiGroups"]:
                    return
    user = f'User "system:serviceaccount:{space}:{account}" cannot {verb} resource "{what}"'
    raise ApiError(403, "Forbidden", f'{what} is forbidden: {user} in API group "{group}"')


def patched(store, key, sub, patch, strategic):
    """Patch an object, whose scale has its number of replicas at the same place."""
    old, new = store.get(key), store.get(key)
    merge(new, patch, strategic)
    if sub == "resize":
        check_resize(old, new)
    elif key[0] == "pods" and new["spec"] != old["spec"]:
        raise ApiError(422, "Invalid", "spec: Forbidden: pod updates may not change these fields")
    return store.put(key, new)


def scale_of(deployment):
    labels = deployment["spec"]["selector"]["matchLabels"].items()
    status = {"replicas": deployment["status"]["replicas"]}
    status["selector"] = ",".join(f"{name}={value}" for name, value in labels)
    count = deployment["spec"]["replicas"]
    spec = {"replicas": count} if count else {}  # as JSON of Go leaves out 0
    head = {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": deployment["metadata"]}
    return head | {"spec": spec, "status": status}
