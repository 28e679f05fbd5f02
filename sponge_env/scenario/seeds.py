"""Which seeds are for what, so that nothing is judged by what it was fitted to; their streams."""

import zlib

import numpy as np

EVALUATION_SEEDS = 1000  # Seeds below are for evaluation; from here on for training and tuning
TRAINING_SEEDS = tuple(range(EVALUATION_SEEDS, EVALUATION_SEEDS + 5))
"""Those that options and constants are chosen on."""
SEED_LIMIT = 2**31  # Training seeds are below this; those from here on judge policies


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Return NumPy's generator of one purpose, independent of all other purposes."""
    # :mod:`sponge_env.core.rng` continues the same streams, such as ``"arrivals"``.
    entropy = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())])
    return np.random.Generator(np.random.SFC64(entropy))
