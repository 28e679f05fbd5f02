"""What a controller that knows the future could reach: the clairvoyant bound.

``episode.py`` holds what is known in advance, ``fluid.py`` proves (see ``docs/oracle.md``) that no
schedule can do better, ``beam.py`` finds one, and ``bound.py`` puts the two sides together.
"""

from sponge_env.oracle.bound import Bound, bound, least_cores

__all__ = ["Bound", "bound", "least_cores"]
