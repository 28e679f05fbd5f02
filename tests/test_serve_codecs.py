"""Codecs as pure functions: whatever the bytes, an answer or one sentence; what JSON takes."""

import gc
import json
import math
import tracemalloc

import numpy as np
import orjson
import pytest
from fake_engine import FakeEngine, served
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from raw_http import Wire, binary, in_json, infer, request
from served import running

from sponge_env.models.model import TEXT, TensorSpec, record
from sponge_env.serve.http.messages import accepted_encoding, compress, decompress
from sponge_env.serve.rpc.codec import MESSAGES, read_message, write_message
from sponge_env.serve.wire import protocol
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.protocol import InferRequest, json_size, read_request, write_answer
from sponge_env.serve.wire.tensors import DATATYPES, from_bytes, from_values, to_bytes, to_values

TINY, ROWS = served(), 16
DTYPES = tuple(DATATYPES)
FIELDS = {"float32": "fp32_contents", "float64": "fp64_contents", "bool": "bool_contents",
          "int64": "int64_contents", "uint64": "uint64_contents"}  # fmt: skip


def read(body, length=None, serves=TINY):
    return read_request(body, json_size(length, len(body), serves, ROWS), serves, ROWS)


def values(dtype):
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return rng.integers(0, 2, (3, 2, 2)).astype(bool)
    if dtype.startswith("float"):
        return rng.standard_normal((3, 2, 2)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (3, 2, 2), dtype, endpoint=True)


