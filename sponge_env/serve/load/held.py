"""What a server says of itself while a load runs: who is in charge, and the cores it holds."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import orjson

EVERY_S = 1.0


class Held:
    """Collects the points of ``GET /state``, where a server has it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url
        self._began_s = math.nan
        """On the server's clock."""
        self._cores: dict[float, float] = {}
        """Core units held in the interval that ends at a time of that clock."""
        self.agents: dict[str, None] = {}
        """Controllers that were in charge, in order."""

    async def begin(self) -> None:
        """Look for the first time: what was before does not count."""
        state = await self._state(math.inf)
        with suppress(KeyError, TypeError, ValueError):
            self._began_s = float(state["now_s"])

    @property
    def silent(self) -> bool:
        """Whether the server says nothing."""
        return math.isnan(self._began_s)

    async def watch(self) -> None:
        """Look once a second, until cancelled."""
        while not self.silent:
            await asyncio.sleep(EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Take in what has happened since the last time."""
        if self.silent:
            return
        state = await self._state(max(self._cores, default=self._began_s))
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

    async def _state(self, since_s: float) -> dict[str, Any]:
        """Return what the server says; {} if that is nothing."""
        try:
            async with (
                asyncio.timeout(EVERY_S),
                self._session.get(f"{self._url}/state?since={since_s}") as reply,
            ):
                state = orjson.loads(await reply.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}
