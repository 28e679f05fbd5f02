"""What this machine lets the tests do."""

import os
import time

import pytest

from sponge_env.errors import WorkerError
from sponge_env.live.limits import open_limits


def _refusal():
    try:
        open_limits("cgroup", 1.0, 1, lambda path: None).close()
    except WorkerError as error:
        return str(error)
    return ""


CGROUP_REFUSAL = _refusal()

needs_cgroup = pytest.mark.skipif(bool(CGROUP_REFUSAL), reason=CGROUP_REFUSAL or "it may")
"""Skips where this process may not make CPU control groups."""

needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: one for the harness"
)

PATIENCE_S = 60.0  # time after which a test gives up on other processes


def wait_until(condition, what="it"):
    """Poll a condition on other threads or processes; return what it is when it holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f"never happened: {what}"
        time.sleep(0.01)  # the pause between two looks, not the wait itself
    return value
