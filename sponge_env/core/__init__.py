"""The serving system's rules, written once: plain typed functions over records.

numba compiles them; with ``NUMBA_DISABLE_JIT=1`` they run unchanged as ordinary Python. The core
reads no clock and does no I/O: time is an argument, and random numbers come from its own streams.
"""
