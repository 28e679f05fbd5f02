"""Requests that are nearly right, through a socket; ``make fuzz`` tries many more."""

import logging
import logging.handlers
import socket
from contextlib import suppress

import pytest
from fake_engine import FakeEngine, sums
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_http import binary, chunked, in_json, request
from served import running

from sponge_env.serve.interface import Reply, Status

ENDINGS = (Status.ANSWERED, Status.REFUSED, Status.EXPIRED, Status.FAILED, Status.STOPPED)


def answer(call):
    """End a call in a way that its first number chooses."""
    ended = ENDINGS[int(abs(float(call.tensor[0]))) % len(ENDINGS)]
    return sums(call) if ended is Status.ANSWERED else Reply(ended, retry_after_s=0.1)


@pytest.fixture(scope="module")
def server():
    limits = {"max_body_bytes": 4000, "max_header_bytes": 2000, "max_rows": 8}
    limits |= {"body_timeout_s": 0.05, "idle_timeout_s": 0.05}
    logged = logging.handlers.BufferingHandler(capacity=10**6)
    logging.getLogger().addHandler(logged)
    try:
        with running(FakeEngine(answer=answer), **limits) as found:
            yield found
    finally:
        logging.getLogger().removeHandler(logged)
    assert not [record.getMessage() for record in logged.buffer]


TEXTS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=12)
NAMES = st.sampled_from(
    "inference_header_content_length content_length content_encoding transfer_encoding expect "
    "connection upgrade accept_encoding host x_slo_ms x_sent_at_ms x_deadline_ms "
    "authorization content_type".split()
)
WORDS = st.sampled_from("gzip deflate chunked close 100-continue upgrade nan 1e400".split())
HEADERS = st.dictionaries(NAMES, TEXTS | st.integers(-2, 5000) | WORDS, max_size=3)
PLAIN_PATHS = st.sampled_from(
    "/v2/models/tiny/infer /v2/models/tiny/versions/1/infer /v2/models/x/infer / /v2 "
    "/v2/models/tiny /v2/health/ready /v2/models/stats /agent /metrics /v2/repository/index "
    "/v2/models/tiny/config".split()
)
ODD_PATHS = st.sampled_from(["/%00%ff/..//?a=%zz#x", "*", "http://[::"])
PATHS = PLAIN_PATHS | ODD_PATHS | TEXTS.map(lambda text: "/" + text.replace(" ", ""))
METHODS = st.sampled_from("POST POST POST GET HEAD PUT OPTIONS CONNECT POS".split())
BODIES = (
    st.binary(max_size=300)
    | st.sampled_from([in_json(), in_json([[1, 0, 0, 0]]), binary()[0], in_json([[1] * 4] * 9)])
    | st.builds(chunked, st.just(in_json()), st.integers(1, 40))
)
UPGRADES = st.sampled_from([{}, {"connection": "upgrade", "upgrade": "h2c"}])
WHOLE = st.tuples(PLAIN_PATHS, BODIES, UPGRADES, st.sampled_from(["POST", "GET", "PUT"]))


@st.composite
def requests(draw):
    data = b""
    for _ in range(draw(st.integers(1, 2))):
        length = draw(st.sampled_from([{}, {"inference_header_content_length": binary()[1]}]))
        data += infer_at(draw(PATHS), draw(BODIES), length | draw(HEADERS), draw(METHODS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 2)) :]
    return data


def infer_at(path, body, headers, method="POST"):
    lines = request(path="PATH", method=method, **{"content_length": len(body), **headers})
    return lines.replace(b"PATH", path.encode("latin-1"), 1) + body


LAST = request(method="GET", path="/v2/health/live", connection="close")
"""After what is whole, the server answers this and closes; otherwise its patience ends."""


def statuses(server, data):
    """Send it; return the statuses of all that comes back. No connection is just closed."""
    answers, address = b"", (server.options.host, server.options.port)
    with socket.create_connection(address, 20) as client, suppress(ConnectionError):
        client.sendall(data + LAST)
        while more := client.recv(2**16):
            answers += more
    assert answers
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(WHOLE))
def test_every_whole_request_has_one_answer(asked, server):
    assert len(statuses(server, b"".join(infer_at(*one) for one in asked))) == len(asked) + 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=requests())
def test_whatever_is_sent(data, server):
    for status in statuses(server, data):
        assert status < 500 or status in (503, 504)
