"""Messages of ``inference.GRPCInferenceService``, made when this is imported.

``inference.binpb`` is what ``protoc --descriptor_set_out`` makes of Triton's ``model_config.proto``
and ``grpc_service.proto`` (BSD-3-Clause, NVIDIA). It goes into a descriptor pool of our own: a
client library that registers the same names in this process (tritonclient does) would otherwise
end it with "duplicate symbol".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"


def _classes() -> dict[str, Any]:
    """Return the class of each message of the protocol by its name."""
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


MESSAGES: dict[str, Any] = _classes()
"""Class of each message; untyped, because its fields are known only now."""
