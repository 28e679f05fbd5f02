"""A model of one's own on the real worker: how sharp images are.

Run from this folder:  python own_model.py
"""

import numpy as np

from sponge_env.models.model import Array, Model, TensorSpec


class Sharpness(Model):
    """The variance of an image's Laplacian: small where nothing is in focus."""

    inputs = TensorSpec((64, 64), "uint8")
    outputs = TensorSpec((1,), "float32")

    def run(self, session: object, batch: Array) -> Array:
        """Return the (size, 62, 62) Laplacians of (size, 64, 64) images."""
        grey = batch.astype(np.float32)
        beside = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
        return 4 * grey[:, 1:-1, 1:-1] - beside

    def finish(self, batch: Array, result: Array) -> Array:
        """Return one answer for each image, (size, 1)."""
        return result.var(axis=(1, 2))[:, None]


def main() -> None:
    """Serve a batch of the model's samples, which are random numbers."""
    from sponge_env.interfaces import Batch
    from sponge_env.live.replica import LiveConfig
    from sponge_env.live.worker import LiveWorker

    with LiveWorker(LiveConfig(model="own_model:Sharpness", batch_max=4)) as worker:
        worker.start(Batch(1, requests=(0, 1, 2)))
        (completion,) = worker.wait(worker.now() + 60.0)
        answers = worker.replicas[0].answers(3)
    print(f"{completion.cpu_s * 1e3:.1f} ms of CPU for {np.ravel(answers)}")


if __name__ == "__main__":
    main()
