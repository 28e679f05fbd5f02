"""The Kubernetes API as far as it is needed: calls with JSON, and watches.

Three kinds of call need no client library. Within a pod, address, token and certificate are where
Kubernetes puts them; elsewhere ``SPONGE_KUBERNETES_URL`` names an API server, such as the one that
``kubectl proxy`` offers.
"""

from __future__ import annotations

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

URL = "SPONGE_KUBERNETES_URL"
"""Environment variable of the API server's address."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the token and the namespace of its service account."""
TIMEOUT_S = 5.0
"""Longest silence of the API server, beyond that of a watch without events."""
WATCH_S = 20
"""How long a watch lasts at most; after it, everything is read again."""
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(WorkerError):
    """A call that failed; ``status`` is that of HTTP, 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def server_url() -> str:
    """Return the address of the API server, or raise ``ConfigError`` where there is none."""
    if url := os.environ.get(URL):
        return url
    if not (host := os.environ.get("KUBERNETES_SERVICE_HOST")):
        raise ConfigError(f"this is no pod of a Kubernetes cluster; elsewhere set {URL}")
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{os.environ.get('KUBERNETES_SERVICE_PORT', '443')}"


def own_namespace() -> str:
    """Return the namespace of the pod that this process is in, else ``default``."""
    return _read("namespace") or "default"


def _read(name: str) -> str:
    with contextlib.suppress(OSError):
        return (ACCOUNT / name).read_text().strip()
    return ""


class Api:
    """Calls over a connection that is made anew when it breaks; for one thread."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, verb: str, path: str, body: Mapping[str, Any] | None = None, kind: str = MERGE
    ) -> dict[str, Any]:
        """Return what the API server answers; all that goes wrong is an :class:`ApiError`."""
        with self._request(verb, path, body, kind) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def watch(self, path: str) -> Iterator[dict[str, Any]]:
        """Return the events of a watch as they come, until it ends."""
        path = f"{path}&watch=true&timeoutSeconds={WATCH_S}"
        try:
            with self._request("GET", path, None, "", WATCH_S) as answer:
                yield from map(json.loads, answer)
        finally:
            self.close()

    @contextlib.contextmanager
    def _request(
        self, verb: str, path: str, body: object, kind: str, quiet_s: float = 0.0
    ) -> Iterator[http.client.HTTPResponse]:
        # the kubelet renews the token before it ends, so each call reads it
        headers = {"Authorization": f"Bearer {token}"} if (token := _read("token")) else {}
        headers |= {"Content-Type": kind} if body else {}
        data = json.dumps(body) if body else None
        try:
            try:
                answer = self._send(verb, path, data, headers, quiet_s)
            except (ConnectionError, http.client.NotConnected):
                self.close()  # it was idle for too long
                answer = self._send(verb, path, data, headers, quiet_s)
            with answer:
                if answer.status >= http.client.BAD_REQUEST:
                    told = answer.read().decode(errors="replace")
                    with contextlib.suppress(ValueError, LookupError, TypeError):
                        told = json.loads(told)["message"]
                    raise ApiError(f"Kubernetes refuses: {told}", answer.status)
                yield answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise ApiError(f"no answer of Kubernetes at {self._url.netloc}: {error!r}") from None

    def _send(
        self, verb: str, path: str, data: str | None, headers: dict[str, str], quiet_s: float
    ) -> http.client.HTTPResponse:
        connection = self._connection = self._connection or self._connect()
        connection.request(verb, path, data, headers)
        connection.sock.settimeout(quiet_s + TIMEOUT_S)
        return connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        authority = ACCOUNT / "ca.crt"
        context = ssl.create_default_context(cafile=authority if authority.exists() else None)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)

    def interrupt(self) -> None:
        """Have a call that waits in another thread fail."""
        if (connection := self._connection) and (sock := connection.sock):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        if self._connection:
            self._connection.close()
            self._connection = None
