"""Random streams: one seed, one generator for each purpose.

Streams are SFC64, whose state is four 64-bit words and whose step is a few additions, so
that compiled code can continue them bit for bit.
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
    """Return the generator of one purpose, independent of all other purposes.

    Args:
        seed: Seed of the episode, at least 0.
        purpose: What is drawn from it, e.g. ``"arrivals"``.
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return np.random.Generator(np.random.SFC64(entropy))
