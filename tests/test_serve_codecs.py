"""Codecs as pure functions: whatever the bytes, an answer or one sentence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from fake_engine import served
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from raw_http import binary, in_json

from sponge_env.models.model import TensorSpec
from sponge_env.serve.http.messages import accepted_encoding, compress, decompress
from sponge_env.serve.interface import ServedModel
from sponge_env.serve.rpc.codec import MESSAGES, read_message, write_message
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.protocol import InferRequest, RequestedOutput, read_request, write_answer
from sponge_env.serve.wire.tensors import DATATYPES, from_numbers

TINY, ROWS = served(), 16
DTYPES = tuple(DATATYPES)
FIELDS = {"float32": "fp32_contents", "float64": "fp64_contents", "bool": "bool_contents",
          "int64": "int64_contents", "uint64": "uint64_contents"}  # fmt: skip


def read(body: Any, length: bytes | None = None, serves: ServedModel = TINY) -> InferRequest:
    return read_request(body, length, serves, ROWS)


def values(dtype: str) -> Any:
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return rng.integers(0, 2, (3, 2, 2)).astype(bool)
    if dtype.startswith("float"):
        return rng.standard_normal((3, 2, 2)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (3, 2, 2), dtype, endpoint=True)


def asked(rows: Any, **tensor: Any) -> bytes:
    name = DATATYPES[rows.dtype.name]
    described = {"name": "input", "datatype": name, "shape": list(rows.shape), **tensor}
    return json.dumps({"inputs": [described]}).encode()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_datatype_there_and_back(dtype: str) -> None:
    rows = values(dtype)
    spec = TensorSpec((2, 2), dtype)
    serves = served(spec, spec)
    head = asked(rows, parameters={"binary_data_size": rows.nbytes})
    flat = rows.reshape(-1).tolist()
    for body, length in (
        (head + rows.tobytes(), str(len(head)).encode()),
        (asked(rows, data=flat), None),
        (asked(rows, data=rows.tolist()), None),
    ):
        found = read(body, length, serves)
        assert found.rows.dtype == rows.dtype
        assert np.array_equal(found.rows, rows)
    as_bytes, as_json = RequestedOutput("output", True), RequestedOutput("output")
    answer = write_answer(InferRequest(rows, (as_bytes,)), "m", {"output": rows}, {})
    assert np.array_equal(np.frombuffer(answer.parts[1], dtype).reshape(rows.shape), rows)
    answer = write_answer(InferRequest(rows, (as_json,)), "m", {"output": rows}, {})
    (tensor,) = orjson.loads(answer.parts[0])["outputs"]
    assert tensor["shape"] == [3, 2, 2]
    assert np.array_equal(np.array(tensor["data"], dtype).reshape(rows.shape), rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_datatype_over_grpc(dtype: str) -> None:
    rows = values(dtype)
    spec = TensorSpec((2, 2), dtype)
    serves = served(spec, spec)
    request = MESSAGES["ModelInferRequest"]()
    request.inputs.add(name="input", datatype=DATATYPES[dtype], shape=rows.shape)
    if dtype != "float16":  # which has no contents
        field = FIELDS.get(dtype, "uint_contents" if dtype.startswith("u") else "int_contents")
        getattr(request.inputs[0].contents, field).extend(rows.reshape(-1).tolist())
        assert np.array_equal(read_message(request, serves, ROWS).rows, rows)
        request.inputs[0].ClearField("contents")
    request.raw_input_contents.append(rows.tobytes())
    found = read_message(request, serves, ROWS)
    assert np.array_equal(found.rows, rows)
    response = write_message(found, "m", {"output": rows}, {"deadline_met": True, "batch": 3})
    assert response.raw_output_contents[0] == rows.tobytes()
    assert response.parameters["batch"].int64_param == 3


def test_a_list_of_a_wrong_length_is_refused_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "array", lambda *_: pytest.fail("an array was made of it"))
    for data in ([0] * 1000, [], [[0] * 4] * 3):
        with pytest.raises(WireError, match="needs 8 numbers, or 2 rows of them, not"):
            from_numbers("input", data, 2, TensorSpec((4,)))


def test_a_binary_body_is_not_copied() -> None:
    body, length = binary([[1, 2, 3, 4]] * 3)
    buffer = bytearray(body)
    found = read(buffer, b"%d" % length)
    buffer[-4:] = np.float32(9).tobytes()
    assert found.rows[2, 3] == 9


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [("uint8", [256]), ("uint8", [-1]), ("int8", [1.5]), ("int64", [2**63]), ("uint64", [2**64]),
     ("uint8", ["1"]), ("float32", ["1"]), ("float32", [True]), ("bool", [1]), ("float16", [1e6]),
     ("float32", [None]), ("float32", [[]]), ("float32", [{}]), ("float32", 1), ("float32", "1")],
)  # fmt: skip
def test_numbers_that_do_not_fit(dtype: str, numbers: Any) -> None:
    with pytest.raises(WireError):
        from_numbers("input", numbers, 1, TensorSpec((), dtype))


@pytest.mark.parametrize("depth", [10, 100, 1000, 100_000])
def test_deep_nesting(depth: int) -> None:
    for body in (b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        with pytest.raises(WireError):
            read(body)
        with pytest.raises(WireError):
            read(asked(np.zeros((1, 4), np.float32), data=[]).replace(b"[]", body))


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [("", ""), ("gzip", "gzip"), ("deflate", "deflate"), ("br, deflate, gzip", "gzip"),
     ("gzip;q=0", ""), ("gzip;q=0.0, deflate;q=0.5", "deflate"), ("*", "gzip"), ("identity", ""),
     ("GZIP; q=1.0", "gzip"), (";;,,=", ""), ("gzip;q=", "gzip")],
)  # fmt: skip
def test_encodings_that_are_accepted(accept: str, encoding: str) -> None:
    assert accepted_encoding(accept) == encoding


@given(body=st.binary(), encoding=st.sampled_from(["gzip", "deflate"]))
def test_compression_there_and_back(body: bytes, encoding: str) -> None:
    assert decompress(compress([body], encoding), encoding, len(body)) == body
    if body:
        with pytest.raises(WireError, match="unpacked"):
            decompress(compress([body], encoding), encoding, len(body) - 1)


def one_sentence(work: Any) -> None:
    said = None
    try:
        work()
    except WireError as error:
        said = error
    if said:
        assert said.sentence
        assert "\n" not in said.sentence
        assert len(said.sentence) < 300
        assert 400 <= said.status < 500


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = ("id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data",
        "binary_data_size", "binary_data", "binary_data_output", "timeout", "slo_ms")  # fmt: skip


def places(found: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything in plain data."""
    inner = (
        found.items()
        if isinstance(found, dict)
        else enumerate(found)
        if isinstance(found, list)
        else ()
    )
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def changed(found: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy: Any = dict(found) if isinstance(found, dict) else list(found)
    copy[at[0]] = changed(found[at[0]], at[1:], value)
    return copy


@st.composite
def nearly_right(draw: st.DrawFn) -> bytes:
    """A request of which one or two places are something else."""
    right: Any = json.loads(
        in_json([[1, 2, 3, 4]] * 2, id="a", parameters={"slo_ms": 9}, outputs=[{"name": "output"}])
    )
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(right)))
        right = changed(right, place, draw(JSON | st.sampled_from(KEYS)))
    return json.dumps(right).encode("utf-8", "surrogatepass")


@given(body=nearly_right(), length=st.none() | st.integers(0, 400).map(lambda n: b"%d" % n))
def test_json_that_is_nearly_right(body: bytes, length: bytes | None) -> None:
    one_sentence(lambda: read(body, length))


@given(data=st.data())
def test_messages_with_changed_bytes(data: st.DataObject) -> None:
    request = MESSAGES["ModelInferRequest"](model_name="tiny", id="a")
    request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    request.parameters["slo_ms"].int64_param = 5
    request.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    body = request.SerializeToString()
    for _ in range(data.draw(st.integers(1, 4))):
        at, byte = data.draw(st.integers(0, len(body) - 1)), data.draw(st.binary(max_size=2))
        body = body[:at] + byte + body[at + 1 :]
    try:
        changed_request = MESSAGES["ModelInferRequest"].FromString(body)
    except DecodeError:
        return
    one_sentence(lambda: read_message(changed_request, TINY, ROWS))
