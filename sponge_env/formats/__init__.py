"""Trace files of others: what they say, in seconds and bytes per second."""

from sponge_env.formats.arrivals import Counts, Events
from sponge_env.formats.bandwidth import Samples
from sponge_env.formats.detect import find_trace, read_arrivals, read_bandwidth

__all__ = ["Counts", "Events", "Samples", "find_trace", "read_arrivals", "read_bandwidth"]
