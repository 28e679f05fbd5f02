"""Runs: one plan, one store, one reader, whether one scenario is run or a suite of them.

``suite.py`` says what is compared, and ``unit.py`` which work that makes: an agent's episodes on
one cell, with a controller from ``registry.py`` in the loop of ``rollout.py``, or a clairvoyant
bound, and what they leave in a folder of ``store.py``. ``executor.py`` runs units here or in
processes, ``read.py`` reads the folder. ``evaluate.py`` is the command.
"""
