"""One HTTP connection on a transport of our own, which decides what is read in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, answered, served
from raw_http import infer, request
from served import Recorded
from uvicorn.server import ServerState

from sponge_env.models.model import TensorSpec
from sponge_env.serve import app
from sponge_env.serve.http.connection import InPlace
from sponge_env.serve.http.routes import HttpFront
from sponge_env.serve.interface import Call, Reply
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.wire.extras import Extras
from sponge_env.serve.wire.front import Front

SECOND = request(method="GET", path="/v2/health/live")
LARGE = served(inputs=TensorSpec((150_000,)))


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.closing = b"", False
        self.changed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.sent += bytes(data)
        self.changed.set()

    def close(self) -> None:
        self.closing = True
        self.changed.set()

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.sent.split(b"HTTP/1.1 ")[1:]]

    async def until(self, true: Callable[[Transport], bool]) -> None:
        async with asyncio.timeout(10):
            while not true(self):
                self.changed.clear()
                await self.changed.wait()


class Client:
    """Speaks to a connection."""

    def __init__(self, engine: FakeEngine, **changes: Any) -> None:
        options, extras = ServeOptions(**changes), Extras(Recorded())
        front = Front(engine, options, extras.recorder)
        config = app._uvicorn_config(HttpFront(front, extras), options)
        config.load()
        self.connection: InPlace = config.http_protocol_class(  # type: ignore[assignment]
            config=config, server_state=ServerState(), app_state={}
        )
        self.transport = Transport()
        self.connection.connection_made(self.transport)

    @property
    def inner(self) -> Any:
        return self.connection._to

    def send(self, data: bytes) -> None:
        """Have all of it read before anything else runs in the loop."""
        while data:
            room = self.connection.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.connection.buffer_updated(size)
            data = data[size:]


def run(play: Awaitable[None]) -> None:
    asyncio.run(play)  # type: ignore[arg-type]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("path", "token", "status"), [("none", None, 404), ("tiny", "a", 401)])
def test_an_early_error_does_not_lose_the_next_request(
    path: str, token: str | None, status: int, whole: bool
) -> None:
    """Of 600 KB most are read in place before the application has had its turn."""

    async def play() -> None:
        client = Client(FakeEngine(LARGE), token=token)
        asked = request(b"\1" * 600_000, path=f"/v2/models/{path}/infer")
        early = len(asked) if whole else 300_000
        client.send(asked[:early])
        await client.transport.until(lambda to: to.statuses == [status])
        assert whole or client.inner.shared.held_bytes == 0
        client.send(asked[early:])
        client.send(SECOND)
        await client.transport.until(lambda to: to.statuses == [status, 200])
        assert client.inner.shared.held_bytes == 0

    run(play())
