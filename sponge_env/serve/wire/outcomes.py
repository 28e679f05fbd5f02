"""Why a request was not answered, as clients see it: HTTP status, gRPC code, one sentence."""

import math
from collections.abc import Sequence

from sponge_env.serve.interface import Reply, Status


class WireError(Exception):
    """Ends a request with one sentence and a status; :data:`GRPC_CODES` has gRPC's for it."""

    def __init__(
        self, text: str, status: int = 400, ended: Status | None = None, retry_after_s: float = 0.0
    ) -> None:
        # ``ended`` says how the engine ended the request, None for one that never came there, and
        # ``retry_after_s``, of a refusal, when there should be room again.
        super().__init__(text)
        self.sentence, self.status, self.ended = text, status, ended
        wait_s = retry_after_s if math.isfinite(retry_after_s) else MAX_RETRY_S
        self.retry_after_s = min(max(wait_s, 0.0), MAX_RETRY_S)


GRPC_CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED", 413: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""Name of the gRPC status of each HTTP status; that of a refusal is RESOURCE_EXHAUSTED, though."""

MAX_RETRY_S = 3600.0
_REASONS = {  # HTTP status and sentence; the worst first
    Status.STOPPED: (503, "the server shuts down, or its model was unloaded"),
    Status.REFUSED: (503, "refused: its deadline cannot be met, or there is no room"),
    Status.INVALID: (400, "the model fails on this input"),
    Status.FAILED: (503, "every replica that tried it died"),
    Status.EXPIRED: (504, "its deadline passed while it waited"),
    Status.CANCELLED: (499, "it was cancelled"),
}
_SHED = (504, "it was dropped: its deadline could not be met, or only at the cost of others")
_WORST_FIRST = (*_REASONS, Status.ANSWERED)


def raise_unanswered(replies: Sequence[Reply]) -> None:
    """Raise a :class:`WireError` unless all rows of a request were answered."""
    # An unanswered row decides for all; rows that were cancelled because of another count last.
    statuses = {reply.status for reply in replies}
    if statuses == {Status.ANSWERED}:
        return
    ended = next(status for status in _WORST_FIRST if status in statuses)
    rows = [reply for reply in replies if reply.status is ended]
    shed = ended is Status.EXPIRED and all(row.in_time for row in rows)
    status, sentence = _SHED if shed else _REASONS[ended]
    sentence += f": {rows[0].reason}" if rows[0].reason else ""
    raise WireError(sentence, status, ended, max(row.retry_after_s for row in rows))


def deciding_row(replies: Sequence[Reply]) -> int:
    """Return the row that decides how a request ended: the worst one, the slowest of them."""

    def badness(row: int) -> tuple[int, float]:
        reply = replies[row]
        return -_WORST_FIRST.index(reply.status), reply.queue_s + reply.service_s

    return max(range(len(replies)), key=badness)


def grpc_code(error: WireError) -> str:
    """Return the name of the gRPC status."""
    if error.ended is Status.REFUSED:
        return "RESOURCE_EXHAUSTED"
    return GRPC_CODES.get(error.status, "INVALID_ARGUMENT")
