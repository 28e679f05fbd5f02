"""Requests and answers written by hand from the protocol's text, through a socket."""

import http.client
import json
from pathlib import Path

import pytest

CASES = [
    pytest.param(case, id=f"{file.stem}: {case['name']}")
    for file in sorted((Path(__file__).parent / "conformance").glob("*.json"))
    for case in json.loads(file.read_text())
]


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_as_the_protocol_says(case, server):
    status, headers, body = asked(server, case["request"])
    check(case["answer"], status, headers, body)
    if status != 200 and body:
        error = json.loads(body)
        assert set(error) == {"error"}
        assert "\n" not in error["error"]


def check(expected, status, headers, body):
    assert status == expected["status"], body
    for name, value in expected.get("headers", {}).items():
        assert headers[name] == value
    if expected.get("empty"):
        assert body == b""
        return
    size = int(headers.get("inference-header-content-length", len(body)))
    error = {"error": "..."} if status != 200 else {}
    matches(json.loads(body[:size] or b"{}"), expected.get("json", error))
    assert body[size:] == bytes.fromhex(expected.get("binary", ""))


def asked(server, request):
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


def matches(found, wanted):
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
