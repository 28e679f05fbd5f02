"""Ask a server with tritonclient, with a deadline, and see what it says of its answer.

pip install 'tritonclient[all]' pillow, start a server, then ask it in another terminal:

    sponge serve --model efficientnet-lite0 --agent sponge-ip
    python client.py --slo-ms 500
    python client.py --slo-ms 500 --protocol grpc

A server of the model ocr reads text: --model ocr --image FILE prints what is read in a picture.
"""

import argparse
import time
from importlib import import_module

import numpy as np
from PIL import Image
from tritonclient.utils import InferenceServerException, triton_to_np_dtype


def values(shape: list[int], dtype: type, image: str | None) -> np.ndarray:
    """Return the pixels of an image, or noise; noise is 0 or 1 where it may be tokens."""
    if image and len(shape) == 4:
        pixels = Image.open(image).convert("RGB").resize(shape[:1:-1])
        return np.ascontiguousarray(np.asarray(pixels, dtype).transpose(2, 0, 1)[np.newaxis])
    noise = np.random.default_rng(0).random(shape)
    return (noise * (255 if len(shape) == 4 else 2)).astype(dtype)


def ask(protocol: str, url: str | None, model: str, slo_ms: float, image: str | None) -> None:
    """Send an image or noise, which the server is to answer within so long from now."""
    triton = import_module(f"tritonclient.{protocol}")
    # When it was sent counts, not when it arrives: what the network took is gone.
    deadline = {"parameters": {"slo_ms": slo_ms, "sent_at_ms": time.time() * 1000}}
    plain, port = {}, 8000
    if protocol == "grpc":  # its own deadline is the request's
        deadline, plain, port = {"client_timeout": slo_ms / 1000}, {"as_json": True}, 8001
    with triton.InferenceServerClient(url or f"127.0.0.1:{port}") as client:
        tensors = []
        try:
            for about in client.get_model_metadata(model, **plain)["inputs"]:
                kind = about["datatype"]
                shape, dtype = [1, *map(int, about["shape"][1:])], triton_to_np_dtype(kind)
                tensors.append(triton.InferInput(about["name"], shape, kind))
                tensors[-1].set_data_from_numpy(values(shape, dtype, image))
            answer = client.infer(model, tensors, **deadline)
        except (OSError, InferenceServerException) as error:
            # 503, RESOURCE_EXHAUSTED: it could not be done in time, ask again later
            # 504, DEADLINE_EXCEEDED: it expired while it waited
            raise SystemExit(f"no answer: {error}") from None
    told = answer.get_response(**plain)
    for output in told["outputs"]:
        array = answer.as_numpy(output["name"])
        print(f"{output['name']} of shape {array.shape}")
        if output["datatype"] == "BYTES":
            print(*(text.decode() for text in array.flat), sep="\n")
    for name, value in told["parameters"].items():
        print(name.ljust(14), *(value.values() if protocol == "grpc" else [value]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http")
    parser.add_argument("--url", help="by default the server's port on this machine")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--slo-ms", type=float, default=1000.0)
    parser.add_argument("--image", metavar="FILE")
    ask(**vars(parser.parse_args()))