def asked(rows, **tensor):
    name = DATATYPES[rows.dtype.name]
    described = {"name": "input", "datatype": name, "shape": list(rows.shape), **tensor}
    return json.dumps({"inputs": [described]}).encode()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_datatype_there_and_back(dtype):
    rows, serves = values(dtype), served(TensorSpec((2, 2), dtype), TensorSpec((2, 2), dtype))
    head = asked(rows, parameters={"binary_data_size": rows.nbytes})
    message = MESSAGES["ModelInferRequest"]()
    message.inputs.add(name="input", datatype=DATATYPES[dtype], shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    requests = [
        read(head + rows.tobytes(), str(len(head)).encode(), serves),
        read(asked(rows, data=rows.reshape(-1).tolist()), None, serves),
        read(asked(rows, data=rows.tolist()), None, serves), read_message(message, serves, ROWS),
    ]  # fmt: skip
    if dtype != "float16":  # which has no contents
        field = FIELDS.get(dtype, "uint_contents" if dtype.startswith("u") else "int_contents")
        getattr(message.inputs[0].contents, field).extend(rows.reshape(-1).tolist())
        message.ClearField("raw_input_contents")
        requests.append(read_message(message, serves, ROWS))
    for each in requests:
        assert each.rows.dtype == rows.dtype
        assert np.array_equal(each.rows, rows)
    as_bytes, as_json = protocol.RequestedOutput("output", True), protocol.RequestedOutput("output")
    answer = write_answer(InferRequest(rows, (as_bytes,)), "m", {"output": rows}, {})
    assert bytes(answer[1]) == rows.tobytes()
    answer = write_answer(InferRequest(rows, (as_json,)), "m", {"output": rows}, {})
    (tensor,) = orjson.loads(answer[0])["outputs"]
    assert tensor["shape"] == [3, 2, 2]
    assert np.array_equal(np.array(tensor["data"], dtype).reshape(rows.shape), rows)
    response = write_message(requests[3], "m", {"output": rows}, {"batch": 3})
    assert response.raw_output_contents[0] == rows.tobytes()
    assert response.parameters["batch"].int64_param == 3


def test_texts_there_and_back():
    spec, texts = TensorSpec((2,), TEXT, "t"), [b"", "\N{EURO SIGN}".encode(), b"x" * 4096, b"a"]
    rows, in_json = np.array(texts, TEXT).reshape(2, 2), [text.decode() for text in texts]
    assert to_values(rows, "t") == in_json
    data = to_bytes(rows)
    for found in (from_bytes(data, 2, spec), *(from_values(t, 2, spec) for t in (in_json, texts))):
        assert np.array_equal(found, rows)
    for wrong in (data[:-1], data + b"\0", b"", b"\xff" * len(data)):
        with pytest.raises(WireError, match="needs 4 texts"):
            from_bytes(wrong, 2, spec)
    for text in ("x" * 4097, "a\0", "a\0b", 1):
        with pytest.raises(WireError):
            from_values([*in_json[:3], text], 2, spec)
    with pytest.raises(WireError, match="no UTF-8"):
        to_values(np.array([b"\xff"]), "t")
    with pytest.raises(WireError, match="at most 8192 texts, not 8194"):  # each has 4096 bytes here
        from_bytes(bytes(4 * 8194), 4097, spec)


IDS = {"name": "ids", "datatype": "INT64", "shape": [2, 2], "data": [[1, 2], [3, 4]]}
MASK = {"name": "mask", "datatype": "BOOL", "shape": [2], "data": [True, False]}


@pytest.mark.parametrize(
    ("inputs", "message"), [([IDS], "has 2 inputs, each once; the model takes 'ids', 'mask'"),
     ([IDS, MASK, MASK], "each once"),
     ([IDS, {**MASK, "name": "other"}], "there is no input 'other'; the model takes 'ids', 'm"),
     ([IDS, {**MASK, "shape": [1], "data": [True]}], r"same number of rows, not \[1, 2\]"),
     ([IDS, {"parameters": {"binary_data_size": 2}, **MASK}], "both data and")],
)  # fmt: skip
def test_inputs_that_do_not_go_together(inputs, message):
    pair = record(TensorSpec((2,), "int64", "ids"), TensorSpec((), "bool", "mask"))
    right = read(json.dumps({"inputs": [MASK, IDS]}).encode(), None, served(pair)).rows
    assert (right["ids"].tolist(), right["mask"].tolist()) == ([[1, 2], [3, 4]], [True, False])
    with pytest.raises(WireError, match=message):
        read(json.dumps({"inputs": inputs}).encode(), None, served(pair))


@pytest.mark.parametrize("refuse", [False, True])
def test_nan_is_counted_and_may_be_refused(refuse):
    with running(refuse_nan=refuse) as server, Wire(server) as wire:
        for row, status in (([1, 2, 3, 4], 200), ([math.nan] * 4, 400)):
            assert wire.send(infer([row])).answer().status == status
    assert (server.recorder.not_finite, len(server.engine.calls)) == (1, 1 if refuse else 2)


def test_a_list_of_a_wrong_length_is_refused_as_it_is(monkeypatch):
    monkeypatch.setattr(np, "array", lambda *_: pytest.fail("an array was made of it"))
    for data in ([0] * 1000, [], [[0] * 4] * 3):
        with pytest.raises(WireError, match="needs 8 values"):
            from_values(data, 2, TensorSpec((4,)))


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [("uint8", [256]), ("uint8", [-1]), ("int8", [1.5]), ("int64", [2**63]), ("uint64", [2**64]),
     ("uint8", ["1"]), ("float32", ["1"]), ("float32", [True]), ("bool", [1]), ("float16", [1e6]),
     ("float32", [None]), ("float32", [[]]), ("float32", [{}]), ("float32", 1), ("float32", "1")],
)  # fmt: skip
def test_numbers_that_do_not_fit(dtype, numbers):
    with pytest.raises(WireError):
        from_values(numbers, 1, TensorSpec((), dtype))


@pytest.mark.parametrize("depth", [10, 100, 1000, 100_000])
def test_deep_nesting(depth):
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
def test_encodings_that_are_accepted(accept, encoding):
    assert accepted_encoding(accept) == encoding


@given(body=st.binary(), encoding=st.sampled_from(["gzip", "deflate"]))
def test_compression_there_and_back(body, encoding):
    assert decompress(compress(body, encoding), encoding, len(body)) == body
    if body:
        with pytest.raises(WireError, match="unpacked"):
            decompress(compress(body, encoding), encoding, len(body) - 1)


def one_sentence(read_it):
    error = None
    try:
        read_it()
    except WireError as raised:
        error = raised
    if error:
        assert 0 < len(error.sentence) < 300
        assert "\n" not in error.sentence
        assert 400 <= error.status < 500


WORD = st.text(max_size=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORD, inner, max_size=4),
    max_leaves=12,
)
KEYS = ("id", "parameters", "inputs", "outputs", "name", "shape", "datatype", "data",
        "binary_data_size", "binary_data", "binary_data_output", "timeout", "slo_ms")  # fmt: skip


