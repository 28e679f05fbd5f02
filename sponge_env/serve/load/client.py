"""What a client has to know of a server of the Open Inference Protocol (v2, over HTTP)."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from numpy.typing import NDArray

from sponge_env.errors import ConfigError, unknown
from sponge_env.models.model import TensorSpec, described
from sponge_env.serve.wire.tensors import DTYPES, datatype

PATIENCE_S = 10.0
"""For whatever is asked before the load begins."""
HEADER_LENGTH = "Inference-Header-Content-Length"
LEAN = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that the library would add and nobody reads."""
LARGE = 1 << 20
"""Bodies above this size are sent in parts."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a server."""

    url: str
    """Of the server, without a slash at its end."""
    server: str
    """What the server calls itself."""
    model: str
    input_name: str
    inputs: TensorSpec
    """Shape and type of one task's input."""

    @property
    def infer_url(self) -> str:
        """Where tasks are sent."""
        return f"{self.url}/v2/models/{quote(self.model, safe='')}/infer"

    def body(self, tensor: NDArray[Any], parameters: Mapping[str, Any]) -> tuple[bytes, int]:
        """Return the body of a request for one task, and the length of the JSON in front of it."""
        described_input = {
            "name": self.input_name,
            "shape": [1, *tensor.shape],
            "datatype": datatype(tensor.dtype),
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        told = {"binary_data_output": True, **parameters}
        head = orjson.dumps({"inputs": [described_input], "parameters": told})
        return head + tensor.tobytes(), len(head)


def sendable(body: bytes) -> bytes | io.BytesIO:
    """Return a body such that a large one does not hold everybody else up."""
    return io.BytesIO(body) if len(body) > LARGE else body


def told(content: bytes, header_length: str | None) -> dict[str, Any]:
    """Return the parameters of an answer; {} if there are none."""
    try:
        head = orjson.loads(content[: int(header_length)] if header_length else content)
        found = head.get("parameters") or {}
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def opened(token: str | None) -> aiohttp.ClientSession:
    """Return a session without bounds: what is due is sent, however much is under way."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        skip_auto_headers=LEAN,
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def checked_url(url: str) -> str:
    """Return the address of a server without a slash at its end, or raise ``ConfigError``."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(f"--url must have the form http://HOST[:PORT], not {url!r}")
    return url.rstrip("/")


async def find_target(session: aiohttp.ClientSession, url: str, model: str | None) -> Target:
    """Ask a server what it serves.

    What is no such server, or has no such model, or none that one tensor is enough for, is a
    ``ConfigError``.
    """
    url = checked_url(url)
    status, about = await _asked(session, "GET", f"{url}/v2")
    if status == HTTPStatus.UNAUTHORIZED:
        _wants_a_token(url)
    if status != HTTPStatus.OK or not isinstance(about, dict) or "name" not in about:
        raise ConfigError(
            f"{url} is no server of the Open Inference Protocol: it answered GET /v2 with "
            f"{_status(status)}"
        )
    name = model or await _only_model(session, url)
    status, metadata = await _asked(session, "GET", f"{url}/v2/models/{quote(name, safe='')}")
    if status == HTTPStatus.UNAUTHORIZED:
        _wants_a_token(url)
    if status != HTTPStatus.OK or not isinstance(metadata, dict):
        there = await _models(session, url)
        said = unknown("model", name, there) if there else f"{_error(metadata) or _status(status)}"
        raise ConfigError(f"{url} does not serve {name!r}: {said}")
    input_name, inputs = _input(name, metadata)
    return Target(url, str(about["name"]), name, input_name, inputs)


def _wants_a_token(url: str) -> NoReturn:
    raise ConfigError(f"{url} wants a token, or another one: --token")


async def _only_model(session: aiohttp.ClientSession, url: str) -> str:
    """Return the name of the model of a server that has one."""
    models = await _models(session, url)
    if len(models) == 1:
        return models[0]
    said = f"serves {', '.join(models)}" if models else "does not say what it serves"
    raise ConfigError(f"{url} {said}; name a model with --model")


async def _models(session: aiohttp.ClientSession, url: str) -> list[str]:
    """Return what a server says that it serves: as ours say it, or as Triton does."""
    _, state = await _asked(session, "GET", f"{url}/state?since=inf")
    if isinstance(state, dict) and isinstance(server := state.get("server"), dict):
        return [str(server.get("model"))]
    _, index = await _asked(session, "POST", f"{url}/v2/repository/index")
    entries = index if isinstance(index, list) else []
    return [str(entry["name"]) for entry in entries if isinstance(entry, dict) and "name" in entry]


async def _asked(session: aiohttp.ClientSession, method: str, url: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer, which is None if it is none."""
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            session.request(method, url, allow_redirects=False) as reply,
        ):
            content = await reply.read()
    except aiohttp.InvalidURL:
        raise ConfigError(f"--url must have the form http://HOST[:PORT], not {url!r}") from None
    except TimeoutError:
        raise ConfigError(f"{url} did not answer within {PATIENCE_S:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        said = f"there is no server at {url} ({reason(error)}); start one with: sponge serve"
        raise ConfigError(said) from None
    try:
        return reply.status, orjson.loads(content)
    except ValueError:
        return reply.status, None


def reason(error: BaseException) -> str:
    """Say in a few words why a connection failed."""
    cause = getattr(error, "os_error", None) or error
    said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(said.split())[:200]


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _error(answer: Any) -> str:
    return str(answer.get("error", "")) if isinstance(answer, dict) else ""


def _input(model: str, metadata: Mapping[str, Any]) -> tuple[str, TensorSpec]:
    """Return the name of a model's only input and what one task has of it."""
    try:
        inputs = metadata["inputs"]
        name, said, shape = inputs[0]["name"], inputs[0]["datatype"], inputs[0]["shape"]
        sizes = [int(size) for size in shape]
    except (KeyError, IndexError, TypeError, ValueError):
        raise ConfigError(f"the metadata of {model} do not say what it takes") from None
    if len(inputs) != 1:
        raise ConfigError(f"{model} takes {len(inputs)} inputs; a load is sent to models of one")
    if said not in DTYPES:
        raise ConfigError(f"{model} takes {said}, not numbers of one size")
    if len(sizes) < 2 or min(sizes[1:]) < 1 or sizes[0] not in (-1, 1):
        raise ConfigError(
            f"{model} takes inputs of shape {sizes}, but all axes except the first (the batch) "
            "must be fixed"
        )
    return str(name), TensorSpec(tuple(sizes[1:]), DTYPES[said])


async def try_out(session: aiohttp.ClientSession, target: Target, tensor: NDArray[Any]) -> None:
    """Send one task without haste; what the server cannot take is a ``ConfigError``."""
    body, length = target.body(tensor, {})
    headers = {HEADER_LENGTH: str(length), "x-slo-ms": f"{PATIENCE_S * 1000:g}"}
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            session.post(target.infer_url, data=sendable(body), headers=headers) as reply,
        ):
            content = await reply.read()
    except TimeoutError:
        return  # it is busy, which is what is going to be measured
    except (aiohttp.ClientError, OSError) as error:
        raise ConfigError(f"{target.url} takes no request ({reason(error)})") from None
    if reply.status in REFUSALS:
        _refused(target, tensor, reply.status, content)


REFUSALS = frozenset(range(400, 500)) - {HTTPStatus.TOO_MANY_REQUESTS}
"""Statuses after which no other request would be taken, either."""


def _refused(target: Target, tensor: NDArray[Any], status: int, content: bytes) -> NoReturn:
    """Say why a server does not take what it is sent."""
    if status == HTTPStatus.UNAUTHORIZED:
        _wants_a_token(target.url)
    try:
        said = _error(orjson.loads(content))
    except ValueError:
        said = ""
    inputs = described(TensorSpec(tensor.shape, str(tensor.dtype)))
    raise ConfigError(f"{target.model} refuses inputs of {inputs}: {said or _status(status)}")
