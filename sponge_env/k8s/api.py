"""The Kubernetes API as far as it is needed: calls with JSON, and a watch, without a library.

Within a pod, address, token and certificate are where Kubernetes puts them; elsewhere
``SPONGE_KUBERNETES_URL`` names an API server, such as the one that ``kubectl proxy`` offers.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sponge_env.errors import ConfigError, WorkerError

URL = "SPONGE_KUBERNETES_URL"  # Environment variable of the API server's address
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # Of a pod: its token and namespace
TIMEOUT_S, WATCH_S = 5.0, 20  # Longest silence of the API server, and that of a watch besides
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"


def server_url() -> str:
    """Return the address of the API server, or raise ``ConfigError`` where there is none."""
    if url := os.environ.get(URL):
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.port != 0:
                return url
        raise ConfigError(f"{URL} must be an http:// or https:// URL, not {url!r}")
    if not (host := os.environ.get("KUBERNETES_SERVICE_HOST")):
        raise ConfigError(f"this is no pod of a Kubernetes cluster; elsewhere set {URL}")
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"


def own_namespace() -> str:
    """Return the namespace of the pod that this process is in, else ``default``."""
    return _read("namespace") or "default"


def _read(name: str) -> str:
    with contextlib.suppress(OSError):
        return (ACCOUNT / name).read_text(encoding="utf-8", errors="replace").strip()
    return ""


class Api:
    """An API server. All that goes wrong with a call is a ``WorkerError``."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._open = set[socket.socket]()

    def call(
        self, verb: str, path: str, body: Mapping[str, Any] | None = None, kind: str = MERGE
    ) -> dict[str, Any]:
        """Return what the server answers."""
        with self._answer(verb, path, body, kind) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def watch(self, path: str) -> Iterator[dict[str, Any]]:
        """Return the events of a watch as they come, until it ends."""
        path = f"{path}&watch=true&timeoutSeconds={WATCH_S}"
        with self._answer("GET", path, None, MERGE, WATCH_S) as answer:
            yield from map(json.loads, answer)

    def interrupt(self) -> None:
        """Have calls end that wait in other threads."""
        for sock in self._open.copy():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _answer(
        self, verb: str, path: str, body: object, kind: str, quiet_s: float = 0.0
    ) -> Iterator[http.client.HTTPResponse]:
        """Open a connection of its own for a call: one that was idle might be closed already."""
        # the kubelet renews the token before it ends, so each call reads it
        token = _read("token")
        if not (token.isascii() and token.isprintable()):  # or it would be in the error
            raise WorkerError(f"what {ACCOUNT / 'token'} holds is no token")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body)
        headers |= {"Content-Type": kind} if data else {}
        try:
            with contextlib.closing(self._connection(quiet_s + TIMEOUT_S)) as connection:
                connection.request(verb, self._url.path.rstrip("/") + path, data, headers)
                with self._interruptible(connection.sock), connection.getresponse() as answer:
                    if answer.status >= http.client.BAD_REQUEST:
                        told = answer.read().decode(errors="replace")
                        with contextlib.suppress(ValueError, LookupError, TypeError):
                            told = json.loads(told)["message"]
                        raise WorkerError(f"Kubernetes refuses: {told}")
                    yield answer
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            host = self._url.netloc.rpartition("@")[2]
            raise WorkerError(f"no answer of Kubernetes at {host}: {error}") from None

    @contextlib.contextmanager
    def _interruptible(self, sock: socket.socket) -> Iterator[None]:
        self._open.add(sock)
        try:
            yield
        finally:
            self._open.discard(sock)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        authority = ACCOUNT / "ca.crt"
        context = ssl.create_default_context(cafile=authority if authority.exists() else None)
        if authority.exists():  # many clusters' own ones are not strict
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
