"""What a controller that knows the future could reach: the clairvoyant bound.

``episode.py`` holds what is known in advance, ``fluid.py`` proves that no schedule can do better,
``beam.py`` finds one that the serving core attains, and ``bound.py`` puts the two sides together.
``docs/oracle.md`` says why the proofs hold.
"""

from sponge_env.oracle.bound import Bound, bound

__all__ = ["Bound", "bound"]
