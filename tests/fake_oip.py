"""A small server of the Open Inference Protocol, in threads, whose answers a test chooses."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEAD = "Inference-Header-Content-Length"
LOGITS = {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
LITE0 = {
    "name": "lite0", "versions": ["1"], "platform": "onnx", "outputs": [LOGITS],
    "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}],
}  # fmt: skip
ABOUT = {"name": "fake", "version": "0", "extensions": []}


class FakeServer:
    """Answers with the status of the n-th request of a load, after ``delay_s``."""

    def __init__(
        self, metadata=LITE0, status=lambda _: 200, delay_s=0.0, held=4.0, token="", about=ABOUT
    ):
        """``held`` are the cores that ``/state`` tells of; there is none if that is None."""
        self.metadata, self.status, self.delay_s = metadata, status, delay_s
        self.held, self.token, self.about = held, token, about
        self.url, self.states, self.closing = "", 0, threading.Event()
        self.taken = []  # headers, JSON and bytes of the tensor of each request

    def answer(self, path, headers, body):
        """Return the status, and plain values or JSON with bytes after it."""
        model = f"/v2/models/{self.metadata['name']}"
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "no token"}
        if path == f"{model}/infer":
            return self._infer(headers, body)
        if path.startswith("/state") and self.held is not None:
            self.states += 1
            point = {"t": 10.0 + self.states, "held": self.held}
            return 200, {"now_s": 10.0, "agent": "sponge-ip", "history": [point]}
        values = {"/v2": self.about, model: self.metadata}
        values["/v2/repository/index"] = [{"name": self.metadata["name"]}]
        return (200, values[path]) if path in values else (404, {"error": "nothing"})

    def _infer(self, headers, body):
        length = int(headers[HEAD])
        self.taken.append((dict(headers), json.loads(body[:length]), len(body) - length))
        status = self.status(len(self.taken) - 1)
        self.closing.wait(self.delay_s)
        if status != 200:
            retry = {"retry_after_ms": 5.0} if len(self.taken) == 1 else {}
            return status, {"error": "no", **retry}
        output = LOGITS | {"shape": [1, 10], "parameters": {"binary_data_size": 40}}
        told = {"parameters": {"deadline_met": True}, "outputs": [output]}
        return 200, (json.dumps(told), bytes(40))


@contextmanager
def serving(fake):

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, values = fake.answer(self.path, self.headers, body)
            self.send_response(status)
            head, binary = values if isinstance(values, tuple) else (json.dumps(values), b"")
            data = head.encode() + binary
            if binary:
                self.send_header(HEAD, str(len(head)))
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            """Be quiet."""

        def handle(self):
            with suppress(ConnectionError):  # the client is gone
                super().handle()

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            fake.closing.set()
            server.shutdown()
            thread.join(10)
