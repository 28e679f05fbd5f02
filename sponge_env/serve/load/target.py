"""What a load has to know of a server of the Open Inference Protocol, and the inputs it sends."""

from __future__ import annotations

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
from sponge_env.models.model import OnnxModel, TensorSpec
from sponge_env.serve.load.client import Answer, HttpClient, reason
from sponge_env.serve.options import TOKEN
from sponge_env.serve.wire.tensors import DTYPES

TIMEOUT_S = 10.0
"""Of requests before the load begins."""
POLL_S = 1.0
"""How long a poll may take."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a server."""

    server: str
    """Name that the server gives itself."""
    model: str
    input_name: str
    inputs: TensorSpec
    """Shape and type of one task's input."""


async def find_target(client: HttpClient, model: str | None) -> Target:
    """Ask a server what it serves; a ConfigError unless it has the model, of one tensor."""
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
    input_name, inputs = _input(name, metadata.json)
    return Target(str(server["name"]), name, input_name, inputs)


def sample_inputs(model: str, inputs: TensorSpec) -> list[NDArray[Any]]:
    """Return inputs to send in turn, (*inputs.shape) each.

    They are images of text for our pipeline that reads, photographs for a model that takes images,
    else random numbers. No model's weights are needed.
    """
    shape, dtype = inputs
    kind = np.dtype(dtype).kind
    if all(importlib.util.find_spec(name) for name in ("PIL", "matplotlib")):
        from sponge_env.models.ocr import IMAGE, Detection

        if "ocr" in model.lower() and inputs == IMAGE:
            return list(Detection("", "").samples())
        if dtype == "uint8" or kind == "f":
            return list(OnnxModel("", TensorSpec(shape, dtype), TensorSpec(())).samples())
    rng = np.random.default_rng(0)
    if kind == "f":
        return [rng.standard_normal(shape).astype(dtype) for _ in range(4)]
    high = 2 if dtype == "bool" else min(256, np.iinfo(dtype).max)
    return [rng.integers(0, high, shape).astype(dtype) for _ in range(4)]


async def _ask(client: HttpClient, method: str, path: str) -> Answer:
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


def _input(model: str, metadata: Mapping[str, Any]) -> tuple[str, TensorSpec]:
    """Return the name of a model's only input and the shape and type of one task's."""
    try:
        (tensor,) = metadata["inputs"]
        batch, *sizes = map(int, tensor["shape"])
        if batch in (-1, 1) and min(sizes) >= 1:
            return str(tensor["name"]), TensorSpec(tuple(sizes), DTYPES[tensor["datatype"]])
    except (KeyError, TypeError, ValueError):
        pass
    raise ConfigError(
        f"{model} cannot be loaded: it must take one tensor of numbers, of which all axes except "
        f"the first (the batch) are fixed, but its metadata say {reprlib.repr(metadata)}"
    )


class ServerState:
    """Who is in charge of a server, and the cores it holds, by polls of its ``GET /state``."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._began_s = math.nan
        """On the server's clock; NaN for a server without this state."""
        self._cores: dict[float, float] = {}
        """Core units held in the interval that ends at a time of that clock."""
        self.agents: dict[str, None] = {}
        """Controllers that were in charge, in order."""

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
