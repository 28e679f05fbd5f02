"""The real worker: replicas of a real model under a CPU limit, in real time.

Read in this order: ``worker.py`` (the seam to the rest), ``fleet.py`` (which replicas run),
``replica.py`` (the settings, and what a replica is to the fleet; a new kind of replica implements
its two protocols), ``local.py`` and ``child.py`` (replicas that are child processes),
``remote.py``, ``node.py`` and ``wire.py`` (replicas elsewhere), ``sandbox.py`` (what they may not
do), ``cpus.py`` (where they run), ``limits.py`` with ``cgroups.py`` (their CPU limits),
``janitor.py`` (what cleans up after a crash), and ``bench.py`` (what a calibration measures).
"""
