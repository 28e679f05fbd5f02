"""Thousands of simulated environments stepped at once by compiled code.

``simulator.py`` steps arrays of environments with the functions of :mod:`sponge_env.core`;
``gym_env.py`` and ``sb3_env.py`` are its faces.
"""
