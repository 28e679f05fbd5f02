"""A model of one's own on the real worker: how sharp images are."""

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
