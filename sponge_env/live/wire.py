"""What passes between a front end and a node: proofs of a token, then frames; nothing is unpickled.

One TCP connection is one replica and its life. Durations cross it and no clock readings, which
differ between machines. Of a stranger few bytes are read, and of a body only what has room here.
"""

import hmac
import json
import secrets
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sponge_env.live.child import Job, Tensors, plain
from sponge_env.live.local import MAX_REPORT_BYTES

TOKEN = "SPONGE_REPLICA_TOKEN"  # Variable of the token: command lines are for all to see
BEAT_S = 0.1  # Time between two reports of a node on each connection
HANDSHAKE_S = 2.0  # How long a connection may take until the token is proved
GREETING, NONCE_BYTES = b"sponge-replica 1\n", 32
FRONT_END, NODE = b"front end", b"node"
MAX_TEXT_BYTES = 1 << 16
PARTS_AT_ONCE = 64  # Buffers that the kernel is given in one call
MOST = 1e9  # Above any number of cores, and of seconds
MAX_REASON = 500  # Characters of a peer's text that are shown

LAUNCH, START, LIMIT, RETIRE = range(4)  # Frames to a node; RETIRE refuses connections meanwhile
FACTS, READY, ANSWER, STATUS, END = range(4, 9)  # And from it; an end comes with the reason
HEAD = struct.Struct("<BBHIqdddd")

Parts = Sequence[bytes | memoryview]


def plausible(*numbers: float) -> bool:
    """Return whether they can be times, or numbers of cores."""
    return all(0.0 <= number < MOST for number in numbers)


class PeerError(ConnectionError):
    """The other side sends what it must not."""


class Frame(NamedTuple):
    """The head of a frame; what does not apply is 0."""

    kind: int
    variant: int = 0  # Of the model; with ``LAUNCH`` the stage
    size: int = 0  # Tasks in the batch; with ``LAUNCH`` whether at full speed
    length: int = 0  # Bytes that follow
    batch_id: int = 0
    took_s: float = 0.0  # How long the batch ran
    cores: float = 0.0  # Physical cores, to a node those asked for, from it those granted
    cpu_s: float = 0.0
    throttled_s: float = 0.0


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array."""
    rows: Any = array.reshape(-1).view(np.uint8)
    return memoryview(rows)


class TensorLayout:
    """How a stage's tensors lie in frames: as in the memory that parent and child share."""

    def __init__(self, job: Job) -> None:
        fields: Mapping[str, Any] = job.tensors_dtype.fields or {}
        inputs, counts, answers = (fields[name][0] for name in Tensors._fields)
        self.batch_max, self._max_tasks = job.batch_max, job.max_tasks
        self._input, self.input_bytes = inputs.base, inputs.itemsize // job.batch_max
        self._answer, self._shape = answers.base, tuple(job.outputs[0])
        self._task_bytes = np.dtype((self._answer, self._shape)).itemsize
        self.max_answer_bytes = answers.itemsize + counts.itemsize + MAX_REPORT_BYTES

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
        """Return what :meth:`answers` sent, or raise ``ValueError`` or :class:`PeerError`."""
        begin = 4 * size if self._max_tasks else 0
        counts = np.frombuffer(body[:begin], np.int32)
        end = begin + (int(counts.sum()) if begin else size) * self._task_bytes
        within = counts.size == begin // 4 and np.all((counts >= 0) & (counts <= self._max_tasks))
        if len(body) < end or not within:
            raise PeerError("it sends impossible answers")
        rows = np.frombuffer(body[begin:end], self._answer).reshape(-1, *self._shape)
        answers = np.split(rows, np.cumsum(counts)[:-1]) if begin else list(rows)
        if not (text := bytes(body[end:])):
            return answers, None
        try:
            places, told = [str(task) for task in range(size)], json.loads(text)
            reasons = [plain(str(why), MAX_REASON) or "it failed" for why in told.values()]
            failed = dict(zip(map(places.index, told), reasons, strict=True))
        except (AttributeError, RecursionError, ValueError):
            raise PeerError("it sends an impossible report") from None
        return answers, failed


