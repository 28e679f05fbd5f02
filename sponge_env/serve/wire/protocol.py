"""Inference requests and answers of the Open Inference Protocol over HTTP, as pure functions.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with Triton's
extension for binary tensors: a JSON header, followed by the bytes of the tensors it describes.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from sponge_env.models.model import TEXT, TEXT_BYTES, TensorSpec
from sponge_env.serve.interface import VERSION, ServedModel
from sponge_env.serve.wire import tensors as wire
from sponge_env.serve.wire.deadlines import PARAMETERS
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.regions import REGION, Regions, SharedTensor
from sponge_env.serve.wire.resources import LARGE_BYTES
from sponge_env.serve.wire.tensors import Buffer, brief, datatype

TASKS = "tasks"  # Name of a pipeline's last output: how many rows of the others each row led to
MAX_ID_LENGTH = 1000  # Of a request, in characters: the answer repeats it

KNOWN_BYTES, MAX_KNOWN = 2**10, 2**8  # Size and number of the JSON headers that are kept parsed
HEAD_BYTES = 2**16  # Of JSON beside numbers: names, parameters and outputs of a request
MAX_OBJECTS = 1000  # Of JSON: tensors and parameters; each takes up to 30 times its text's memory
NUMBER_BYTES = 32  # Of a number in JSON and what separates it from the next; FP64 takes 24

TEXT_JSON_BYTES = 6 * TEXT_BYTES + NUMBER_BYTES  # The same of a text, whose bytes may be escaped


class RequestedOutput(NamedTuple):
    """One tensor of the answer that a client requests."""

    name: str
    binary: bool = False  # As bytes after the JSON, instead of numbers within it
    place: SharedTensor | None = None  # In shared memory instead of the answer


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request, parsed."""

    rows: NDArray[Any]  # (rows, *inputs.shape), where possible a view on the client's bytes
    outputs: tuple[RequestedOutput, ...]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # Those that state the deadline
    finite: bool = True  # Whether it holds neither NaN nor infinity


def output_tensors(served: ServedModel) -> dict[str, TensorSpec]:
    """Return the tensors of an answer by name, without their batch axis."""
    tasks = {TASKS: TensorSpec((), "int64")} if len(served.stages) > 1 else {}
    return {tensor.name: tensor for tensor in served.outputs.tensors} | tasks


def read_request(
    body: Buffer, size: int, served: ServedModel, max_rows: int, regions: Regions | None = None
) -> InferRequest:
    """Parse an uncompressed HTTP body, whose first ``size`` bytes are JSON; else a WireError."""
    view = memoryview(body)
    key = bytes(view[:size]) if size <= KNOWN_BYTES else b"", len(body), max_rows
    if (known := served.known.get(key)) is not None:
        rows = wire.from_bytes(view[size:], len(known.rows), served.inputs)
        return InferRequest(rows, known.outputs, known.id, known.parameters, wire.is_finite(rows))
    request = make_request(read_json(view[:size]), view[size:], served, max_rows, regions)
    # Not kept are requests with ids, which differ each time, or regions, which may differ.
    another = served.inputs.fields or request.id or any(each.place for each in request.outputs)
    if size <= KNOWN_BYTES and size < len(body) and not another:
        if len(served.known) >= MAX_KNOWN:
            served.known.clear()
        # Of the rows only their number is kept.
        served.known[key] = replace(request, rows=np.empty(len(request.rows), np.uint8))
    if max(request.rows.nbytes, LARGE_BYTES) < size < len(body):  # a view would keep the JSON
        return replace(request, rows=request.rows.copy())
    return request


