"""Ask a server with tritonclient over gRPC, whose own deadline is the request's.

pip install 'tritonclient[grpc]', start a server, then ask it in another terminal:

    sponge serve --model efficientnet-lite0 --agent sponge-ip
    python grpc_client.py --slo-ms 500
"""

import argparse

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def ask(client: triton.InferenceServerClient, model: str, slo_ms: float) -> None:
    """Send random pixels; who has waited for so long goes away, and the server knows that."""
    (about,) = client.get_model_metadata(model).inputs
    shape = [1, *about.shape[1:]]
    pixels = np.random.default_rng(0).random(shape) * 255
    tensor = triton.InferInput(about.name, shape, about.datatype)
    tensor.set_data_from_numpy(pixels.astype(triton_to_np_dtype(about.datatype)))
    try:
        answer = client.infer(model, [tensor], client_timeout=slo_ms / 1000)
    except InferenceServerException as error:
        # RESOURCE_EXHAUSTED: it could not be done in time; DEADLINE_EXCEEDED: it expired
        print(f"no answer, {error.status()}: {error.message()}")
        return
    told = answer.get_response()
    print(f"answer of shape {answer.as_numpy(told.outputs[0].name).shape}")
    for name, value in sorted(told.parameters.items()):
        print(f"{name:14}{getattr(value, value.WhichOneof('parameter_choice'))}")


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--slo-ms", type=float, default=1000.0)
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.url) as client:
        ask(client, arguments.model, arguments.slo_ms)


if __name__ == "__main__":
    main()
