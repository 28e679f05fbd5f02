"""What a controller that knows the future could reach: the clairvoyant bound.

``problem.py`` holds what is known in advance, ``lower.py`` proves that no schedule can do
better, ``search.py`` finds a schedule that the serving core attains, and ``bound.py`` puts
the two sides together. ``docs/oracle.md`` says why the proof holds.
"""

from sponge_env.oracle.bound import Bound, bound

__all__ = ["Bound", "bound"]
