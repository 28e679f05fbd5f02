"""Runs: one plan, one store, one reader, whether one scenario is run or a suite of them.

``suite.py`` says what is compared, and ``unit.py`` which work that makes: an agent's episodes
on one cell, from a ``warm.py`` start if wanted, with a controller from ``controllers.py`` in
the loop of ``rollout.py``. ``executor.py`` runs units here or in processes; ``record.py``
writes what they leave into a folder of ``store.py``, told apart by ``fingerprint.py``, and
``read.py`` reads it. ``bounds.py`` adds clairvoyant bounds; ``evaluate.py`` is the command.
"""
