"""Which seeds are for what, so that no result is one on episodes that something was fitted to.

And the random streams that a seed gives.
"""

from __future__ import annotations

import zlib

import numpy as np

EVALUATION_SEEDS = 1000
"""Seeds below this are for evaluation; training and tuning use those from here on."""
SEED_LIMIT = 2**31
"""Seeds of training episodes are drawn below this; what judges a policy while it is trained
uses those from here on."""


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Return NumPy's generator of one purpose, independent of all other purposes.

    :mod:`sponge_env.core.rng` continues the same streams.

    Args:
        seed: Seed of the episode, at least 0.
        purpose: What is drawn from it, e.g. ``"arrivals"``.
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return np.random.Generator(np.random.SFC64(entropy))
