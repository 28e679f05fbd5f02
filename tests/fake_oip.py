"""A small server of the Open Inference Protocol, in a thread, whose answers a test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

HEAD = "Inference-Header-Content-Length"
LITE0 = {
    "name": "lite0",
    "versions": ["1"],
    "platform": "onnx",
    "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
}


@dataclass
class FakeServer:
    """Answers with ``status`` after ``delay_s``."""

    metadata: dict[str, Any] = field(default_factory=lambda: dict(LITE0))
    status: Callable[[int], int] = lambda _: 200
    """Of the n-th request that a load sends."""
    delay_s: float = 0.0
    held: float | None = 4.0
    """Cores that ``/state`` tells of, if there is one."""
    token: str = ""
    about: Any = field(default_factory=lambda: {"name": "fake", "version": "0", "extensions": []})
    url: str = ""
    taken: list[tuple[dict[str, str], dict[str, Any], int]] = field(default_factory=list)
    """Headers, JSON and bytes of the tensor of each request, the first to try out included."""
    asked: int = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26, middlewares=[self._guard])
        name = self.metadata["name"]
        app.add_routes(
            [
                web.get("/v2", self._about),
                web.get(f"/v2/models/{name}", self._metadata),
                web.post(f"/v2/models/{name}/infer", self._infer),
                web.post("/v2/repository/index", self._index),
                web.get("/state", self._state),
            ]
        )
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "no token"}, status=401)
        return await handler(request)

    async def _about(self, _: web.Request) -> web.Response:
        return web.json_response(self.about)

    async def _metadata(self, _: web.Request) -> web.Response:
        return web.json_response(self.metadata)

    async def _index(self, _: web.Request) -> web.Response:
        return web.json_response([{"name": self.metadata["name"]}])

    async def _state(self, _: web.Request) -> web.Response:
        if self.held is None:
            raise web.HTTPNotFound
        self.asked += 1
        point = {"t": 10.0 + self.asked, "held": self.held}
        told = {"server": {"model": self.metadata["name"]}, "now_s": 10.0, "agent": "sponge-ip"}
        return web.json_response(told | {"history": [point]})

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        length = int(request.headers[HEAD])
        head = json.loads(body[:length])
        self.taken.append((dict(request.headers), head, len(body) - length))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        status = 200 if len(self.taken) == 1 else self.status(len(self.taken) - 2)
        shape = [int(size) for size in self.metadata["inputs"][0]["shape"][1:]]
        if head["inputs"][0]["shape"][1:] != shape:
            return web.json_response({"error": f"shape must be {shape}"}, status=400)
        if status != 200:
            return web.json_response({"error": "no"}, status=status)
        return self._answer()

    def _answer(self) -> web.Response:
        logits = np.zeros(10, np.float32)
        told = {"deadline_met": True, "queue_ms": 10.0, "service_ms": 20.0, "batch": 2}
        output = {"name": "logits", "datatype": "FP32", "shape": [1, 10]}
        output["parameters"] = {"binary_data_size": logits.nbytes}
        head = json.dumps(
            {
                "model_name": self.metadata["name"],
                "model_version": "1",
                "parameters": told | {"cores": 4, "variant": "lite0"},
                "outputs": [output],
            }
        ).encode()
        return web.Response(body=head + logits.tobytes(), headers={HEAD: str(len(head))})


async def _ended(runner: web.AppRunner) -> None:
    await runner.cleanup()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free port of this machine."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(
        server.app(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True
    )

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    loop.run_until_complete(begin())
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_ended(runner), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
