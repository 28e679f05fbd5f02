"""What passes between a front end and a node: a handshake, then frames; nothing is unpickled.

One TCP connection is one replica and its life. Durations cross it and no clock readings, which
differ between machines. The greeting, nonces and proofs have fixed sizes, so that a stranger is
listened to for few bytes; a body is taken in only after its length was checked.
"""

from __future__ import annotations

import enum
import hmac
import json
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.live.child import Job, Tensors
from sponge_env.live.local import MAX_REPORT_BYTES

TOKEN = "SPONGE_REPLICA_TOKEN"
"""Environment variable of the token: all users of a machine see its command lines."""
BEAT_S = 0.1
"""Time between two reports of a node on each connection."""
HANDSHAKE_S = 2.0
"""How long connecting and the handshake may take."""
GREETING, NONCE_BYTES = b"sponge-replica 1\n", 32
MAX_JSON_BYTES = 1 << 16
PARTS_AT_ONCE = 64
"""Buffers handed to the kernel in one call."""

Parts = Sequence[bytes | memoryview]


class WireError(ConnectionError):
    """The other side sends what it must not."""


class Kind(enum.IntEnum):
    """What a frame says; to the node ``HELLO``, ``START`` and ``LIMIT``, the others from it."""

    HELLO = 0
    SETUP = 1
    READY = 2
    START = 3
    ANSWER = 4
    LIMIT = 5
    STATUS = 6
    END = 7
    """The replica's end, with the reason."""


class Frame(NamedTuple):
    """The head of a frame; what does not apply is 0."""

    kind: int
    variant: int = 0
    size: int = 0
    """Tasks in the batch."""
    length: int = 0
    """Bytes that follow."""
    batch_id: int = 0
    took_s: float = 0.0
    """How long the batch ran."""
    cores: float = 0.0
    """Physical cores granted; with ``LIMIT``, asked for."""
    cpu_s: float = 0.0
    throttled_s: float = 0.0


HEAD = struct.Struct("<BBHIqdddd")


class Layout:
    """How a stage's tensors lie in frames: as in the memory that parent and child share."""

    def __init__(self, job: Job) -> None:
        fields: Mapping[str, Any] = job.tensors_dtype.fields or {}
        self.batch_max, self._max_tasks = job.batch_max, job.max_tasks
        self._input = fields["inputs"][0].base
        self.input_bytes = fields["inputs"][0].itemsize // job.batch_max
        self._answer, self._shape = fields["answers"][0].base, tuple(job.outputs[0])
        counts_bytes = fields["counts"][0].itemsize
        self.max_answer_bytes = fields["answers"][0].itemsize + counts_bytes + MAX_REPORT_BYTES

    def inputs(self, tensors: Sequence[NDArray[Any]]) -> Parts:
        """Return the inputs of a batch, uncopied where their type is right."""
        return [as_bytes(np.ascontiguousarray(tensor, self._input)) for tensor in tensors]

    def answers(self, tensors: Tensors, size: int, failed: Mapping[int, str] | None) -> Parts:
        """Return the answers to a batch, and on which tasks the model failed."""
        text = json.dumps(failed).encode() if failed else b""
        if not self._max_tasks:
            return [as_bytes(tensors.answers[:size]), text]
        counts = np.clip(tensors.counts[:size], 0, self._max_tasks)
        slots = [as_bytes(slot[:n]) for slot, n in zip(tensors.answers, counts, strict=False)]
        return [as_bytes(counts), *slots, text]

    def read(self, body: memoryview, size: int) -> tuple[list[NDArray[Any]], dict[int, str] | None]:
        """Return what :meth:`answers` sent; ``ValueError`` if that is not what it is."""
        counts, begin = np.ones(size, np.int32), 0
        if self._max_tasks:
            counts, begin = np.frombuffer(body, np.int32, size), 4 * size
        answer = np.dtype((self._answer, self._shape))
        end = begin + int(counts.sum()) * answer.itemsize
        rows = np.frombuffer(body[begin:end], self._answer).reshape(-1, *self._shape)
        answers = np.split(rows, np.cumsum(counts)[:-1]) if self._max_tasks else list(rows)
        told = json.loads(bytes(body[end:])) if end < len(body) else None
        return answers, told and {int(task): str(reason) for task, reason in told.items()}


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array."""
    rows: Any = array.reshape(-1).view(np.uint8)
    return memoryview(rows)


class Link:
    """A connection after the handshake: frames in and out, and nothing waits.

    ``room`` gives the memory for the body of a frame, or raises :class:`WireError`. That the
    connection has ended is an ``OSError``.
    """

    def __init__(self, sock: socket.socket, room: Callable[[Frame], memoryview]) -> None:
        sock.setblocking(False)
        self.sock, self._room = sock, room
        self.heard_s = time.monotonic()
        """When something came the last time."""
        self.backlog: deque[memoryview] = deque()
        """What the kernel did not take yet."""
        self.watched = 0
        """For which events whoever waits has registered it."""
        self._head, self._got = memoryview(bytearray(HEAD.size)), 0
        self._frame: Frame | None = None
        self._body = memoryview(b"")

    def send(self, frame: Frame, parts: Parts = ()) -> None:
        """Send a frame after all others, as far as the kernel takes it now."""
        head = HEAD.pack(*frame._replace(length=sum(map(len, parts))))
        self.backlog += [memoryview(part) for part in (head, *parts) if len(part)]
        self.flush()

    def flush(self) -> None:
        """Send what is left over: a large message goes out in pieces."""
        while self.backlog:
            try:
                sent = self.sock.sendmsg(list(islice(self.backlog, PARTS_AT_ONCE)))
            except BlockingIOError:
                return
            while self.backlog and sent >= len(self.backlog[0]):
                sent -= len(self.backlog.popleft())
            if sent:
                self.backlog[0] = self.backlog[0][sent:]

    def has_news(self) -> bool:
        """Return whether there is something to take in, or nothing will come any more."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def take(self) -> tuple[Frame, memoryview] | None:
        """Take in the next frame and its body; None as long as it is not whole."""
        if self._frame is None:
            if not self._fill(self._head):
                return None
            frame = Frame(*HEAD.unpack(self._head))
            self._body = self._room(frame)
            if len(self._body) != frame.length:
                raise WireError(f"a frame of kind {frame.kind} with {frame.length} bytes")
            self._frame = frame
        if not self._fill(self._body):
            return None
        frame, self._frame = self._frame, None
        return frame, self._body

    def _fill(self, memory: memoryview) -> bool:
        while self._got < len(memory):
            try:
                got = self.sock.recv_into(memory[self._got :])
            except BlockingIOError:
                return False
            if not got:
                raise ConnectionResetError("it closed the connection")
            self._got += got
            self.heard_s = time.monotonic()
        self._got = 0
        return True


