"""The protocol over HTTP: which path says what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from sponge_env.errors import SpongeError
from sponge_env.serve.http.compression import accepted_encoding, compressed, decompressed
from sponge_env.serve.http.hosts import check_asked_here, from_here
from sponge_env.serve.http.request import Request, too_large
from sponge_env.serve.http.responses import BINARY, JSON, Response, as_error, as_json
from sponge_env.serve.wire import describe
from sponge_env.serve.wire.aside import LARGE_BYTES, apart, aside, in_turn
from sponge_env.serve.wire.extras import Extras
from sponge_env.serve.wire.front import Answered, Front, Headers
from sponge_env.serve.wire.json_text import check_json_size, object_bytes, read_json
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.protocol import (
    Inference,
    header_size,
    read_inference,
    write_answer,
)
from sponge_env.serve.wire.tensors import Buffer, shown

MOST_SETTING_BYTES = 2**16
"""Of what is sent to change a setting."""


class HttpFront:
    """Routes requests; each ends with an answer, whatever it was."""

    def __init__(self, front: Front, extras: Extras) -> None:
        self._front, self._engine, self._extras = front, front.engine, extras

    async def answer(self, request: Request) -> Response:
        """Answer one request; cancelling this takes it back."""
        try:
            return await self._response(request)
        except WireError as error:
            self._front.count_rejected(error)
            return as_error(error, request.headers)

    async def _response(self, request: Request) -> Response:
        headers, path = request.headers, request.path
        get, parts = request.method in ("GET", "HEAD"), path.strip("/").split("/")
        if parts[:2] == ["v2", "health"] and get:
            return self._health(parts[2:])
        if self._front.options.local and self._front.options.token is None:
            check_asked_here(headers)
        if get and path in self._extras.resources:
            return self._resource(request)
        self._front.check_token(headers)
        if get:
            return as_json(self._described(parts))
        if request.method == "POST":
            return await self._posted(parts, request)
        raise WireError(f"the method {shown(request.method)} is not served", 405)

    def _resource(self, request: Request) -> Response:
        found = self._extras.resources[request.path]
        if not found.open:
            self._front.check_token(request.headers)
        more = tuple(
            (name.lower().encode(), value.encode()) for name, value in found.headers.items()
        )
        body = found.make(request.query)
        return Response(body, 200, found.content_type.encode(), more)

    def _health(self, parts: list[str]) -> Response:
        """Tell health by the status, as the protocol wants it: 200, or 4xx if it is not well."""
        if parts == ["live"]:
            return self._told("live", self._engine.alive, {})
        if parts == ["ready"]:
            return self._readiness({})
        raise WireError("health is told at v2/health/live and v2/health/ready", 404)

    def _readiness(self, named: Mapping[str, str]) -> Response:
        return self._told("ready", self._engine.ready, named)

    def _told(self, what: str, well: bool, named: Mapping[str, str]) -> Response:
        return Response(orjson.dumps({**named, what: well}), 200 if well else 400)

    def _described(self, parts: list[str]) -> Any:
        """Return what is told under a path below ``v2``, as JSON or as a whole response."""
        served = self._front.served
        match parts:
            case ["v2"]:
                return describe.server_metadata()
            case ["v2", "models", "stats"]:
                return {"model_stats": [self._extras.recorder.statistics()]}
            case ["v2", "models", name, "versions", version, *rest]:
                self._front.check_model(name, version)
            case ["v2", "models", name, *rest]:
                self._front.check_model(name)
            case _:
                raise WireError(f"there is nothing at {shown('/'.join(parts))}", 404)
        match rest:
            case []:
                return describe.model_metadata(served)
            case ["ready"]:
                return self._readiness({"name": served.name})
            case ["config"]:
                return describe.model_config(served)
            case ["stats"]:
                return {"model_stats": [self._extras.recorder.statistics()]}
            case ["infer"]:
                raise WireError("infer wants POST", 405)
        raise WireError(f"there is nothing at {shown('/'.join(parts))}", 404)

    async def _posted(self, parts: list[str], request: Request) -> Response:
        match parts:
            case ["v2", "models", name, "versions", version, "infer"]:
                self._front.check_model(name, version)
                return await self._infer(request)
            case ["v2", "models", name, "infer"]:
                self._front.check_model(name)
                return await self._infer(request)
            case ["v2", "repository", "index"]:
                return as_json(describe.index(self._front.served, self._engine.ready))
            case ["agent"]:
                return await self._use(request)
        raise WireError(f"nothing takes POST at {shown('/'.join(parts))}", 404)

    async def _infer(self, request: Request) -> Response:
        body, size = await self._body(request)
        arrival, headers = self._front.arrival(request.began_s), request.headers
        inference = await self._read(body, headers.get(b"inference-header-content-length"))
        read_s = time.monotonic() - arrival.arrived_s
        answered = await self._front.infer(inference, headers, arrival, size)
        began_s = time.monotonic()
        size = sum(tensor.nbytes for tensor in answered.tensors.values())
        response = await aside(size, self._written, inference, answered, headers)
        self._front.recorder.converted(read_s, time.monotonic() - began_s)
        return response

    async def _read(self, body: Buffer, length: bytes | None) -> Inference:
        """Take a body apart; what Python makes of large JSON is counted meanwhile."""
        front, size = self._front, header_size(length, len(body))
        check_json_size(size, len(body), front.served, front.options)
        needed = 0
        if size >= LARGE_BYTES:
            needed = await aside(size, object_bytes, memoryview(body)[:size])
        with front.memory.holding(needed):
            limits = (length, front.served, front.options.most_rows)
            return await in_turn(size, read_inference, body, *limits)

    async def _body(self, request: Request) -> tuple[Buffer, int]:
        """Return a body, unpacked, and how large it was on the wire."""
        most_bytes = self._front.options.most_body_bytes
        body = await request.body()
        encoding = request.headers.get(b"content-encoding", b"").decode("latin-1")
        if not encoding:
            return body, len(body)
        # a small body may become a large one
        unpacked = await aside(most_bytes, decompressed, body, encoding, most_bytes)
        counted = np.frombuffer(unpacked, np.uint8)
        self._front.memory.keep(counted)
        return memoryview(counted), len(body)  # type: ignore[arg-type]

    def _written(self, inference: Inference, answered: Answered, headers: Headers) -> Response:
        """Return an answer, compressed where that is accepted and it is large enough."""
        model, more = self._front.served.name, []
        answer = write_answer(inference, model, answered.tensors, answered.parameters)
        if answer.header_length:
            more.append((b"inference-header-content-length", b"%d" % answer.header_length))
        kind = BINARY if answer.header_length else JSON
        size = sum(map(len, answer.parts))
        encoding = ""
        if size >= self._front.options.compress_from_bytes:
            encoding = accepted_encoding(headers.get(b"accept-encoding", b"").decode("latin-1"))
        if encoding:
            more.append((b"content-encoding", encoding.encode()))
            return Response(compressed(answer.parts, encoding), 200, kind, tuple(more))
        return Response(b"".join(answer.parts), 200, kind, tuple(more))

    async def _use(self, request: Request) -> Response:
        """Put another agent in charge; whoever may not is refused."""
        if self._front.options.token is None and not from_here(request.client, request.headers):
            raise WireError("without a token, only this machine may change the agent", 403)
        if not request.headers.get(b"content-type", b"").startswith(JSON):
            raise WireError("the agent is named in application/json", 415)
        body, _ = await self._body(request)
        if len(body) > MOST_SETTING_BYTES:
            raise too_large(MOST_SETTING_BYTES)
        agent = read_json(body).get("agent")
        if not isinstance(agent, str):
            raise WireError(f"agent must be a name, not {shown(agent)}")
        try:
            await apart(self._engine.use, agent)
        except SpongeError as error:
            raise WireError(str(error)) from None
        return as_json({"agent": agent})