def make_request(
    values: Mapping[str, Any], binary: Buffer, served: ServedModel, max_rows: int,
    regions: Regions | None = None,
) -> InferRequest:  # fmt: skip
    """Check a request in the form of the JSON; ``binary`` holds the bytes of its tensors."""
    parameters = _mapping(values.get("parameters"), "parameters")
    rows = _rows(values.get("inputs"), binary, served, max_rows, regions)
    outputs = _requested_outputs(values.get("outputs"), parameters, served, regions)
    name = "" if (given := values.get("id")) is None else given
    if not (isinstance(name, str) and len(name) <= MAX_ID_LENGTH):
        text = f"id must be a text of at most {MAX_ID_LENGTH} characters, not {brief(name)}"
        raise WireError(text)
    if parameters.get("priority", 0) != 0:  # 0 is Triton's default
        raise WireError("priority is not supported: requests are served by their deadlines")
    stated = {key: parameters[key] for key in PARAMETERS if key in parameters}
    return InferRequest(rows, outputs, name, stated, wire.is_finite(rows))


def write_answer(
    request: InferRequest, model: str, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
) -> list[bytes]:
    """Return the JSON that answers a request, and the bytes of each tensor requested as bytes."""
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary, place in request.outputs:
        array = tensors[name]
        kind = datatype(array.dtype)
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": array.shape}
        if place is not None:
            place.write(wire.to_bytes(array))  # perf_analyzer takes no parameters here
        elif binary:
            blobs.append(wire.to_bytes(array))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = wire.to_values(array, name)
        outputs.append(output)
    identity = {"id": request.id} if request.id else {}
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION, **identity}
    answer |= {"parameters": about, "outputs": outputs}
    return [orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), *blobs]


def json_size(length: bytes | None, body_size: int, served: ServedModel, max_rows: int) -> int:
    """Return the size of a body's JSON; larger than a request can need is a WireError."""
    # ``Inference-Header-Content-Length`` says it, if it is given.
    size = body_size
    if length is not None:
        if not (length.isdigit() and len(length) < 16 and int(length) <= body_size):
            name = "Inference-Header-Content-Length"
            raise WireError(f"{name} must be 0 to {body_size}, not {brief(length)}")
        size = int(length) or body_size
    limit, what = HEAD_BYTES, "before binary tensors"
    if size == body_size:
        limit += max_rows * sum(
            math.prod(each.shape) * (TEXT_JSON_BYTES if each.dtype == TEXT else NUMBER_BYTES)
            for each in served.inputs.tensors
        )
        what = "of a request"
    if size > limit:
        raise WireError(f"the JSON {what} has at most {limit} bytes", 413)
    return size


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WireError(f"{name} must be a JSON object, not {brief(value)}")
    return value


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise WireError(f"{name} must be a list, not {brief(value)}")
    return [_mapping(item, f"each of {name}") for item in value]


def _rows(
    value: Any, binary: Buffer, served: ServedModel, max_rows: int, regions: Regions | None
) -> NDArray[Any]:
    """Return the inputs row by row, those of several tensors in records."""
    tensors, specs = _objects(value, "inputs"), served.inputs.tensors
    arrays: dict[str, NDArray[Any]] = {}
    end, wrong = 0, f"a request has {len(specs)} inputs, each once; {_inputs(specs)}"
    if len(tensors) > len(specs):  # and each may be large
        raise WireError(wrong)
    for tensor in tensors:
        spec = next((each for each in specs if each.name == tensor.get("name")), None)
        if spec is None:
            raise WireError(f"there is no input {brief(tensor.get('name'))}; {_inputs(specs)}")
        about, place = _tensor_parameters(tensor, spec.name, regions)
        size = about.get("binary_data_size")
        if size is not None and not (type(size) is int and size >= 0):
            raise WireError(f"binary_data_size of {spec.name!r} is not {brief(size)}")
        begin, end = end, end + (size or 0)
        rows = wire.check_rows(tensor.get("shape"), tensor.get("datatype"), spec, max_rows)
        given = [k for k in ("data", "binary_data_size", REGION) if k in tensor or k in about]
        if len(given) > 1:
            raise WireError(f"{spec.name!r} has both {' and '.join(given)}")
        if place is not None:  # a copy of its own, which is counted as such
            arrays[spec.name] = wire.from_bytes(place.read(), rows, spec).copy()
        elif size is None:
            arrays[spec.name] = wire.from_values(tensor.get("data"), rows, spec)
        else:
            arrays[spec.name] = wire.from_bytes(binary[begin:end], rows, spec)
    if not len(arrays) == len(tensors) == len(specs):
        raise WireError(wrong)
    if end != len(binary):
        raise WireError(f"{len(binary)} bytes follow the JSON, but its tensors have {end}")
    if not served.inputs.fields:
        return arrays[specs[0].name]
    counts = set(map(len, arrays.values()))
    if len(counts) > 1:
        raise WireError(f"all inputs have the same number of rows, not {sorted(counts)}")
    records = np.empty(counts.pop(), served.inputs.element)
    for name, array in arrays.items():
        records[name] = array
    return records