class Link:
    """The frames of a connection, which may come later; its end is an ``OSError``."""

    # No method blocks. ``room`` returns memory of the right length for the body of a frame.

    def __init__(self, epoll: select.epoll, room: Callable[[Frame], memoryview]) -> None:
        self.sock: socket.socket | None = None
        self.heard_s = 0.0  # When something came the last time
        self.backlog: deque[memoryview] = deque()  # What the kernel did not take yet
        self._epoll, self._room, self._mask = epoll, room, select.EPOLLIN
        self._head, self._got = memoryview(bytearray(HEAD.size)), 0
        self._frame: Frame | None = None
        self._body = memoryview(b"")

    def open(self, sock: socket.socket) -> None:
        """Use a connection, and send what waits for it."""
        sock.setblocking(False)
        self._epoll.register(sock, self._mask)
        self.sock, self.heard_s = sock, time.monotonic()
        self.flush()

    def send(self, frame: Frame, parts: Parts = ()) -> None:
        """Send a frame after all others, as far as the kernel takes it now."""
        head = HEAD.pack(*frame._replace(length=sum(map(len, parts))))
        self.backlog += [memoryview(part) for part in (head, *parts) if len(part)]
        self.flush()

    def flush(self) -> None:
        """Send what is left over; as long as there is more, epoll tells when that can be sent."""
        if self.sock is None:
            return
        with suppress(BlockingIOError):
            while self.backlog:
                sent = self.sock.sendmsg(list(islice(self.backlog, PARTS_AT_ONCE)))
                while self.backlog and sent >= len(self.backlog[0]):
                    sent -= len(self.backlog.popleft())
                if sent:
                    self.backlog[0] = self.backlog[0][sent:]
        if (mask := select.EPOLLIN | (select.EPOLLOUT if self.backlog else 0)) != self._mask:
            self._epoll.modify(self.sock, mask)
            self._mask = mask

    def take(self) -> tuple[Frame, memoryview] | None:
        """Take in the next frame and its body; None as long as it is not whole."""
        if self._frame is None:
            if not self._fill(self._head):
                return None
            frame = Frame(*HEAD.unpack(self._head))
            self._body = self._room(frame)
            if len(self._body) != frame.length:
                raise PeerError(f"it sends a frame of kind {frame.kind} with {frame.length} bytes")
            self._frame = frame
        if not self._fill(self._body):
            return None
        frame, self._frame = self._frame, None
        return frame, self._body

    def _fill(self, memory: memoryview) -> bool:
        while self.sock and self._got < len(memory):
            try:
                got = self.sock.recv_into(memory[self._got :])
            except BlockingIOError:
                return False
            if not got:
                raise ConnectionResetError("it closed the connection")
            self._got += got
            self.heard_s = time.monotonic()
        self._got = 0
        return self.sock is not None


def read_exactly(sock: socket.socket, count: int, until_s: float) -> bytes:
    """Read so many bytes from a blocking socket, or raise ``OSError``."""
    data = b""
    while len(data) < count:
        sock.settimeout(max(0.001, until_s - time.monotonic()))
        if not (part := sock.recv(count - len(data))):
            raise ConnectionResetError("it closed the connection")
        data += part
    return data


def authenticate(sock: socket.socket, token: str, side: bytes, until_s: float) -> None:
    """Have both sides prove that they know the token, the front end first, or raise ``OSError``."""
    own = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(GREETING + own)
    if not (found := read_exactly(sock, len(GREETING) + NONCE_BYTES, until_s)).startswith(GREETING):
        raise PeerError("it is no 'sponge replica', or one of another version")
    other = found[len(GREETING) :]
    nonces = own + other if side == FRONT_END else other + own
    proofs = {who: hmac.digest(token.encode(), who + nonces, "sha256") for who in (FRONT_END, NODE)}
    expected = proofs[NODE if side == FRONT_END else FRONT_END]
    if side == FRONT_END:
        sock.sendall(proofs[side])
    try:
        proof = read_exactly(sock, len(expected), until_s)
    except ConnectionResetError:  # which a node does with a proof that is wrong
        proof = b""
    if not hmac.compare_digest(proof, expected):
        raise PeerError(f"it has another token; set {TOKEN} to the same on both sides")
    if side == NODE:
        sock.sendall(proofs[side])
