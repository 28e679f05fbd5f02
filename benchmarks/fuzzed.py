"""Requests that are nearly right, over HTTP and gRPC; :mod:`benchmarks.tolerance` sends them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.lean import HEAD_END
from benchmarks.servers import Server
from sponge_env.serve.rpc.codec import MESSAGES

MOST_ON_ONE = 6
"""Requests on one connection."""

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**40, 2**70, 1e308, "", "x", "NaN", "\u0000", "\ud83d\ude00"),
    *([], {}, [[]], [[[1]], 2], {"a": {}}, [1] * 50, "x" * 300),
)
PATHS = (
    *("/", "/v2", "/v2/", "/v2/models/x/infer", "/v2/models//infer", "/v3", "/agent", "/metrics"),
    *("/state?since=x", "/v2/health/ready", "/%00%ff/..//?a=%zz", "*", "http://[::", "/" * 300),
)
METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "PATCH", "POS", "\u00ff")
HEADERS = (
    *("Transfer-Encoding: chunked", "Content-Encoding: gzip", "Content-Encoding: deflate"),
    *("Expect: 100-continue", "Connection: close", "Upgrade: h2c", "Content-Length: 5"),
    *("Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: x"),
    *("Inference-Header-Content-Length: 7", "Inference-Header-Content-Length: -3"),
    *("x-slo-ms: nan", "x-slo-ms: 1e999", "x-slo-ms: 0.01", "x-sent-at-ms: -5", "x-deadline-ms: 1"),
    *("Accept-Encoding: gzip;q=x,,", "Host:", "A" * 9000 + ": b", ": empty", "no colon"),
)

MISTAKES: tuple[tuple[bool, str, Any], ...] = (
    *((True, "name", value) for value in ("", "x", "input" * 100)),
    *((True, "datatype", value) for value in ("", "FP32", "INT64", "x")),
    *((True, "shape", value) for value in ([], [-1, 2], [2**62, 2], [1], [0])),
    *((False, "raw_input_contents", value) for value in ([], [b"x"], [b"", b""])),
    *((False, "parameters", {"slo_ms": {"int64_param": value}}) for value in (0, -1, 2**62)),
    *((False, "model_name", value) for value in ("", "x")),
)
"""Whether it is of the tensor, which field, what it says in a message."""


class Fuzzer:
    """Makes requests for one server from right ones; the same ones for a seed."""

    def __init__(self, server: Server, row: bytes, shape: Sequence[int], seed: int = 0) -> None:
        (self._tensor,) = server.metadata["inputs"]
        self._model, self._row, self._shape = server.model, row, list(shape)
        self._rng = random.Random(seed)
        self._changes: tuple[Callable[[bytes], bytes], ...] = (
            *(self._flip, self._flip, self._cut, self._insert, self._double, self._swap_header),
        )

    def request(self) -> bytes:
        """Return the next one."""
        rng = self._rng
        if rng.random() < 0.02:
            return rng.randbytes(8) * rng.randrange(1, 100)
        request = self._whole(self._said(), rng.random() < 0.3)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            request = rng.choice(self._changes)(request)
        return request

    def several(self) -> list[bytes]:
        """Return requests for one connection; only the last may keep another from being read."""
        found = [self.request()]
        while may_be_followed(found[-1]) and len(found) < MOST_ON_ONE and self._rng.random() < 0.7:
            found.append(self.request())
        return found

    def message(self) -> bytes:
        """Return a message for gRPC's ``ModelInfer``."""
        rng = self._rng
        if rng.random() < 0.02:
            return rng.randbytes(rng.randrange(400))
        message = self._said_in_a_message()
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            message = rng.choice(self._changes[:-1])(message)
        return message

    def coin(self, share: float) -> bool:
        """Return True in this share of the cases."""
        return self._rng.random() < share

    def right(self) -> bytes:
        """Return one that is as it should be."""
        return self._lines("POST", f"/v2/models/{self._model}/infer", self._right(), self._row)

    def _right(self) -> dict[str, Any]:
        tensor = {
            "name": self._tensor["name"], "datatype": self._tensor["datatype"],
            "shape": [1, *self._shape], "parameters": {"binary_data_size": len(self._row)},
        }  # fmt: skip
        told = {"binary_data_output": True, "slo_ms": 900}
        return {"id": "1", "inputs": [tensor], "parameters": told}

    def _said(self) -> dict[str, Any]:
        """Return the JSON of a request, some of which is not as it should be."""
        rng, said = self._rng, self._right()
        (tensor,) = said["inputs"]
        if rng.random() < 0.7:
            part = rng.choice((said, tensor, said["parameters"], tensor["parameters"]))
            name = rng.choice((*part, "outputs", "data", "timeout", "sent_at_ms", "x"))
            if rng.random() < 0.3:
                part.pop(name, None)
            else:
                part[name] = rng.choice(VALUES)
        return said

    def _said_in_a_message(self) -> bytes:
        """Return a request as a message, some of which is not as it should be."""
        rng = self._rng
        tensor = {
            "name": self._tensor["name"], "datatype": self._tensor["datatype"],
            "shape": [1, *self._shape],
        }  # fmt: skip
        said = {
            "model_name": self._model, "id": "1", "inputs": [tensor],
            "parameters": {"slo_ms": {"int64_param": 900}}, "raw_input_contents": [self._row],
        }  # fmt: skip
        part, name, value = rng.choice(MISTAKES)
        if rng.random() < 0.6:
            (tensor if part else said)[name] = value
        message: bytes = MESSAGES["ModelInferRequest"](**said).SerializeToString()
        return message

    def _whole(self, said: dict[str, Any], without_bytes: bool) -> bytes:
        rng = self._rng
        row = self._row[: rng.randrange(200)] if without_bytes else self._row
        path = f"/v2/models/{self._model}/infer" if rng.random() < 0.85 else rng.choice(PATHS)
        method = "POST" if rng.random() < 0.9 else rng.choice(METHODS)
        return self._lines(method, path, said, row, [rng.choice(HEADERS)] * (rng.random() < 0.2))

    @staticmethod
    def _lines(
        method: str, path: str, said: dict[str, Any], row: bytes, more: Sequence[str] = ()
    ) -> bytes:
        head = json.dumps(said).encode()
        lines = [
            f"{method} {path} HTTP/1.1", "Host: localhost",
            f"Content-Length: {len(head) + len(row)}",
            f"Inference-Header-Content-Length: {len(head)}", *more,
        ]  # fmt: skip
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + head + row

    def _at(self, request: bytes) -> int:
        """Return a place, in headers and JSON rather than in the image."""
        return self._rng.randrange(max(1, min(len(request), 600)))

    def _flip(self, request: bytes) -> bytes:
        changed = bytearray(request)
        for _ in range(self._rng.randrange(1, 4)):
            if changed:
                changed[self._at(request)] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _cut(self, request: bytes) -> bytes:
        return request[: self._rng.choice((self._at(request), max(0, len(request) - 1)))]

    def _insert(self, request: bytes) -> bytes:
        at = self._at(request)
        return request[:at] + self._rng.randbytes(self._rng.randrange(1, 20)) + request[at:]

    def _double(self, request: bytes) -> bytes:
        at = self._at(request)
        return request[:at] + request[at : at + 40] + request[at:]

    def _swap_header(self, request: bytes) -> bytes:
        head, end, body = request.partition(b"\r\n")
        return head + end + self._rng.choice(HEADERS).encode("latin-1") + end + body


def is_whole(request: bytes) -> bool:
    """Return whether a request is certainly all there: its only length is at most what follows."""
    more = _bytes_after(request)
    return more is not None and more >= 0


def may_be_followed(request: bytes) -> bool:
    """Return whether what comes after a request on its connection is certainly read as another."""
    head, _, _ = request.lower().partition(HEAD_END)
    ends = (b"\r\nconnection:", b"\r\nupgrade:", b"\r\nexpect:")
    return (
        _bytes_after(request) == 0
        and b" http/1.1\r\n" in head
        and not head.startswith(b"connect ")
        and not any(each in head for each in ends)
    )


def _bytes_after(request: bytes) -> int | None:
    """Return how many bytes come after a request's body, below 0 if some of it is missing.

    None if that is not certain.
    """
    head, end, body = request.partition(HEAD_END)
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not end or len(lengths) != 1 or b"transfer-encoding" in head.lower():
        return None
    said = lengths[0].partition(b":")[2].strip()
    return len(body) - int(said) if said.isdigit() else None
