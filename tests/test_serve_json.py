"""JSON: how much of it is taken, what it takes in memory, and that others are served meanwhile."""

from __future__ import annotations

import gc
import json
import tracemalloc

import orjson
import pytest
from fake_engine import FakeEngine, served
from raw_http import Wire, binary, in_json, request
from served import running

from sponge_env.models.model import TensorSpec
from sponge_env.serve.wire.protocol import (
    HEAD_BYTES,
    NUMBER_BYTES,
    parsed_bytes,
    read_json,
)

WIDE = served(TensorSpec((40_000,)))


def test_json_is_as_large_as_the_model_needs() -> None:
    spaces = b" " * HEAD_BYTES
    with running(max_rows=8) as server, Wire(server) as wire:
        found = wire.send(request(in_json() + spaces)).answer()
        assert found.status == 200
        found = wire.send(request(in_json() + spaces + b" " * 8 * 4 * NUMBER_BYTES)).answer()
        assert (found.status, "at most" in found.json["error"]) == (413, True)
        body, length = binary()
        padded = body[:length] + spaces + body[length:]
        asked = request(padded, inference_header_content_length=length + len(spaces))
        found = wire.send(asked).answer()
        assert (found.status, "before binary" in found.json["error"]) == (413, True)


@pytest.mark.parametrize("most_bytes", [4_000_000, 40_000_000])
def test_what_json_becomes_counts(most_bytes: int) -> None:
    """150 KB of ``[]`` take 5 MB while they are parsed."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 40_000]}
    body = json.dumps({"inputs": [{**tensor, "data": [[]] * 50_000}]}).encode()
    with running(FakeEngine(WIDE), max_held_bytes=most_bytes) as server, Wire(server) as wire:
        found = wire.send(request(body)).answer()
        assert found.status == (413 if most_bytes < 10_000_000 else 400)
        assert wire.send(request(in_json())).answer().status == 400  # it is given back


MANY = range(30_000)
TEXTS = [
    *(f"[{','.join([item] * len(MANY))}]" for item in ("[]", "[[]]", "0", '""')),
    *(f"[{','.join(form % n for n in MANY)}]" for form in ("%d", "1.%d", "[%d]", '"%d"')),
    *(f"{{{','.join(form % n for n in MANY)}}}" for form in ('"%d":1.5', '"%d":[]')),
    f'["\U0001f600{"a" * 100_000}"]',
]


@pytest.mark.parametrize("text", TEXTS, ids=[text[:12] for text in TEXTS])
def test_no_json_becomes_more_than_is_counted(text: str) -> None:
    data = text.encode()
    tracemalloc.start()
    try:
        found = orjson.loads(data)
        made, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found
    assert made + len(data) <= parsed_bytes(data)


def test_no_garbage_is_looked_for_in_what_is_new() -> None:
    phases: list[str] = []

    def noted(phase: str, _: object) -> None:
        phases.append(phase)

    text = json.dumps({"inputs": [[]] * 50_000})
    gc.callbacks.append(noted)
    try:
        read_json(text.encode())
    finally:
        gc.callbacks.remove(noted)
    assert phases.count("start") <= 1
    assert gc.isenabled()
