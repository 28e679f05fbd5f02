"""What a server shows beside the protocol, and who counts: handed to the front ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sponge_env.serve.interface import Call, Reply


class Recorder(Protocol):
    """Counts what passes the front ends; they call it from their loop's thread."""

    def observe(self, call: Call, reply: Reply, counted: bool = False) -> object:
        """Count a call that has ended; ``counted`` if its request is counted with another row."""

    def rejected(self, status: int) -> None:
        """Count a request that never came to the engine, by the HTTP status that says why."""

    def converted(self, input_s: float, output_s: float) -> None:
        """Count the time in which a request was read and its answer written."""

    def clamped(self) -> None:
        """Count a client's clock that cannot be right."""

    def statistics(self) -> Mapping[str, Any]:
        """Return an element of ``model_stats`` of Triton's statistics."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that can be got under a path of its own."""

    content_type: str
    make: Callable[[str], bytes]
    """Makes it, quickly, for what follows the question mark in the URL."""
    headers: Mapping[str, str] = field(default_factory=dict)
    open: bool = False
    """Whether it needs no token, because it tells nothing of what happens here."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What beside the engine a server is made of."""

    recorder: Recorder
    resources: Mapping[str, Resource] = field(default_factory=dict)
    """By path, such as ``/metrics``."""
