"""``sponge-mpc`` and ``sponge-joint``: simulate the next seconds and take the cheapest allocation.

They are in :mod:`.controllers`. Read on in :mod:`.planner`, which sets a decision up, in
:mod:`.kernel`, which prices allocations along the sample paths of :mod:`.paths`, and in
:mod:`.tandem`, which plays the queues.
"""

from .controllers import SpongeJoint as SpongeJoint
from .controllers import SpongeJointConfig as SpongeJointConfig
from .controllers import SpongeMPC as SpongeMPC
