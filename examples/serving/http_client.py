"""Ask a server with tritonclient over HTTP, with a deadline, and see what it says of its answer.

pip install 'tritonclient[http]', start a server, then ask it in another terminal:

    sponge serve --model efficientnet-lite0 --agent sponge-ip
    python http_client.py --slo-ms 500
"""

import argparse
import time

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def ask(client: triton.InferenceServerClient, model: str, slo_ms: float) -> None:
    """Send random pixels, which the server is to answer within so long from now."""
    (about,) = client.get_model_metadata(model)["inputs"]
    shape = [1, *about["shape"][1:]]
    pixels = np.random.default_rng(0).random(shape) * 255
    tensor = triton.InferInput(about["name"], shape, about["datatype"])
    tensor.set_data_from_numpy(pixels.astype(triton_to_np_dtype(about["datatype"])))
    # When it was sent counts, not when it arrives: what the network took is gone.
    deadline = {"slo_ms": slo_ms, "sent_at_ms": time.time() * 1000}
    try:
        answer = client.infer(model, [tensor], parameters=deadline)
    except InferenceServerException as error:
        # 503: it could not be done in time, ask again later; 504: it expired while it waited
        print(f"no answer, status {error.status()}: {error.message()}")
        return
    told = answer.get_response()
    first = answer.as_numpy(told["outputs"][0]["name"])
    print(f"answer of shape {first.shape}")
    for name, value in told.get("parameters", {}).items():
        print(f"{name:14}{value}")


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--slo-ms", type=float, default=1000.0)
    arguments = parser.parse_args()
    with triton.InferenceServerClient(arguments.url) as client:
        ask(client, arguments.model, arguments.slo_ms)


if __name__ == "__main__":
    main()
