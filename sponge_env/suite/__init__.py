"""A run compared: ``comparison.py`` arranges it, ``tables.py`` and ``tensorboard.py`` show it."""
