"""An HTTP client for loads of a server."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from numpy.typing import NDArray
from yarl import URL

from sponge_env.errors import ConfigError
from sponge_env.serve.wire.tensors import datatype, to_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"
WHOLE_BYTES = 2**20  # Written at once; of more aiohttp would warn
NOT_SENT = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # Headers


class HttpAnswer(NamedTuple):
    """The answer to a request."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body as plain values; None if it is not JSON."""
        try:
            return orjson.loads(self.body)
        except ValueError:
            return None


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
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def __aenter__(self) -> "HttpClient":
        own: dict[str, Any] = {"headers": self._headers, "skip_auto_headers": NOT_SENT}
        own |= {"connector": aiohttp.TCPConnector(limit=0), "timeout": aiohttp.ClientTimeout()}
        self._session = aiohttp.ClientSession(**own)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> HttpAnswer:
        """Send a request; return its answer. No answer is an ``OSError``."""
        to = URL(self.url + path, encoded=True)
        content = body if len(body) <= WHOLE_BYTES else io.BytesIO(body)
        try:
            async with self._session.request(
                method, to, data=content, headers=headers, allow_redirects=False
            ) as answer:
                return HttpAnswer(answer.status, await answer.read())
        except aiohttp.ClientError as error:
            raise error if isinstance(error, OSError) else ConnectionError(reason(error)) from None


def infer_path(model: str) -> str:
    """Return where inference requests for a model are sent."""
    return f"/v2/models/{quote(model, safe='')}/infer"


def infer_head(row: Mapping[str, NDArray[Any]], parameters: Mapping[str, Any]) -> bytes:
    """Return the JSON of a request for one row of tensors, whose bytes follow it in this order."""
    tensors = []
    for name, tensor in row.items():
        about = {"name": name, "shape": [1, *tensor.shape], "datatype": datatype(tensor.dtype)}
        tensors.append({**about, "parameters": {"binary_data_size": len(to_bytes(tensor))}})
    request = {"inputs": tensors, "parameters": {"binary_data_output": True, **parameters}}
    return orjson.dumps(request)


def reason(error: BaseException) -> str:
    """Return in a few words why there was no answer."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