def _inputs(specs: Sequence[TensorSpec]) -> str:
    return f"the model takes {', '.join(repr(each.name) for each in specs)}"


def _tensor_parameters(
    tensor: Mapping[str, Any], name: str, regions: Regions | None
) -> tuple[dict[str, Any], SharedTensor | None]:
    """Return the parameters of a tensor, and its place if they say one."""
    parameters = _mapping(tensor.get("parameters"), f"parameters of {name!r}")
    for extension in ("classification",) if regions else ("classification", REGION):
        if extension in parameters:
            raise WireError(f"the extension {extension!r} is not supported here")
    return parameters, regions.place(parameters, name) if regions else None


def _requested_outputs(
    value: Any, parameters: Mapping[str, Any], served: ServedModel, regions: Regions | None
) -> tuple[RequestedOutput, ...]:
    """Return which outputs are requested: all of them, unless some are named."""
    names, binary = output_tensors(served), parameters.get("binary_data_output", False)
    if value is None or value == []:
        return tuple(RequestedOutput(name, _flag(binary, "binary_data_output")) for name in names)
    outputs = []
    for tensor in _objects(value, "outputs"):
        name = tensor.get("name")
        about, place = _tensor_parameters(tensor, str(name), regions)
        own = about.get("binary_data", binary)
        if not (isinstance(name, str) and name in names):
            raise WireError(f"there is no output {brief(name)}; choose from {', '.join(names)}")
        outputs.append(RequestedOutput(name, _flag(own, "binary_data"), place))
    if len({output.name for output in outputs}) < len(outputs):
        raise WireError("an output is requested twice")
    return tuple(outputs)


def _flag(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise WireError(f"{name} must be true or false, not {brief(value)}")


_BYTES_BY_SIGN = np.full(256, 6, np.uint8)
"""(256,) memory that each byte of JSON stands for once it is parsed, in bytes.

A value comes after a comma or a bracket: 16 bytes while it is parsed, up to 32 as a number, and
two pointers. An empty list takes 72 bytes more, a dictionary with one key 200, each other key
100, a text 49 (in two quotation marks). The parser copies all, and a character of a text takes
4 bytes if another one in it is beyond the Basic Multilingual Plane.
"""
_BYTES_BY_SIGN[list(b',[{:"')] = 64, 160, 255, 100, 32


def parsed_bytes(text: Buffer) -> int:
    """Return an upper bound of the memory that parsing JSON takes, in 2 ms for 1 MB."""
    # More objects than a request can need are a WireError.
    signs = np.frombuffer(text, np.uint8)
    if np.count_nonzero(signs == ord("{")) > MAX_OBJECTS:
        raise WireError(f"the JSON of a request has at most {MAX_OBJECTS} objects", 413)
    return int(np.take(_BYTES_BY_SIGN, signs).sum())


def read_json(text: Buffer) -> dict[str, Any]:
    """Parse a JSON object; anything else is a WireError."""
    # The garbage collector would look through many new lists again and again: that takes five
    # times as long as parsing them, and blocks all other threads.
    enabled = gc.isenabled()
    gc.disable()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WireError(f"this is not JSON: {error}") from None
    finally:
        if enabled:
            gc.enable()
    if not isinstance(value, dict):
        raise WireError(f"the request must be a JSON object, not {brief(value)}")
    return value
