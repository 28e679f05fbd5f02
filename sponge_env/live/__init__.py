"""The real worker: replicas of a real model under a CPU limit, in real time.

Read in this order: ``worker.py`` (the seam to the rest), ``fleet.py`` (which replicas run),
``protocol.py`` (what a replica is to the fleet), ``local.py`` and ``child.py`` (child processes),
``remote.py``, ``node.py`` and ``wire.py`` (replicas elsewhere), ``limits.py`` with ``cgroups.py``.
"""