def read_exactly(sock: socket.socket, count: int, until_s: float) -> bytes:
    """Read so many bytes from a blocking socket, or raise ``OSError``."""
    data = b""
    while len(data) < count:
        sock.settimeout(max(0.001, until_s - time.monotonic()))
        if not (part := sock.recv(count - len(data))):
            raise ConnectionResetError("it closed the connection")
        data += part
    return data


def send_json(sock: socket.socket, kind: Kind, data: Mapping[str, Any]) -> None:
    """Send a frame of JSON over a blocking socket."""
    text = json.dumps(data).encode()
    sock.sendall(HEAD.pack(*Frame(kind, length=len(text))) + text)


def read_json(sock: socket.socket, kind: Kind, until_s: float) -> dict[str, Any]:
    """Read a frame of JSON from a blocking socket, or raise ``OSError``."""
    frame = Frame(*HEAD.unpack(read_exactly(sock, HEAD.size, until_s)))
    if frame.kind != kind or frame.length > MAX_JSON_BYTES:
        raise WireError(f"a frame of kind {frame.kind} with {frame.length} bytes")
    try:
        data = json.loads(read_exactly(sock, frame.length, until_s))
    except ValueError as error:
        raise WireError(f"no JSON: {error}") from None
    if not isinstance(data, dict):
        raise WireError("no object of JSON")
    return data


def admit(sock: socket.socket, token: str, until_s: float) -> None:
    """Have a front end prove that it knows the token, then prove it, or raise ``OSError``."""
    own = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(GREETING + own)
    found = read_exactly(sock, 2 * NONCE_BYTES, until_s)
    other, proof = found[:NONCE_BYTES], found[NONCE_BYTES:]
    if not hmac.compare_digest(proof, _proof(token, b"front end", own + other)):
        raise WireError("another token")
    sock.sendall(_proof(token, b"node", own + other))


def introduce(sock: socket.socket, token: str, until_s: float) -> None:
    """Do the same from the front end's side."""
    found = read_exactly(sock, len(GREETING) + NONCE_BYTES, until_s)
    if not found.startswith(GREETING):
        raise WireError("it is no sponge replica, or one of another version")
    own = secrets.token_bytes(NONCE_BYTES)
    nonces = found[len(GREETING) :] + own
    sock.sendall(own + _proof(token, b"front end", nonces))
    wrong = WireError(f"it has another token; set {TOKEN} to the same on both sides")
    try:
        proof = read_exactly(sock, NONCE_BYTES, until_s)
    except ConnectionResetError:
        raise wrong from None
    if not hmac.compare_digest(proof, _proof(token, b"node", nonces)):
        raise wrong


def _proof(token: str, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(token.encode(), side + nonces, "sha256")
