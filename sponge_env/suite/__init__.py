"""Suites: many agents on many scenarios and seeds, in parallel, kept and compared.

``definition.py`` says what a suite is, and ``plan.py`` what work it makes. ``unit.py`` does one
agent's episodes on one cell, from a ``warm.py`` start if wanted; ``pool.py`` runs many such
units in processes, and ``store.py`` keeps what they return, told apart by ``fingerprint.py``.
``results.py`` reads it and ``tables.py`` compares. ``command.py`` is ``evaluate.py --suite``.
"""
