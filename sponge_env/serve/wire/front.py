"""What HTTP and gRPC do alike: who may ask, which model, by when, and the way to the engine."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from sponge_env.serve.interface import Call, Engine, Reply, Served
from sponge_env.serve.memory import Memory
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.wire.deadlines import Arrival, timing
from sponge_env.serve.wire.extras import Recorder
from sponge_env.serve.wire.joined import joined_outputs, joined_parameters, replies
from sponge_env.serve.wire.outcomes import UnansweredError, WireError, deciding_row
from sponge_env.serve.wire.protocol import VERSION, Inference, calls
from sponge_env.serve.wire.tensors import shown

Headers = Mapping[bytes, bytes]
"""By lower-case name."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Outputs of a request, and what its answer says of how they came about."""

    tensors: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, Any]


class Front:
    """The engine, as front ends use it."""

    def __init__(self, engine: Engine, options: ServeOptions, recorder: Recorder) -> None:
        self.engine, self.options, self.recorder = engine, options, recorder
        self.memory = Memory(options.most_held_bytes)
        self._token = options.token.encode() if options.token else None

    @property
    def served(self) -> Served:
        """What is served."""
        return self.engine.served

    def check_token(self, headers: Headers) -> None:
        """Raise a WireError if a token is wanted and not brought."""
        if self._token is None:
            return
        scheme, _, brought = headers.get(b"authorization", b"").partition(b" ")
        # as long for a wrong token as for the right one, whatever they have in common
        right = hmac.compare_digest(brought.lstrip(b" "), self._token)
        if scheme.lower() != b"bearer" or not right:
            raise WireError("this needs the server's token: Authorization: Bearer TOKEN", 401)

    def check_model(self, name: str, version: str = "") -> None:
        """Raise a WireError unless this model is served in this version; none is any."""
        if name != self.served.name:
            raise WireError(f"there is no model {shown(name)}; it is {self.served.name!r}", 404)
        if version not in ("", VERSION):
            raise WireError(f"there is no version {shown(version)}; it is {VERSION!r}", 404)

    def arrival(self, began_s: float, grpc_remaining_s: float | None = None) -> Arrival:
        """Return that a request is here now, whose first bytes were when it began."""
        slo_s = self.served.default_slo_s
        return Arrival(began_s, time.monotonic(), time.time(), slo_s, grpc_remaining_s)

    async def infer(
        self, inference: Inference, headers: Headers, arrival: Arrival, payload_bytes: int
    ) -> Answered:
        """Have a request answered; a WireError says why it was not.

        Cancelling this takes the request back from the engine.
        """
        when = timing(inference.parameters, headers, arrival)
        if when.clamped:
            self.recorder.clamped()
        if inference.rows.flags.owndata:  # no view on the body, which is counted
            self.memory.keep(inference.rows)
        asked = calls(inference, when, payload_bytes)
        ended = await replies(self.engine, asked, self._record)
        return Answered(joined_outputs(self.served, ended), joined_parameters(ended))

    def count_rejected(self, error: WireError) -> None:
        """Count a request that was not taken; one that the engine has ended is counted by then."""
        if not isinstance(error, UnansweredError):
            self.recorder.rejected(error.status)

    def _record(self, asked: Sequence[Call], ended: Sequence[Reply]) -> None:
        """Count each row, and the request by the one that decided what was answered."""
        deciding = deciding_row(ended)
        for row, (call, reply) in enumerate(zip(asked, ended, strict=True)):
            self.recorder.observe(call, reply, row != deciding)