def places(data, at=()):
    pairs = enumerate(data) if isinstance(data, list) else getattr(data, "items", tuple)()
    return [at, *(place for key, value in pairs for place in places(value, (*at, key)))]


def changed(found, at, value):
    if not at:
        return value
    copy = dict(found) if isinstance(found, dict) else list(found)
    copy[at[0]] = changed(found[at[0]], at[1:], value)
    return copy


@st.composite
def nearly_right(draw):
    said = {"id": "a", "parameters": {"slo_ms": 9}, "outputs": [{"name": "output"}]}
    right = json.loads(in_json([[1, 2, 3, 4]] * 2, **said))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places(right)))
        right = changed(right, place, draw(JSON | st.sampled_from(KEYS)))
    return json.dumps(right).encode("utf-8", "surrogatepass")


@given(body=nearly_right(), length=st.none() | st.integers(0, 400).map(lambda n: b"%d" % n))
def test_json_that_is_nearly_right(body, length):
    one_sentence(lambda: read(body, length))


@given(data=st.data())
def test_messages_with_changed_bytes(data):
    message = MESSAGES["ModelInferRequest"](model_name="tiny", id="a")
    message.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    message.parameters["slo_ms"].int64_param = 5
    message.raw_input_contents.append(np.ones(4, np.float32).tobytes())
    body = message.SerializeToString()
    for _ in range(data.draw(st.integers(1, 4))):
        at, byte = data.draw(st.integers(0, len(body) - 1)), data.draw(st.binary(max_size=2))
        body = body[:at] + byte + body[at + 1 :]
    try:
        changed_request = MESSAGES["ModelInferRequest"].FromString(body)
    except DecodeError:
        return
    one_sentence(lambda: read_message(changed_request, TINY, ROWS))


def test_json_is_as_large_as_the_model_needs():
    spaces = b" " * protocol.HEAD_BYTES
    body, length = binary()
    padded = body[:length] + spaces + body[length:]
    with running(max_rows=8) as server, Wire(server) as wire:
        for sent, status in (
            (request(in_json() + spaces), 200),
            (request(in_json() + spaces + b" " * 8 * 4 * protocol.NUMBER_BYTES), 413),
            (request(padded, inference_header_content_length=length + len(spaces)), 413),
        ):
            assert wire.send(sent).answer().status == status


@pytest.mark.parametrize("most_bytes", [4_000_000, 40_000_000])
def test_what_json_becomes_counts(most_bytes):
    """150 KB of ``[]`` take 5 MB while they are parsed."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 40_000]}
    body = json.dumps({"inputs": [{**tensor, "data": [[]] * 50_000}]}).encode()
    engine = FakeEngine(served(TensorSpec((40_000,))))
    with running(engine, max_held_bytes=most_bytes) as server, Wire(server) as wire:
        assert wire.send(request(body)).answer().status == (413 if most_bytes < 10_000_000 else 400)
        assert wire.send(request(in_json())).answer().status == 400  # it is given back


MANY = range(30_000)
TEXTS = [
    *(f"[{','.join([item] * len(MANY))}]" for item in ("[]", "[[]]", "0", '""')),
    *(f"[{','.join(form % n for n in MANY)}]" for form in ("%d", "1.%d", "[%d]", '"%d"')),
    *(f"{{{','.join(form % n for n in MANY)}}}" for form in ('"%d":1.5', '"%d":[]')),
    f'["\U0001f600{"a" * 100_000}"]',
]


@pytest.mark.parametrize("text", TEXTS, ids=[text[:12] for text in TEXTS])
def test_no_json_becomes_more_than_is_counted(text):
    data = text.encode()
    tracemalloc.start()
    try:
        found = orjson.loads(data)
        made, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found
    assert made + len(data) <= protocol.parsed_bytes(data)


def test_no_garbage_is_looked_for_in_what_is_new():
    phases, text = [], json.dumps({"inputs": [[]] * 50_000})
    gc.callbacks.append(lambda phase, _: phases.append(phase))
    try:
        protocol.read_json(text.encode())
    finally:
        gc.callbacks.pop()
    assert phases.count("start") <= 1
    assert gc.isenabled()
