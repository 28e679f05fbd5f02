"""An HTTP/1.1 client for loads and benchmarks: requests are bytes, answers go through httptools."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httptools
import orjson
from numpy.typing import NDArray

from sponge_env.errors import ConfigError
from sponge_env.serve.wire.tensors import datatype, to_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpAnswer(NamedTuple):
    """The answer to a request."""

    status: int
    headers: dict[str, str]  # By lower-case name
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or its JSON part, as plain values; None if it is not JSON."""
        length = self.headers.get(HEADER_LENGTH.lower())
        try:
            return orjson.loads(self.body[: int(length)] if length else self.body)
        except ValueError:
            return None


class AnswerParser:
    """Collects the answers in what arrives on one connection."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self.answers: list[HttpAnswer] = []  # Those that are complete; "100 Continue" is none
        self.keep_alive = True

    def feed(self, data: bytes) -> list[HttpAnswer]:
        """Parse more data; return the complete answers; no HTTP is a ``ConnectionError``."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ConnectionError(f"not an answer in HTTP: {error}") from None
        return self.answers

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Finish an answer."""
        if (status := self._parser.get_status_code()) >= 200:
            self.answers.append(HttpAnswer(status, self._headers, bytes(self._body)))
            self.keep_alive = self._parser.should_keep_alive()
        self._headers, self._body = {}, bytearray()


class HttpConnection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self.parser = AnswerParser()
        self._pending: asyncio.Future[HttpAnswer] | None = None
        self.transport: Any = None
        self.closed = False

    async def request(self, parts: Sequence[bytes]) -> HttpAnswer:
        """Send a request; return its answer, or OSError. Cancelling closes the connection."""
        self._pending = asyncio.get_running_loop().create_future()
        self.transport.writelines(parts)
        try:
            return await self._pending
        except BaseException:
            self.transport.abort()
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if self._pending is None:
            self.transport.abort()  # nothing was requested
            return
        try:
            answers = self.parser.feed(data)
        except ConnectionError as error:
            self._fail(error)
            return
        if answers:
            pending, self._pending = self._pending, None
            if not pending.done():
                pending.set_result(answers[0])
            answers.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that is not answered."""
        self.closed = True
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(error)


class HttpClient:
    """Requests to one server, over as many connections as are needed at a time."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Prepare for a server; an impossible URL or token is a ``ConfigError``."""
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            valid = valid and self.url.isascii() and "@" not in parts.netloc
        except ValueError:
            valid = False
        if token and not (token.isascii() and token.isprintable()):
            raise ConfigError("the token must be of printable ASCII characters")
        if not valid:
            raise ConfigError(f"--url must have the form http://HOST[:PORT], not {url!r}")
        secure = parts.scheme == "https"
        self._address = parts.hostname or "", parts.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        self._prefix, self._host = parts.path, parts.netloc
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._idle: list[HttpConnection] = []
        self.connections: list[HttpConnection] = []  # All that were ever opened

    async def request(
        self,
        method: str,
        path: str,
        body: Sequence[bytes] = (),
        headers: Mapping[str, object] | None = None,
    ) -> HttpAnswer:
        """Send a request; return its answer. No answer is an ``OSError``."""
        connection = await self._connection()
        head = self.head(method, path, sum(map(len, body)), headers or {})
        answer = await connection.request([head, *body])
        if not connection.closed and connection.parser.keep_alive:
            self._idle.append(connection)
        else:
            connection.transport.close()
        return answer

    def head(self, method: str, path: str, size: int, headers: Mapping[str, object]) -> bytes:
        """Return the request line and headers of a request with a body of this size."""
        values = {"Host": self._host, **self._headers, "Content-Length": size, **headers}
        lines = [f"{name}: {value}\r\n" for name, value in values.items()]
        return f"{method} {self._prefix}{path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")

    async def _connection(self) -> HttpConnection:
        while self._idle:
            if not (connection := self._idle.pop()).closed:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(HttpConnection, *self._address, ssl=self._tls)
        self.connections.append(connection)
        return connection

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            connection.transport.abort()


def infer_path(model: str) -> str:
    """Return where inference requests for a model are sent."""
    return f"/v2/models/{quote(model, safe='')}/infer"


def infer_head(
    row: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any], identity: str = ""
) -> bytes:
    """Return the JSON of a request for one row of tensors, whose bytes follow it in this order."""
    tensors = []
    for name, tensor in row.items():
        about = {"name": name, "shape": [1, *tensor.shape], "datatype": datatype(tensor.dtype)}
        tensors.append({**about, "parameters": {"binary_data_size": len(to_bytes(tensor))}})
    request = {"inputs": tensors, "parameters": {"binary_data_output": True, **parameters}}
    return orjson.dumps({"id": identity, **request} if identity else request)


def reason(error: BaseException) -> str:
    """Return in a few words why there was no answer."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
