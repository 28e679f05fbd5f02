"""How it is said on the wire that a request was not answered: HTTP status, gRPC code, sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from sponge_env.serve.interface import Reply, Status


class WireError(Exception):
    """Ends a request with one sentence and a status; :data:`GRPC_CODES` has gRPC's for it."""

    def __init__(self, sentence: str, status: int = 400, retry_after_s: float = 0.0) -> None:
        """Take the sentence, an HTTP status, and when to try again, if that is known."""
        super().__init__(sentence)
        self.sentence, self.status, self.retry_after_s = sentence, status, retry_after_s


GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Name of the gRPC status of each HTTP status; that of a refusal is RESOURCE_EXHAUSTED, though."""

LONGEST_RETRY_S = 3600.0


class _Ending(NamedTuple):
    status: int
    sentence: str


_ENDINGS = {
    Status.REFUSED: _Ending(503, "refused: its deadline cannot be met, or there is no room"),
    Status.EXPIRED: _Ending(504, "its deadline passed while it waited"),
    Status.FAILED: _Ending(503, "every replica that tried it died, and no time is left"),
    Status.CANCELLED: _Ending(499, "it was taken back"),
    Status.STOPPED: _Ending(503, "the server shuts down"),
}
_SHED = _Ending(504, "it was given up, for it could not be met, or only at the cost of others")
_WORST_FIRST = (Status.STOPPED, Status.REFUSED, Status.FAILED, Status.EXPIRED, Status.CANCELLED)


def raise_unanswered(replies: Sequence[Reply]) -> None:
    """Raise a :class:`WireError` unless all rows of a request were answered.

    One row that was not decides for all. Those that were taken back because of another say least.
    """
    ended = {reply.status for reply in replies}
    for status in _WORST_FIRST:
        if status in ended:
            those = [reply for reply in replies if reply.status is status]
            shed = status is Status.EXPIRED and all(reply.in_time for reply in those)
            raise UnansweredError(status, max(r.retry_after_s for r in those), shed=shed)


class UnansweredError(WireError):
    """A request that the engine ended without an answer."""

    def __init__(self, ended: Status, retry_after_s: float = 0.0, *, shed: bool = False) -> None:
        """Take how it ended, and of a refusal when there should be room again.

        What was ``shed`` has ended before its deadline.
        """
        status, sentence = _SHED if shed else _ENDINGS[ended]
        wait_s = retry_after_s if math.isfinite(retry_after_s) else LONGEST_RETRY_S
        super().__init__(sentence, status, min(max(wait_s, 0.0), LONGEST_RETRY_S))
        self.ended = ended


def deciding_row(replies: Sequence[Reply]) -> int:
    """Return the row that decides how a request ended: the worst one, the slowest of them."""
    order = (*_WORST_FIRST, Status.ANSWERED)

    def badness(row: int) -> tuple[int, float]:
        reply = replies[row]
        return -order.index(reply.status), reply.queue_s + reply.service_s

    return max(range(len(replies)), key=badness)


def grpc_code(error: WireError) -> str:
    """Return the name of the gRPC status."""
    if isinstance(error, UnansweredError) and error.ended is Status.REFUSED:
        return "RESOURCE_EXHAUSTED"
    return GRPC_CODES.get(error.status, "INVALID_ARGUMENT")


def error_body(error: WireError) -> dict[str, object]:
    """Return an HTTP answer's JSON; of a refusal with the exact time after which to try again."""
    if isinstance(error, UnansweredError) and error.ended is Status.REFUSED:
        return {"error": error.sentence, "retry_after_ms": round(error.retry_after_s * 1000, 3)}
    return {"error": error.sentence}


def retry_after_header(error: WireError) -> tuple[tuple[bytes, bytes], ...]:
    """Return the header of an answer with 503, in the whole seconds that HTTP wants, at least 1."""
    if error.status != 503:
        return ()
    return ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
