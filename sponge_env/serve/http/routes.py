"""The protocol over HTTP: what each path does, and which clients may use it."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import SpongeError
from sponge_env.serve.http import messages
from sponge_env.serve.http.messages import JSON, Request, Response
from sponge_env.serve.interface import Resource
from sponge_env.serve.monitor.tracing import join_trace
from sponge_env.serve.options import PROXY_HEADERS, is_local
from sponge_env.serve.wire import protocol
from sponge_env.serve.wire.front import Front, Headers
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.protocol import InferRequest
from sponge_env.serve.wire.regions import Regions
from sponge_env.serve.wire.resources import LARGE_BYTES, READER, run_detached, run_in_thread
from sponge_env.serve.wire.tensors import Buffer, brief

MAX_SETTING_BYTES = 2**16  # Of a request that changes a setting


class HttpFront:
    """Routes requests; each ends with an answer."""

    def __init__(self, front: Front, resources: Mapping[str, Resource]) -> None:
        """Serve the protocol, and resources by their paths, such as ``/metrics``."""
        self._front, self._engine, self._resources = front, front.engine, resources
        self._local_only = front.options.local and front.options.token is None

    async def answer(self, request: Request) -> Response:
        """Answer one request; cancelling this cancels it in the engine."""
        own = join_trace(request.headers)
        try:
            response = await self._response(request)
        except WireError as error:
            self._front.count_rejected(error)
            response = messages.error_response(error, request.headers)
        return replace(response, headers=(*response.headers, *own)) if own else response

    async def _response(self, request: Request) -> Response:
        headers, path = request.headers, request.path
        get, parts = request.method in ("GET", "HEAD"), path.strip("/").split("/")
        if self._local_only:
            check_local_names(headers)
        match get, parts:
            case True, ["v2", "health", "live"]:
                return _flag("live", self._engine.alive)
            case True, ["v2", "health", "ready"]:
                return _flag("ready", self._engine.ready)
            case True, ["v2", "health", *_]:
                raise WireError("health is at v2/health/live and v2/health/ready", 404)
        if get and path in self._resources:
            return self._resource(request)
        self._front.check_token(headers)
        if not get and request.method != "POST":
            raise WireError(f"the method {brief(request.method)} is not supported", 405)
        return await self._answer(get, parts, request)

    def _resource(self, request: Request) -> Response:
        if not (resource := self._resources[request.path]).open:
            self._front.check_token(request.headers)
        accept = request.headers.get(b"accept", b"").decode("latin-1")
        content_type, body = resource.make(request.query, accept)
        headers = tuple((name.encode(), v.encode()) for name, v in resource.headers.items())
        return Response(body, 200, content_type.encode(), headers)

    async def _answer(self, get: bool, parts: list[str], request: Request) -> Response:
        front = self._front
        match parts:  # which have no slash, so that "v2/model" is no client's
            case ["v2", "models", name, "versions", version, *rest]:
                front = front.of(name, version, loaded=rest != ["ready"])
                parts = ["v2/model", *rest]
            case ["v2", "models", "stats"]:
                parts = ["v2/models", "stats"]
            case ["v2", "models", name, *rest]:
                front = front.of(name, loaded=rest != ["ready"])
                parts = ["v2/model", *rest]
        match get, parts:
            case False, ["v2/model", "infer"]:
                return await self._infer(request, front)
            case True, ["v2/model", "infer"]:
                raise WireError("infer needs POST", 405)
            case True, ["v2"]:
                return messages.json_response(front.server_metadata())
            case True, ["v2/model"]:
                return messages.json_response(front.model_metadata())
            case True, ["v2/model", "ready"]:
                return _flag("ready", front.ready, {"name": front.served.name})
            case True, ["v2/model", "config"]:
                return messages.json_response(front.model_config())
            case True, ["v2/model" | "v2/models" as which, "stats"]:
                return messages.json_response(front.statistics(which == "v2/models"))
            case False, ["v2", "repository", "index"]:
                ready = (await self._setting(request)).get("ready") is True
                return messages.json_response(front.index(ready))
            case False, ["v2", "repository", "models", name, "load" | "unload" as deed]:
                self._check_right(request, f"{deed} models")
                asked = await self._setting(request) if deed == "load" else {}
                given = asked.get("parameters")
                parameters = given if isinstance(given, dict) else ()
                return messages.json_response(front.set_loaded(name, deed == "load", parameters))
            case _, ["v2", "systemsharedmemory" | "cudasharedmemory", *_]:
                return await self._share(get, parts[1:], request)
            case False, ["agent"]:
                return await self._use_agent(request)
        what = "there is nothing at" if get else "nothing accepts POST at"
        raise WireError(f"{what} {brief(request.path.strip('/'))}", 404)

    async def _infer(self, request: Request, front: Front) -> Response:
        body, payload_bytes = await self._body(request)
        arrival, headers = front.arrival(request.began_s), request.headers
        inference = await self._read(front, body, headers)
        read_s = time.monotonic() - arrival.arrived_s
        tensors, about = await front.infer(inference, headers, arrival, payload_bytes)
        began_s = time.monotonic()
        size = sum(tensor.nbytes for tensor in tensors.values())
        response = await run_in_thread(size, self._write, front, inference, tensors, about, headers)
        front.metrics.converted(read_s, time.monotonic() - began_s)
        return response

    async def _read(self, front: Front, body: Buffer, headers: Headers) -> InferRequest:
        """Parse a body; the Python objects that large JSON becomes count as memory meanwhile."""
        served, max_rows = front.served, front.options.max_rows
        regions, needed = front.regions_for(headers), 0
        header_length = headers.get(b"inference-header-content-length")
        size = protocol.json_size(header_length, len(body), served, max_rows)
        if size >= LARGE_BYTES:
            needed = await run_in_thread(size, protocol.parsed_bytes, memoryview(body)[:size])
        with front.memory.holding(needed):
            arguments = (body, size, served, max_rows, regions)
            work = size if regions is None else LARGE_BYTES  # a region may hold much
            return await run_in_thread(work, protocol.read_request, *arguments, threads=READER)

    async def _setting(self, request: Request) -> dict[str, Any]:
        """Return the JSON of a request without tensors, nothing without a body."""
        body, _ = await self._body(request)
        if len(body) > MAX_SETTING_BYTES:
            raise messages.too_large(MAX_SETTING_BYTES)
        return protocol.read_json(body) if body else {}

    async def _body(self, request: Request) -> tuple[Buffer, int]:
        """Return a body, unpacked, and its size as it was sent."""
        max_bytes = self._front.options.max_body_bytes
        body = await request.body()
        if not (encoding := request.headers.get(b"content-encoding", b"").decode("latin-1")):
            return body, len(body)
        # in a thread by the largest size: a small body may become a large one
        unpacked = await run_in_thread(max_bytes, messages.decompress, body, encoding, max_bytes)
        array = np.frombuffer(unpacked, np.uint8)
        self._front.memory.keep(array)
        return array.data, len(body)

    def _write(
        self, front: Front, request: InferRequest, tensors: Mapping[str, NDArray[Any]],
        about: Mapping[str, Any], headers: Headers,
    ) -> Response:  # fmt: skip
        """Return an answer, compressed where the client accepts that and it is large enough."""
        parts = protocol.write_answer(request, front.served.name, tensors, about)
        content_type, extra = JSON, []
        if len(parts) > 1:
            content_type = messages.BINARY
            extra.append((b"inference-header-content-length", b"%d" % len(parts[0])))
        body = b"".join(parts)
        if len(body) >= front.options.compress_from_bytes:
            accepted = headers.get(b"accept-encoding", b"").decode("latin-1")
            if encoding := messages.accepted_encoding(accepted):
                extra.append((b"content-encoding", encoding.encode()))
                body = messages.compress(body, encoding)
        return Response(body, 200, content_type, tuple(extra))

    async def _share(self, get: bool, parts: list[str], request: Request) -> Response:
        """List, register or forget shared memory; that of a GPU can only be none."""
        system = self._front.regions
        if system is None:
            raise WireError("shared memory needs --option server.shared_memory=true", 404)
        self._check_right(request, "share memory")
        regions = system if parts[0] == "systemsharedmemory" else Regions(0)
        setting = await self._setting(request)
        match get, parts[1:]:
            case True, ["status"]:
                return messages.json_response(regions.status())
            case True, ["region", name, "status"]:
                return messages.json_response(regions.status(name))
            case False, ["unregister"]:
                return messages.json_response(regions.unregister())
            case False, ["region", name, "unregister"]:
                return messages.json_response(regions.unregister(name))
            case False, ["region", name, "register"] if regions is system:
                about = map(setting.get, ("key", "offset", "byte_size"))
                return messages.json_response(regions.register(name, *about))
        raise WireError(f"there is nothing at {brief(request.path.strip('/'))}", 404)

    def _check_right(self, request: Request, what: str) -> None:
        if self._front.options.token is not None:
            return
        check_local_names(request.headers)
        if not is_from_here(request.client, request.headers):
            raise WireError(f"without a token, only this machine may {what}", 403)

    async def _use_agent(self, request: Request) -> Response:
        """Put another agent in charge; clients without the right to are refused."""
        self._check_right(request, "change the agent")
        if not request.headers.get(b"content-type", b"").lower().startswith(JSON):
            raise WireError("the agent is named as JSON: send Content-Type: application/json", 415)
        agent = (await self._setting(request)).get("agent")
        if not isinstance(agent, str):
            raise WireError(f"agent must be a name, not {brief(agent)}")
        try:
            await run_detached(self._engine.use, agent)
        except SpongeError as error:
            raise WireError(str(error)) from None
        return messages.json_response({"agent": agent})


def _flag(name: str, value: bool, more: Mapping[str, str] | None = None) -> Response:
    return messages.json_response({**(more or {}), name: value}, 200 if value else 400)


def check_local_names(headers: Headers) -> None:
    """Raise a WireError if a request was meant for another machine, or comes from a web page."""
    # A browser on this machine sends requests for web pages of other sites and other local ports,
    # and a site's name may be made to lead here once its page is loaded. But the browser says whose
    # page it is. Clients that say nothing are not browsers.
    host, origin = headers.get(b"host", b""), headers.get(b"origin", b"")
    if host and not is_local(_host(host)):
        raise WireError(f"without a token, host must be local, not {brief(host)}", 403)
    if origin and origin.lower() != b"http://" + host.lower():
        raise WireError(f"without a token, pages of {brief(origin)} may not use this server", 403)


def is_from_here(client: tuple[str, int] | None, headers: Headers) -> bool:
    """Return whether a request comes from this machine, addressed to a name of its own."""
    # A web page of another site cannot send JSON without permission, which no server here gives. A
    # proxy adds headers that say for whom it asks.
    names = (client[0] if client else "", _host(headers.get(b"host", b"")))
    return all(map(is_local, names)) and PROXY_HEADERS.isdisjoint(headers)


def _host(value: bytes) -> str:
    """Return the name or address in a ``Host``, without the port."""
    host = value.decode("latin-1").lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
