"""What a load has to know of a server of the Open Inference Protocol, and the inputs it sends."""

import asyncio
import importlib.util
import math
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from sponge_env.errors import ConfigError, unknown
from sponge_env.models.model import Model, OnnxModel, TensorSpec, record
from sponge_env.models.ocr import IMAGE, Detection
from sponge_env.serve.load.client import HttpAnswer, HttpClient, reason
from sponge_env.serve.options import TOKEN
from sponge_env.serve.wire.tensors import DTYPES

TIMEOUT_S = 10.0  # Of requests before the load begins
POLL_S = 1.0  # How long a poll may take


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a server."""

    server: str  # Name that the server gives itself
    model: str
    inputs: TensorSpec  # One task's input, or a record of several


async def find_target(client: HttpClient, model: str | None) -> Target:
    """Ask a server what it serves; a ConfigError unless it has the model."""
    about = await _ask(client, "GET", "/v2")
    server = about.json if about.status == HTTPStatus.OK else None
    if not isinstance(server, dict) or "name" not in server:
        raise ConfigError(
            f"{client.url} is no server of the Open Inference Protocol: it answered GET /v2 with "
            f"status {about.status}"
        )
    index = (await _ask(client, "POST", "/v2/repository/index")).json
    entries = [entry for entry in index if isinstance(entry, dict)] if type(index) is list else []
    models = [str(entry["name"]) for entry in entries if "name" in entry]
    if not model and len(models) != 1:
        listed = ", ".join(models) or "models that it does not list"
        raise ConfigError(f"{client.url} serves {listed}; name a model with --model")
    name = model or models[0]
    metadata = await _ask(client, "GET", f"/v2/models/{quote(name, safe='')}")
    if metadata.status != HTTPStatus.OK or not isinstance(metadata.json, dict):
        why = unknown("model", name, models) if models else f"status {metadata.status}"
        raise ConfigError(f"{client.url} does not serve {name!r}: {why}")
    return Target(str(server["name"]), name, _inputs(name, metadata.json))


def sample_inputs(model: str, inputs: TensorSpec) -> list[dict[str, NDArray[Any]]]:
    """Return tensors to send in turn, by name; no model's weights are needed."""
    # Images of text for our pipeline that reads, photographs for others of images, or numbers.
    model_of: Model = OnnxModel("", inputs, TensorSpec(()))
    if not all(importlib.util.find_spec(name) for name in ("PIL", "matplotlib")):
        samples = Model.samples(model_of)
    elif "ocr" in model.lower() and inputs == IMAGE:
        samples = Detection("", "").samples()
    else:
        samples = model_of.samples()
    return [inputs.parts(sample) for sample in samples]


async def _ask(client: HttpClient, method: str, path: str) -> HttpAnswer:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await client.request(method, path)
    except TimeoutError:
        raise ConfigError(f"{client.url} did not answer within {TIMEOUT_S:g} s") from None
    except OSError as error:
        why = f"there is no server at {client.url} ({reason(error)})"
        raise ConfigError(f"{why}; start one with: sponge serve") from None
    if answer.status == HTTPStatus.UNAUTHORIZED:
        raise ConfigError(f"{client.url} needs a token, or another one, in ${TOKEN}")
    return answer


def _inputs(model: str, metadata: Mapping[str, Any]) -> TensorSpec:
    """Return a model's inputs, by what it says of itself."""
    tensors = []
    with suppress(KeyError, TypeError, ValueError):
        for tensor in metadata["inputs"]:
            batch, *sizes = map(int, tensor["shape"])
            if batch in (-1, 1) and min(sizes, default=1) >= 1:
                dtype = DTYPES[tensor["datatype"]]
                tensors.append(TensorSpec(tuple(sizes), dtype, str(tensor["name"])))
        if 0 < len(tensors) == len(metadata["inputs"]):
            return record(*tensors)
    raise ConfigError(
        f"{model} cannot be loaded: of its tensors all axes except the first (the batch) must be "
        f"fixed, but its metadata say {reprlib.repr(metadata)}"
    )


class ServerState:
    """Who is in charge of a server, and the cores it holds, by polls of its ``GET /state``."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._began_s = math.nan  # On the server's clock; NaN for a server without this state
        self._cores: dict[float, float] = {}  # Core units held in the interval that ends at a time
        self.agents: dict[str, None] = {}  # Controllers that were in charge, in order

    async def begin(self) -> None:
        """Poll for the first time: earlier intervals do not count."""
        state = await self._get(math.inf)
        with suppress(KeyError, TypeError, ValueError):
            self._began_s = float(state["now_s"])

    async def poll(self) -> None:
        """Add the intervals since the last poll."""
        if math.isnan(self._began_s):
            return
        state = await self._get(max(self._cores, default=self._began_s))
        with suppress(KeyError, TypeError, ValueError):
            self.agents[str(state["agent"])] = None
            for point in state["history"]:
                if point["t"] > self._began_s and point["held"] is not None:
                    self._cores[float(point["t"])] = float(point["held"])

    @property
    def mean_cores(self) -> float:
        """Mean core units held since :meth:`begin`; NaN if unknown."""
        if not self._cores:
            return math.nan
        times_s = np.array(sorted(self._cores))
        spans_s = np.diff(times_s, prepend=self._began_s)
        return float(np.average([self._cores[t] for t in times_s], weights=spans_s))

    async def _get(self, since_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(POLL_S):
                state = (await self._client.request("GET", f"/state?since={since_s}")).json
        except (OSError, TimeoutError):
            return {}
        return state if isinstance(state, dict) else {}
