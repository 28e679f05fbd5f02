"""Requests and answers written by hand from the protocol's text, through a socket."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Running, running

CORPUS = Path(__file__).parent / "conformance"
CASES = [
    pytest.param(case, id=f"{file.stem}: {case['name']}")
    for file in sorted(CORPUS.glob("*.json"))
    for case in json.loads(file.read_text())
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_as_the_protocol_says(case: dict[str, Any], server: Running) -> None:
    request, wanted = case["request"], case["answer"]
    status, headers, body = asked(server, request)
    assert status == wanted["status"], body
    for name, value in wanted.get("headers", {}).items():
        assert headers[name] == value
    if wanted.get("empty"):
        assert body == b""
        return
    text, binary = parts(headers, body)
    found = json.loads(text)
    matches(found, wanted.get("json", {} if status == 200 else {"error": "..."}))
    assert binary == bytes.fromhex(wanted.get("binary", ""))
    if status != 200:
        assert set(found) == {"error"}
        assert "\n" not in found["error"]


def asked(server: Running, request: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    text = request.get("text", json.dumps(request["json"]) if "json" in request else "").encode()
    headers = dict(request.get("headers", {}))
    if request.get("header_length"):
        headers["Inference-Header-Content-Length"] = str(len(text))
    body = text + bytes.fromhex(request.get("binary", ""))
    connection = http.client.HTTPConnection(server.http, timeout=30)
    connection.request(request["method"], request["path"], body or None, headers)
    response = connection.getresponse()
    found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return found


def parts(headers: dict[str, str], body: bytes) -> tuple[bytes, bytes]:
    size = int(headers.get("inference-header-content-length", len(body)))
    return body[:size], body[size:]


def matches(found: Any, wanted: Any) -> None:
    """Compare, where ``"..."`` stands for anything and keys that are not wanted may be there."""
    if isinstance(wanted, dict):
        assert isinstance(found, dict)
        for key, value in wanted.items():
            assert key in found
            matches(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            matches(one, other)
    elif wanted != "...":
        assert found == wanted
