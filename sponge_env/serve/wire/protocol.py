"""Inference requests and answers of the Open Inference Protocol over HTTP, as pure functions.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with Triton's
extension for binary tensors: a JSON header, followed by the bytes of the tensors it describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from sponge_env.serve.interface import Call, Served
from sponge_env.serve.wire.aside import LARGE_BYTES
from sponge_env.serve.wire.deadlines import Timing, about_time
from sponge_env.serve.wire.json_text import read_json
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.tensors import (
    Buffer,
    checked_rows,
    datatype,
    from_bytes,
    from_numbers,
    shown,
)

INPUT, OUTPUT, TASKS = "input", "output", "tasks"
"""Names of the tensors; ``tasks`` says how many rows of a pipeline's ``output`` each row led to."""
VERSION = "1"
"""The only version of a model."""
LONGEST_ID = 1000
"""Of a request, in characters: the answer says it again."""


class Wanted(NamedTuple):
    """One tensor of the answer that a client asks for."""

    name: str
    binary: bool = False
    """As bytes after the JSON, instead of numbers within it."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A request, taken apart."""

    rows: NDArray[Any]
    """(rows, *inputs.shape), where possible a view on the client's bytes."""
    wanted: tuple[Wanted, ...]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those that say when it is due."""


def names_of_outputs(served: Served) -> tuple[str, ...]:
    """Return the names of the tensors of an answer."""
    return (OUTPUT, TASKS) if len(served.stages) > 1 else (OUTPUT,)


def read_inference(
    body: Buffer, header_length: bytes | None, served: Served, most_rows: int
) -> Inference:
    """Take an uncompressed HTTP body apart; what does not keep to the protocol is a WireError.

    ``header_length`` is the header ``Inference-Header-Content-Length``, if there is one: the size
    of the JSON, after which bytes of tensors follow.
    """
    size = header_size(header_length, len(body))
    view = memoryview(body)
    request = read_json(view[:size])
    parameters = _mapping(request.get("parameters"), "parameters")
    rows = _rows(request.get("inputs"), view[size:], served, most_rows)
    if max(rows.nbytes, LARGE_BYTES) < size < len(body):  # or the rows would keep all alive
        rows = rows.copy()
    wanted = _wanted(request.get("outputs"), parameters, served)
    return Inference(rows, wanted, checked_id(request.get("id", "")), about_time(parameters))


def checked_id(found: object) -> str:
    """Return the name that a client gives its request, if it is a text and not too long."""
    if isinstance(found, str) and len(found) <= LONGEST_ID:
        return found
    raise WireError(f"id must be a text of at most {LONGEST_ID} characters, not {shown(found)}")


def header_size(said: bytes | None, size: int) -> int:
    """Return the size of a body's JSON, by ``Inference-Header-Content-Length``, if that is said."""
    if said is None:
        return size
    if not (said.isdigit() and len(said) < 16 and int(said) <= size):
        text = shown(said.decode("latin-1"))
        raise WireError(f"Inference-Header-Content-Length must be 0 to {size}, not {text}")
    return int(said) or size


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise WireError(f"{what} must be a JSON object, not {shown(found)}")
    return found


def _objects(found: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(found, list):
        raise WireError(f"{what} must be a list, not {shown(found)}")
    return [_mapping(item, f"each of {what}") for item in found]


def _rows(found: Any, after: memoryview, served: Served, most_rows: int) -> NDArray[Any]:
    """Return the (rows, *inputs.shape) tensor of the only input."""
    tensors = _objects(found, "inputs")
    check_input_names([tensor.get("name") for tensor in tensors])
    (tensor,) = tensors
    shape, said = tensor.get("shape"), tensor.get("datatype")
    rows = checked_rows(INPUT, shape, said, served.inputs, most_rows)
    size = _tensor_parameters(tensor, INPUT).get("binary_data_size")
    if size is None:
        if len(after):
            raise WireError(f"{len(after)} bytes follow the JSON that belong to no tensor")
        return from_numbers(INPUT, tensor.get("data"), rows, served.inputs)
    if "data" in tensor:
        raise WireError(f"{INPUT!r} has both data and binary_data_size")
    if type(size) is not int or size != len(after):
        raise WireError(f"binary_data_size of {INPUT!r} is {shown(size)}, not {len(after)}")
    return from_bytes(INPUT, after, rows, served.inputs)


def check_input_names(names: Sequence[object]) -> None:
    """Raise a WireError unless there is one input and it has the right name."""
    for name in names:
        if name != INPUT:
            raise WireError(f"there is no input {shown(name)}; its name is {INPUT!r}")
    if len(names) != 1:
        raise WireError(f"a request has one tensor {INPUT!r}, not {len(names)}")


def _tensor_parameters(tensor: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a tensor's parameters; those of extensions that change its meaning are refused."""
    parameters = _mapping(tensor.get("parameters"), f"parameters of {name!r}")
    check_extensions(parameters)
    return parameters


def check_extensions(parameters: Mapping[str, Any]) -> None:
    """Raise a WireError if a tensor's parameters need an extension that is not served."""
    for refused in ("shared_memory_region", "classification"):
        if refused in parameters:
            raise WireError(f"the extension {refused!r} is not served")


def _wanted(found: Any, parameters: Mapping[str, Any], served: Served) -> tuple[Wanted, ...]:
    """Return which outputs are asked for: all of them, unless some are named."""
    names, binary = names_of_outputs(served), parameters.get("binary_data_output", False)
    if found is None or found == []:
        return tuple(Wanted(name, _flag(binary, "binary_data_output")) for name in names)
    wanted = []
    for tensor in _objects(found, "outputs"):
        name = tensor.get("name")
        said = _tensor_parameters(tensor, str(name)).get("binary_data", binary)
        wanted.append(Wanted(check_output_name(name, names), _flag(said, "binary_data")))
    if len({name for name, _ in wanted}) < len(wanted):
        raise WireError("an output is asked for twice")
    return tuple(wanted)


def check_output_name(name: object, names: Sequence[str]) -> str:
    """Return the name of an output, if there is one of it; else raise a WireError."""
    if isinstance(name, str) and name in names:
        return name
    raise WireError(f"there is no output {shown(name)}; choose from {', '.join(names)}")


def _flag(value: object, what: str) -> bool:
    if isinstance(value, bool):
        return value
    raise WireError(f"{what} must be true or false, not {shown(value)}")


def calls(inference: Inference, when: Timing, payload_bytes: int) -> list[Call]:
    """Return one call for each row; they share the bytes that were sent evenly."""
    share = payload_bytes // len(inference.rows)
    return [Call(row, when.sent_s, when.deadline_s, share) for row in inference.rows]


class Answer(NamedTuple):
    """Body of an HTTP answer to an inference request."""

    parts: list[bytes]
    """The JSON, and the bytes of each binary tensor."""
    header_length: int
    """Size of the JSON, or 0 where nothing follows it."""


def write_answer(
    inference: Inference,
    model: str,
    tensors: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
) -> Answer:
    """Make the body that answers a request, with the tensors that it wants."""
    said: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in inference.wanted:
        array = tensors[name]
        described: dict[str, Any] = {
            "name": name,
            "datatype": datatype(array.dtype),
            "shape": array.shape,
        }
        if binary:
            blobs.append(array.tobytes())
            described["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            described["data"] = np.ascontiguousarray(array.reshape(-1))
        said.append(described)
    identity = {"id": inference.id} if inference.id else {}
    answer = {
        **{"model_name": model, "model_version": VERSION, **identity},
        **{"parameters": parameters, "outputs": said},
    }
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer([header, *blobs], len(header) if blobs else 0)
