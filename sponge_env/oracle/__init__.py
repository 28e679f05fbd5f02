"""What a controller that knows the future could reach: the clairvoyant bound.

``episode.py`` holds what is known in advance, ``relaxed.py`` and ``fluid.py`` prove that no
schedule can do better, ``beam.py`` finds one that the serving core attains, and ``bound.py``
puts the two sides together. ``docs/oracle.md`` says why the proof holds.
"""

from sponge_env.oracle.bound import Bound, bound

__all__ = ["Bound", "bound"]
