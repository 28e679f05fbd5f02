"""HTTP by hand: bytes to a socket, and answers taken apart."""

import json
import socket
from dataclasses import dataclass

import numpy as np


@dataclass
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Wire:
    """A connection; what arrives is read as answers of HTTP, one after another."""

    def __init__(self, server):
        self.socket = socket.create_connection((server.options.host, server.options.port), 8)
        self._left = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)
        return self

    def answer(self):
        while b"\r\n\r\n" not in self._left:
            self._more()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._left) < size:
            self._more()
        body, self._left = self._left[:size], self._left[size:]
        return RawAnswer(int(first.split()[1]), headers, body)

    def closed(self):
        try:
            return self._left == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self):
        more = self.socket.recv(2**16)
        assert more, f"closed after {self._left!r}"
        self._left += more


def request(body=b"", path="/v2/models/tiny/infer", method="POST", **headers):
    said = {"host": "localhost", "content_length": len(body), **headers}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in said.items() if v is not None]
    return "\r\n".join([*lines, "", ""]).encode() + body


def binary(rows=((1, 2, 3, 4),), parameters=None):
    array = np.asarray(rows, np.float32)
    tensor = {
        "name": "input", "datatype": "FP32", "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": parameters or {}}).encode()
    return head + array.tobytes(), len(head)


def infer(rows=((1, 2, 3, 4),), parameters=None, **headers):
    body, length = binary(rows, parameters)
    return request(body, inference_header_content_length=length, **headers)


def in_json(rows=((1, 2, 3, 4),), **more):
    data = np.asarray(rows, float).tolist()
    tensor = {"name": "input", "datatype": "FP32", "shape": [len(data), 4], "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


def chunked(body, size):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
