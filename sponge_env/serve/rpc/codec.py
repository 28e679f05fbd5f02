"""Messages of ``inference.GRPCInferenceService``, and inference requests and answers as such.

``inference.binpb`` is what ``protoc --descriptor_set_out`` makes of Triton's ``model_config.proto``
and ``grpc_service.proto`` (BSD-3-Clause, NVIDIA). It has a descriptor pool of its own: a process
that holds the same names twice, such as those of tritonclient, ends with "duplicate symbol".
"""

from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from sponge_env.serve.interface import VERSION, ServedModel
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.protocol import InferRequest, make_request
from sponge_env.serve.wire.regions import REGION, Regions
from sponge_env.serve.wire.tensors import datatype, to_bytes

SERVICE = "inference.GRPCInferenceService"


def _classes() -> dict[str, Any]:
    files = descriptor_pb2.FileDescriptorSet()
    files.ParseFromString(Path(__file__).with_name("inference.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    return {
        name: message_factory.GetMessageClass(message)
        for file in files.file
        for name, message in pool.FindFileByName(file.name).message_types_by_name.items()  # type: ignore[no-untyped-call]
    }


MESSAGES: dict[str, Any] = _classes()  # Class of each message, of fields known only now

_CONTENTS = {  # Field that holds values of a datatype; FP16 has none and is sent as bytes
    **{"BOOL": "bool_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"},
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{"INT64": "int64_contents", "UINT64": "uint64_contents", "BYTES": "bytes_contents"},
}

_KINDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
"""Field of an answer's parameter of each type."""

VARINT, LENGTH_DELIMITED = 0, 2  # Types on the wire of integers, and of texts, bytes and messages
RAW_TAG = 7 << 3 | LENGTH_DELIMITED  # Begins ``raw_input_contents``
MAX_FIELDS = 64  # Of a request: an empty tensor takes two bytes on the wire, and 90 in memory
FIXED_BYTES = {1: 8, 3: 0, 4: 0, 5: 4}  # Size on the wire of types that have one; 3, 4 are groups


def parse(name: str, data: bytes) -> Any:
    """Return a message; bytes that are not such a message are a WireError."""
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError:
        raise WireError(f"this is not a {name}") from None


def parsed_bytes(data: bytes) -> int:
    """Return how much of a ``ModelInferRequest`` has to be parsed number by number."""
    # That is all, but for items of ``raw_input_contents`` at its end, which are copied as they are.
    # Protobuf writes fields in the order of their numbers, and that is the highest. Too many fields
    # are a WireError. What is no message is for the parser to say, which stops where this does.
    parsed = end = 0
    for _ in range(MAX_FIELDS):
        if end >= len(data):
            return parsed if end == len(data) else len(data)
        at, end = end, _field_end(data, end)
        if data[at] != RAW_TAG:
            parsed = end
    if end < len(data):
        raise WireError(f"a request has at most {MAX_FIELDS} fields", 413)
    return len(data)


def _field_end(data: bytes, at: int) -> int:
    """Return where a field ends that begins somewhere; one without an end, beyond the message."""
    tag, after = _varint(data, at)
    if (kind := tag & 7) == LENGTH_DELIMITED:
        length, after = _varint(data, after)
        return after + length
    if kind == VARINT:
        return _varint(data, after)[1]
    return after + FIXED_BYTES.get(kind, len(data))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; one without an end reaches beyond the message."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(data) + 1


def read_message(
    request: Any, served: ServedModel, max_rows: int, regions: Regions | None = None
) -> InferRequest:
    """Parse a ``ModelInferRequest``; what violates the protocol is a WireError."""
    raw, tensors = request.raw_input_contents, request.inputs
    shared = [each for each in tensors if REGION in each.parameters]
    with_contents = any(each.HasField("contents") for each in (tensors if raw else shared))
    if with_contents or (raw and len(raw) + len(shared) != len(tensors)):
        raise WireError("each input needs either contents or an item of raw_input_contents")
    sizes = map(len, raw) if raw else repeat(None)
    values = {
        "id": request.id,
        "parameters": {**_plain(request.parameters), "binary_data_output": True},
        "inputs": [
            _described(each, None if REGION in each.parameters else next(sizes)) for each in tensors
        ],
        "outputs": [
            {"name": tensor.name, "parameters": _of_tensor(tensor.parameters)}
            for tensor in request.outputs
        ],
    }
    return make_request(values, b"".join(raw), served, max_rows, regions)


def _described(tensor: Any, size: int | None) -> dict[str, Any]:
    """Return a tensor in the form of the JSON, with its size where its data are bytes."""
    field, data, parameters = _CONTENTS.get(tensor.datatype), {}, _of_tensor(tensor.parameters)
    if size is not None:
        parameters["binary_data_size"] = size
    elif REGION not in parameters:
        data = {"data": list(getattr(tensor.contents, field)) if field else []}
    about = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
    return {**about, "parameters": parameters, **data}


def _plain(given: Any) -> dict[str, Any]:
    """Return the values of parameters; one without a value is as if it was not there."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in given.items())
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def _of_tensor(given: Any) -> dict[str, Any]:
    """Return a tensor's parameters but those of HTTP's binary data: here all are bytes."""
    return {k: v for k, v in _plain(given).items() if not k.startswith("binary_data")}


def write_message(
    request: InferRequest, model: str, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
) -> Any:
    """Make the ``ModelInferResponse`` to a request, with the tensors that it wants as bytes."""
    answer = MESSAGES["ModelInferResponse"](model_name=model, model_version=VERSION, id=request.id)
    for name, value in about.items():
        setattr(answer.parameters[name], _KINDS[type(value)], value)
    for name, _, place in request.outputs:
        array, data = tensors[name], to_bytes(tensors[name])
        answer.outputs.add(name=name, datatype=datatype(array.dtype), shape=array.shape)
        if place is not None:
            place.write(data)
            data = b""  # clients count the contents, so there is one for each output
        answer.raw_output_contents.append(data)
    return answer
