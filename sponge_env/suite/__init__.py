"""Suites: many agents on many scenarios and seeds, in parallel, kept and compared.

``definition.py`` says what a suite is, ``unit.py`` does one agent's episodes on one cell,
``pool.py`` runs many such units in processes, ``store.py`` keeps their results, ``results.py``
reads them and ``tables.py`` compares them. ``run.py`` puts these together.
"""
