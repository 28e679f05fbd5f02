"""Messages of ``inference.GRPCInferenceService``, made when this is imported.

They live in a descriptor pool of their own: a client library that registers the same names in
this process (tritonclient does) would otherwise end it with "duplicate symbol". Names and
numbers are those of the protocol's ``grpc_service.proto`` and Triton's ``model_config.proto``, as
far as they are used here; a reader skips what it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_ASKED = "string name = 1; string version = 2"
_PARAMETERS = "map<InferParameter> parameters = 4"
_CHOICE = "bool bool_param = 1; int64 int64_param = 2; string string_param = 3"
_COMPUTED = "StatisticDuration compute_"

_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": _ASKED,
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_ASKED}; repeated string extensions = 3",
    "ModelMetadataRequest": _ASKED,
    "ModelMetadataResponse": """
        string name = 1; repeated string versions = 2; string platform = 3;
        repeated ModelMetadataResponse.TensorMetadata inputs = 4;
        repeated ModelMetadataResponse.TensorMetadata outputs = 5""",
    "ModelMetadataResponse.TensorMetadata": (
        "string name = 1; string datatype = 2; repeated int64 shape = 3"
    ),
    "InferParameter": f"{_CHOICE}; double double_param = 4; uint64 uint64_param = 5",
    "InferTensorContents": """
        repeated bool bool_contents = 1; repeated int32 int_contents = 2;
        repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4;
        repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6;
        repeated double fp64_contents = 7; repeated bytes bytes_contents = 8""",
    "ModelInferRequest": f"""
        string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS};
        repeated ModelInferRequest.InferInputTensor inputs = 5;
        repeated ModelInferRequest.InferRequestedOutputTensor outputs = 6;
        repeated bytes raw_input_contents = 7""",
    "ModelInferRequest.InferInputTensor": f"""
        string name = 1; string datatype = 2; repeated int64 shape = 3; {_PARAMETERS};
        InferTensorContents contents = 5""",
    "ModelInferRequest.InferRequestedOutputTensor": (
        "string name = 1; map<InferParameter> parameters = 2"
    ),
    "ModelInferResponse": f"""
        string model_name = 1; string model_version = 2; string id = 3; {_PARAMETERS};
        repeated ModelInferResponse.InferOutputTensor outputs = 5;
        repeated bytes raw_output_contents = 6""",
    "ModelInferResponse.InferOutputTensor": f"""
        string name = 1; string datatype = 2; repeated int64 shape = 3; {_PARAMETERS};
        InferTensorContents contents = 5""",
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "ModelConfigRequest": _ASKED,
    "ModelConfigResponse": "ModelConfig config = 1",
    "ModelConfig": """
        string name = 1; string platform = 2; ModelVersionPolicy version_policy = 3;
        int32 max_batch_size = 4; repeated ModelInput input = 5; repeated ModelOutput output = 6;
        repeated ModelInstanceGroup instance_group = 7;
        ModelDynamicBatching dynamic_batching = 11; map<ModelParameter> parameters = 14;
        string backend = 17; ModelTransactionPolicy model_transaction_policy = 19""",
    "ModelInput": "string name = 1; enum DataType data_type = 2; repeated int64 dims = 4",
    "ModelOutput": "string name = 1; enum DataType data_type = 2; repeated int64 dims = 3",
    "ModelInstanceGroup": (
        "string name = 1; int32 count = 2; enum ModelInstanceGroup.Kind kind = 4"
    ),
    "ModelVersionPolicy": "ModelVersionPolicy.Latest latest = 1",
    "ModelVersionPolicy.Latest": "uint32 num_versions = 1",
    "ModelDynamicBatching": "repeated int32 preferred_batch_size = 1",
    "ModelParameter": "string string_value = 1",
    "ModelTransactionPolicy": "bool decoupled = 1",
    "ModelStatisticsRequest": _ASKED,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats = 1",
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
    "InferStatistics": f"""
        StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3;
        {_COMPUTED}input = 4; {_COMPUTED}infer = 5; {_COMPUTED}output = 6;
        StatisticDuration cache_hit = 7; StatisticDuration cache_miss = 8""",
    "InferBatchStatistics": f"""
        uint64 batch_size = 1; {_COMPUTED}input = 2; {_COMPUTED}infer = 3;
        {_COMPUTED}output = 4""",
    "ModelStatistics": """
        string name = 1; string version = 2; uint64 last_inference = 3;
        uint64 inference_count = 4; uint64 execution_count = 5;
        InferStatistics inference_stats = 6; repeated InferBatchStatistics batch_stats = 7""",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models = 1",
    "RepositoryIndexResponse.ModelIndex": (
        "string name = 1; string version = 2; string state = 3; string reason = 4"
    ),
}
"""Fields of each message, in the notation of ``.proto`` files; keys of maps are texts."""

_ENUMS = {
    "DataType": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
        *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"),
        *("TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ),
    "ModelInstanceGroup.Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"),
}
_CHOICES = {"InferParameter": "parameter_choice"}
"""Messages of whose fields one at most is set, and what that choice is called."""

_FIELD = re.compile(r"(repeated |map<|enum |)([\w.]+)(?:>|) (\w+) = (\d+)")
_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    """Return the description of the file that would hold all of this."""
    made = descriptor_pb2.FileDescriptorProto(
        name="sponge_env/inference.proto", package=PACKAGE, syntax="proto3"
    )
    messages: dict[str, Any] = {"": made.message_type}
    for name, fields in _MESSAGES.items():
        outer, _, own = name.rpartition(".")
        message = messages[outer].add(name=own)
        messages[name] = message.nested_type
        if name in _CHOICES:
            message.oneof_decl.add(name=_CHOICES[name])
        for found in _FIELD.finditer(fields):
            _add_field(message, name, *found.groups())
    _add_enums(made)
    return made


def _add_field(message: Any, within: str, label: str, kind: str, name: str, number: str) -> None:
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if label in ("repeated ", "map<"):
        field.label = _Field.LABEL_REPEATED
    if label == "map<":
        entry = f"{name.capitalize()}Entry"
        _add_entry(message.nested_type.add(name=entry), kind)
        kind = f"{within}.{entry}"
    if label == "enum ":
        field.type, field.type_name = _Field.TYPE_ENUM, f".{PACKAGE}.{kind}"
    else:
        _set_type(field, kind)
    if within in _CHOICES:
        field.oneof_index = 0


def _add_entry(entry: Any, kind: str) -> None:
    """Describe one entry of a map from texts to messages, which is a message of its own."""
    entry.options.map_entry = True
    optional = _Field.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=optional, type=_Field.TYPE_STRING)
    _set_type(entry.field.add(name="value", number=2, label=optional), kind)


def _set_type(field: Any, kind: str) -> None:
    if kind[0].islower():
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


def _add_enums(made: Any) -> None:
    within = {message.name: message.enum_type for message in made.message_type}
    for name, values in _ENUMS.items():
        outer, _, own = name.rpartition(".")
        enum = (within[outer] if outer else made.enum_type).add(name=own)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)


def _classes() -> Iterator[tuple[str, type[Message]]]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())  # type: ignore[no-untyped-call]
    for name in _MESSAGES:
        described = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")  # type: ignore[no-untyped-call]
        yield name, message_factory.GetMessageClass(described)


MESSAGES: dict[str, Any] = dict(_classes())
"""Class of each message; untyped, because its fields are known only now."""
