"""The serving system's rules, written once: plain typed functions over records.

Queue, batches, ledger, replicas, quota, arrivals, network, measures and observation. numba
compiles them; with ``NUMBA_DISABLE_JIT=1`` they run unchanged as ordinary Python. The core
reads no clock and does no I/O: time is an argument, and random numbers come from its own
streams. The simulator, every environment and the live driver call the same functions.
"""
