"""Metadata and configuration of server and model, as plain JSON values.

HTTP writes them as they are, and gRPC's messages have the same fields.
"""

from __future__ import annotations

from typing import Any

from sponge_env import __version__
from sponge_env.models.model import TensorSpec
from sponge_env.serve.interface import VERSION, ServedModel
from sponge_env.serve.wire.protocol import INPUT, OUTPUT, TASKS, output_names
from sponge_env.serve.wire.tensors import datatype

SERVER = "sponge"
PLATFORM = "onnxruntime_onnx"
"""Triton's name for what runs ONNX files."""
BACKEND = "onnxruntime"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "schedule_policy")


def server_metadata() -> dict[str, Any]:
    """Return name, version and extensions of the server."""
    return {"name": SERVER, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(served: ServedModel) -> dict[str, Any]:
    """Return the tensors of the model; the batch axis is -1."""

    def described(name: str, tensor: TensorSpec) -> dict[str, Any]:
        return {"name": name, "datatype": datatype(tensor.dtype), "shape": [-1, *tensor.shape]}

    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [described(INPUT, served.inputs)],
        "outputs": [described(name, _output(served, name)) for name in output_names(served)],
    }


def model_config(served: ServedModel) -> dict[str, Any]:
    """Return the model's configuration as Triton writes it; shapes have no batch axis."""

    def described(name: str, tensor: TensorSpec) -> dict[str, Any]:
        # Triton wants a shape here even where nothing but the batch axis is left
        dims = list(tensor.shape or (1,))
        return {"name": name, "data_type": f"TYPE_{datatype(tensor.dtype)}", "dims": dims}

    return {
        "name": served.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": served.batch_max,
        "input": [described(INPUT, served.inputs)],
        "output": [described(name, _output(served, name)) for name in output_names(served)],
        "instance_group": [{"name": served.name, "kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {},
        "parameters": {
            "stages": {"string_value": ", ".join(served.stages)},
            "variants": {"string_value": ", ".join(served.variants)},
            "default_slo_ms": {"string_value": f"{served.default_slo_s * 1000:g}"},
        },
        "model_transaction_policy": {"decoupled": False},
    }


def index(served: ServedModel, ready: bool) -> list[dict[str, Any]]:
    """Return the list of models, which is one."""
    state = {"state": "READY"} if ready else {"state": "UNAVAILABLE", "reason": "the server drains"}
    return [{"name": served.name, "version": VERSION, **state}]


def _output(served: ServedModel, name: str) -> TensorSpec:
    return {OUTPUT: served.outputs, TASKS: TensorSpec((), "int64")}[name]
