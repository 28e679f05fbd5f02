"""Runs: one plan, one store, one reader, whether one scenario is run or a suite of them.

``suite.py`` says what is compared, ``unit.py`` which work that is, ``rollout.py`` plays episodes.
"""
