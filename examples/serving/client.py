"""Ask a server with tritonclient, with a deadline, and see what it says of its answer.

pip install 'tritonclient[all]', start a server, then ask it in another terminal:

    sponge serve --model efficientnet-lite0 --agent sponge-ip
    python client.py --slo-ms 500
    python client.py --slo-ms 500 --protocol grpc --url 127.0.0.1:8001
"""

import argparse
import time
from importlib import import_module

import numpy as np
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def ask(protocol: str, url: str, model: str, slo_ms: float) -> None:
    """Send random pixels, which the server is to answer within so long from now."""
    triton = import_module(f"tritonclient.{protocol}")
    # When it was sent counts, not when it arrives: what the network took is gone.
    deadline = {"parameters": {"slo_ms": slo_ms, "sent_at_ms": time.time() * 1000}}
    plain = {}
    if protocol == "grpc":  # its own deadline is the request's
        deadline, plain = {"client_timeout": slo_ms / 1000}, {"as_json": True}
    with triton.InferenceServerClient(url) as client:
        (about,) = client.get_model_metadata(model, **plain)["inputs"]
        shape = [1, *map(int, about["shape"][1:])]
        pixels = np.random.default_rng(0).random(shape) * 255
        tensor = triton.InferInput(about["name"], shape, about["datatype"])
        tensor.set_data_from_numpy(pixels.astype(triton_to_np_dtype(about["datatype"])))
        try:
            answer = client.infer(model, [tensor], **deadline)
        except InferenceServerException as error:
            # 503, RESOURCE_EXHAUSTED: it could not be done in time, ask again later
            # 504, DEADLINE_EXCEEDED: it expired while it waited
            print(f"no answer, {error.status()}: {error.message()}")
            return
    told = answer.get_response(**plain)
    print(f"answer of shape {answer.as_numpy(told['outputs'][0]['name']).shape}")
    for name, value in told["parameters"].items():
        print(name.ljust(14), *(value.values() if protocol == "grpc" else [value]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http")
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--slo-ms", type=float, default=1000.0)
    ask(**vars(parser.parse_args()))
